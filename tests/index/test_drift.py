"""Answers about rows that have moved: guarantees hold, and re-embedding a few rows gives what all of them would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.neighbors import _squared_distances as squared_distances
from distmetric.index.drift import DriftingIndex, measured_drift
from distmetric.index.pruned_search import ClassBallIndex, Queries, to_length_one


class Moved:
    """Current embeddings, handed out by row, each at most once."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.asked = rows, []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked += rows.tolist()
        assert len(set(self.asked)) == len(self.asked)
        return self.rows[rows]


def direction(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    steps = random.normal(size=shape)
    return steps / np.linalg.norm(steps, axis=1, keepdims=True)


@st.composite
def moving(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, str]:
    """Stored rows, current ones, labels and metric; every class with a drift of its own, some with none."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim, classes = draw(st.integers(1, 10)), draw(st.integers(1, 8))
    labels = random.integers(classes, size=draw(st.integers(1, 60)))
    stored = (random.normal(size=(classes, dim)) * 2)[labels] + 0.2 * random.normal(size=(len(labels), dim))
    if draw(st.booleans()):
        stored = np.round(stored)
    stored[~stored.any(axis=1)] = 1
    far = (random.uniform(size=classes) * draw(st.sampled_from([0.0, 0.05, 0.5, 3.0])))[labels]
    now = stored + direction(random, stored.shape) * far[:, None] * random.uniform(size=(len(labels), 1))
    now[~now.any(axis=1)] = 1
    metric = draw(st.sampled_from(["l2", "cosine"]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return (
        torch.from_numpy(stored).to(dtype),
        torch.from_numpy(now).to(dtype),
        torch.from_numpy(labels),
        metric,
    )


def as_indexed(rows: Tensor, metric: str) -> Tensor:
    return to_length_one(rows, "rows") if metric == "cosine" else rows


def nearest_now(now: Tensor, point: Tensor, negatives: list[int], k: int) -> tuple[list[int], list[float]]:
    squares = squared_distances(point.expand_as(now), now).tolist()
    found = sorted((squares[row], row) for row in negatives)[:k]
    missing = [(np.inf, -1)] * (k - len(found))
    return [row for _, row in found + missing], [square for square, _ in found + missing]


@settings(deadline=None, max_examples=60)
@given(moving(), st.integers(1, 4), st.booleans())
def test_moved_rows(world, k, outside) -> None:
    stored, now, labels, metric = world
    index = ClassBallIndex.build(stored, labels, metric=metric)
    current = as_indexed(now, metric)
    drift = measured_drift(index, torch.arange(len(now)), now, slack=1.0)
    true = squared_distances(current, index.rows).sqrt()
    for place, label in enumerate(index.statistics.labels.tolist()):
        assert float(drift[place]) == float(true[labels == label].max())
    rows = torch.arange(len(now))
    queries = Queries(now) if outside else Queries(now, labels, rows)
    moving_index, embed = DriftingIndex(index, drift), Moved(now)
    found = moving_index.k_hardest_negatives_now(queries, embed, k)
    stale = moving_index.k_hardest_negatives(queries, k)
    assert found.embedded == len(embed.asked)
    assert found.violations == 0
    for i in range(len(now)):
        negatives = [row for row in range(len(now)) if outside or labels[row] != labels[i]]
        wanted, squares = nearest_now(current, current[i], negatives, k)
        assert found.rows[i].tolist() == wanted
        expected = [square / 2 if metric == "cosine" else float(np.sqrt(square)) for square in squares]
        assert found.distances[i].tolist() == expected
        for place, row in enumerate(stale.mined.rows[i].tolist()):
            assert (row < 0) == (wanted[place] < 0)
            if row >= 0:
                excess = float((current[i] - current[row]).double().norm()) - float(np.sqrt(squares[place]))
                assert excess <= float(stale.excess[i, place]) + 1e-6
                assert float(stale.excess[i, place]) <= 2 * float(drift.max())


def test_stale_queries_double_the_guarantee() -> None:
    index = ClassBallIndex.build(torch.eye(3), torch.arange(3))
    stale = DriftingIndex(index, torch.tensor([0.1, 0.2, 0.3]))
    fresh = stale.k_hardest_negatives(index.members(), 3)
    assert fresh.mined.rows.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1]]
    torch.testing.assert_close(
        fresh.excess, torch.tensor([[0.5, 0.6, 0], [0.4, 0.6, 0], [0.3, 0.4, 0]], dtype=torch.float64)
    )
    old = stale.k_hardest_negatives(index.members(), 3, query_drift=0.3)
    torch.testing.assert_close(old.excess[:, :2], fresh.excess[:, :2] + 0.6)


def test_small_drift_needs_few_rows_embedded() -> None:
    random = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(200, 8, generator=random))
    labels = torch.arange(200).repeat_interleave(10)
    stored = centers[labels] + 0.03 * torch.randn(2000, 8, generator=random)
    steps = torch.nn.functional.normalize(torch.randn(2000, 8, generator=random))
    index, queries = ClassBallIndex.build(stored, labels), torch.arange(0, 2000, 50)
    counts = []
    for far in (0.0, 0.02, 0.5):
        now = stored + far * steps
        embed = Moved(now)
        moving_index = DriftingIndex(index, torch.full((200,), far + 1e-6))
        found = moving_index.k_hardest_negatives_now(
            Queries(now[queries], labels[queries], queries), embed, 1
        )
        reference = torch.cdist(now[queries].double(), now.double())
        reference[labels[queries][:, None] == labels] = torch.inf
        assert torch.equal(found.rows[:, 0], reference.argmin(dim=1))
        counts.append(found.embedded)
    assert counts[0] <= 60
    assert counts[1] < 200
    assert counts[1] < counts[2]


def test_understated_drift_is_counted() -> None:
    stored = torch.eye(4)
    index = ClassBallIndex.build(stored, torch.arange(4))
    found = DriftingIndex(index, torch.full((4,), 0.1)).k_hardest_negatives_now(
        index.members(), Moved(stored + 0.5), 3
    )
    assert found.embedded == found.violations == 4


def test_drift_of_classes_that_were_not_seen_is_the_largest_seen() -> None:
    index = ClassBallIndex.build(torch.eye(4), torch.tensor([0, 0, 5, 7]))
    moved = index.rows[[0, 1, 2]] + torch.tensor([[0, 0, 0, 0.25], [0, 0, 0, 1.0], [0, 0, 0, 0.5]])
    assert measured_drift(index, [0, 1, 2], moved, slack=2.0).tolist() == [2.0, 1.0, 2.0]


@pytest.mark.parametrize("drift", [[0.1], [0.1, -1.0], [0.1, np.inf], [np.nan, 0.1]])
def test_wrong_drift_is_one_line(drift) -> None:
    index = ClassBallIndex.build(torch.eye(2), torch.arange(2))
    with pytest.raises(InputError, match="drift must be"):
        DriftingIndex(index, torch.tensor(drift))


def test_wrong_embeddings_are_one_line() -> None:
    index = ClassBallIndex.build(torch.eye(2), torch.arange(2))
    moving_index = DriftingIndex(index, torch.zeros(2))
    with pytest.raises(InputError, match="current embeddings must have shape"):
        moving_index.k_hardest_negatives_now(index.members(), lambda rows: torch.ones(1, 5))
    with pytest.raises(InputError, match="not finite"):
        moving_index.k_hardest_negatives_now(
            index.members(), lambda rows: torch.full((len(rows), 2), torch.nan)
        )
    with pytest.raises(InputError, match="measure no drift"):
        measured_drift(index, [], torch.ones(0, 2))
