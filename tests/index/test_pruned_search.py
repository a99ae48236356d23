"""Exact pruned mining equals brute force, ties included, and computes less."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.neighbors import _squared_distances as squared_distances
from distmetric.functional import distances
from distmetric.index import pruned_search, shortlist
from distmetric.index.pruned_search import ClassBallIndex, Mined, Queries

Answer = tuple[list[int], list[float]]


def distance(index: ClassBallIndex, square: float) -> float:
    return square / 2 if index.metric == "cosine" else float(np.sqrt(square))


def best(
    index: ClassBallIndex,
    point: Tensor,
    k: int,
    counts: Callable[[int, float], bool],
    farthest: bool = False,
    by_class: bool = False,
) -> Answer:
    """Plain loops over all rows: the k best that count, ties by row, filled up with -1."""
    sign = -1 if farthest else 1
    squares = squared_distances(point.expand_as(index.rows), index.rows).tolist()
    found = sorted(
        (sign * square, row) for row, square in enumerate(squares) if counts(row, distance(index, square))
    )
    if by_class:
        labels, seen, first = index.labels.tolist(), set(), []
        for key, row in found:
            if labels[row] not in seen:
                first.append((key, row))
                seen.add(labels[row])
        found = first
    found = found[:k]
    missing = k - len(found)
    return (
        [row for _, row in found] + [-1] * missing,
        [distance(index, abs(key)) for key, _ in found] + [sign * np.inf] * missing,
    )


def check_all(index: ClassBallIndex, queries: Queries, k: int) -> None:
    """Every kind of answer to every query."""
    labels = index.labels.tolist()
    own_label = [None] * len(queries.points) if queries.labels is None else queries.labels.tolist()
    own_row = [-1] * len(queries.points) if queries.rows is None else queries.rows.tolist()
    points = queries.points
    if index.metric == "cosine":
        points = pruned_search.to_length_one(points, "queries")
    positives = index.hardest_positive(queries)
    reach = positives.distances[:, 0]  # -inf for the only row of a class: any distance is beyond

    def compare(mined: Mined, own: bool, beyond: bool = False, **how: bool) -> None:
        assert mined.rows.shape == mined.distances.shape == (len(points), mined.rows.shape[1])
        for i, point in enumerate(points):
            rows, values = best(
                index,
                point,
                mined.rows.shape[1],
                lambda row, d, i=i: (
                    row != own_row[i]
                    and (labels[row] == own_label[i]) == own
                    and (not beyond or d > float(reach[i]))
                ),
                **how,
            )
            assert mined.rows[i].tolist() == rows
            assert mined.distances[i].tolist() == values

    compare(positives, own=True, farthest=True)
    compare(index.nearest_positives(queries, k), own=True)
    compare(index.hardest_negative(queries), own=False)
    compare(index.k_hardest_negatives(queries, k), own=False)
    compare(index.semi_hard_negative(queries, reach), own=False, beyond=True)
    compare(index.nearest_classes(queries, k), own=False, by_class=True)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Clusters, with outliers, copies, lone members and collapsed classes; on grids with many ties, or anywhere."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    dim, classes = draw(st.integers(1, 16)), draw(st.integers(1, 9))
    sizes = [draw(st.sampled_from([1, 2, 3, 8, 20])) for _ in range(classes)]
    labels = np.repeat(np.arange(classes), sizes)
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0]))
    centers = random.normal(size=(classes, dim)) * draw(st.sampled_from([0.1, 3.0]))
    rows = centers[labels] + spread * random.normal(size=(len(labels), dim))
    for _ in range(draw(st.integers(0, 3))):
        rows[random.integers(len(rows))] *= 10
    if draw(st.booleans()):
        rows = np.round(rows)
    for _ in range(draw(st.integers(0, 3))):
        rows[random.integers(len(rows))] = rows[random.integers(len(rows))]
    if draw(st.booleans()):
        rows = 100 + 1e-3 * rows
    rows[~rows.any(axis=1)] = 1  # which has a direction
    order = random.permutation(len(rows))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.from_numpy(rows[order]).to(dtype), torch.from_numpy(labels[order] * 3 - 4)


@settings(deadline=None, max_examples=60)
@given(worlds(), st.sampled_from(["l2", "cosine"]), st.sampled_from([1, 2, 4]), st.data())
def test_members_get_what_brute_force_finds(world, metric, sub_centers, data) -> None:
    rows, labels = world
    index = ClassBallIndex.build(rows, labels, metric=metric, sub_centers=sub_centers)
    check_all(index, index.members(), data.draw(st.integers(1, 7)))


@settings(deadline=None, max_examples=40)
@given(worlds(), st.sampled_from(["l2", "cosine"]), st.data())
def test_any_queries_get_what_brute_force_finds(world, metric, data) -> None:
    rows, labels = world
    index = ClassBallIndex.build(rows, labels, metric=metric)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    near = torch.randint(len(rows), (7,), generator=random)
    points = rows[near] + data.draw(st.sampled_from([0.0, 0.3])) * torch.randn(
        7, rows.shape[1], generator=random
    )
    points[~points.any(dim=1)] = 1
    given_labels = data.draw(st.sampled_from(["none", "of the row", "unknown"]))
    their = {"none": None, "of the row": labels[near], "unknown": labels[near] * 0 + 1000}[given_labels]
    own = data.draw(st.sampled_from([None, near, torch.where(near % 2 == 0, near, -1)]))
    check_all(index, Queries(points, their, own), data.draw(st.integers(1, 4)))


@settings(deadline=None, max_examples=20)
@given(worlds(), st.sampled_from(["l2", "cosine"]), st.integers(1, 5))
def test_brute_force_small_blocks_and_full_lists_find_the_same(world, metric, k) -> None:
    rows, labels = world
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruned_search, "SAMPLE", 1)
        patch.setattr(shortlist, "CAPACITY", 3)
        patch.setitem(distances.BLOCK_BYTES, "cpu", 1 << 12)
        check_all(
            ClassBallIndex.build(rows, labels, metric=metric, fall_back_above=0.0),
            ClassBallIndex.build(rows, labels, metric=metric).members(),
            k,
        )
        check_all(
            index := ClassBallIndex.build(rows, labels, metric=metric, fall_back_above=1.0),
            index.members(),
            k,
        )


def clustered(classes: int, members: int, dim: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes of unit length in random directions, and their labels."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(classes, dim, generator=random))
    labels = torch.arange(classes).repeat_interleave(members)
    noise = torch.randn(len(labels), dim, generator=random) * spread / dim**0.5
    return torch.nn.functional.normalize(centers[labels] + noise), labels


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(("dim", "spread", "most"), [(4, 0.1, 0.006), (16, 0.1, 0.007), (64, 0.1, 0.025)])
def test_tight_classes_need_few_distances(metric, dim, spread, most) -> None:
    rows, labels = clustered(1000, 8, dim, spread)
    index = ClassBallIndex.build(rows, labels, metric=metric)
    mined = index.hardest_negative(index.members(torch.arange(0, 8000, 7)))
    assert 0 < mined.effort.fraction < most
    assert not mined.effort.fell_back
    assert mined.effort.queries == 1143
    assert mined.effort.centers >= 1143 * 1000
    reference = torch.cdist(rows[::7].double(), rows.double())
    reference[labels[::7, None] == labels] = torch.inf
    assert torch.equal(mined.rows[:, 0], reference.argmin(dim=1))


def test_equidistant_classes_are_recognized_as_hopeless() -> None:
    labels = torch.arange(64).repeat_interleave(20)
    rows = torch.eye(64)[labels] + 0.01 * torch.randn(1280, 64, generator=torch.Generator().manual_seed(0))
    index = ClassBallIndex.build(rows, labels)
    mined = index.k_hardest_negatives(index.members(), 3)
    assert mined.effort.fell_back
    assert mined.effort.fraction > 0.9
    never = ClassBallIndex.build(rows, labels, fall_back_above=1.0)
    same = never.k_hardest_negatives(never.members(), 3)
    assert not same.effort.fell_back
    assert torch.equal(same.rows, mined.rows)
    assert torch.equal(same.distances, mined.distances)


def test_outliers_do_not_ruin_their_balls() -> None:
    rows, labels = clustered(200, 20, 8, 0.1)
    random = torch.Generator().manual_seed(1)
    # One member of every class lies where another class is.
    rows[::20] = rows[20 * torch.randperm(200, generator=random) + 1]
    fractions = {}
    for sub_centers in (1, 4):
        index = ClassBallIndex.build(rows, labels, sub_centers=sub_centers, fall_back_above=1.0)
        fractions[sub_centers] = index.hardest_negative(index.members()).effort.fraction
        assert index.layout.num_balls == 200 if sub_centers == 1 else 300 < index.layout.num_balls <= 800
    assert fractions[4] < fractions[1] / 5


def test_tight_classes_keep_one_ball() -> None:
    rows, labels = clustered(300, 8, 16, 0.05)
    assert ClassBallIndex.build(rows, labels).layout.num_balls == 300


def test_large_classes_are_searched_by_slices_of_distance_from_the_center() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(1000)
    centers = torch.tensor([[0.0, 0], [4, 0], [0, 4], [4, 4]])
    index = ClassBallIndex.build(
        centers[labels] + torch.randn(4000, 2, generator=random), labels, sub_centers=1, fall_back_above=1.0
    )
    assert index.hardest_negative(index.members()).effort.fraction < 0.5
    assert index.hardest_positive(index.members()).effort.fraction < 0.25 / 2


def test_progress_is_told_and_nothing_is_a_query() -> None:
    rows, labels = clustered(40, 20, 4, 0.1)
    index, told = ClassBallIndex.build(rows, labels), []
    index.k_hardest_negatives(index.members(), 2, done=told.append)
    assert sum(told) == 800
    none = index.hardest_negative(Queries(rows[:0]))
    assert none.rows.shape == (0, 1)
    assert none.effort.fraction == 0


@pytest.mark.parametrize(
    ("embeddings", "labels", "settings", "error", "says"),
    [
        (torch.ones(0, 2), [], {}, InputError, "at least one row"),
        (torch.tensor([[1.0], [np.nan]]), [0, 1], {}, InputError, "row 1 is not finite"),
        (torch.tensor([[1.0], [0.0]]), [0, 1], {"metric": "cosine"}, InputError, "row 1 has length 0"),
        (torch.ones(2, 1), [0], {}, InputError, "one for each embedding"),
        (torch.ones(2, 1), [0, 1], {"metric": "dot"}, ValueError, "metric='dot' is not known"),
        (torch.ones(2, 1), [0, 1], {"sub_centers": 3}, ValueError, "sub_centers=3 is wrong"),
    ],
)
def test_wrong_input_is_one_line(embeddings, labels, settings, error, says) -> None:
    with pytest.raises(error, match=says):
        ClassBallIndex.build(embeddings, torch.tensor(labels, dtype=torch.int64), **settings)


def test_wrong_queries_are_one_line() -> None:
    index = ClassBallIndex.build(torch.eye(3), torch.arange(3))
    with pytest.raises(InputError, match="queries have 2 columns, the index 3"):
        index.hardest_negative(Queries(torch.ones(1, 2)))
    with pytest.raises(InputError, match="too far away"):
        index.hardest_negative(Queries(torch.full((1, 3), 1e25)))
    with pytest.raises(InputError, match="one number for each query"):
        index.semi_hard_negative(index.members(), torch.ones(2))
    with pytest.raises(InputError, match="k=0 is wrong"):
        index.k_hardest_negatives(index.members(), 0)


def test_precision_that_others_lowered_does_not_reach_the_answers() -> None:
    rows, labels = clustered(100, 8, 16, 0.3)
    expected = ClassBallIndex.build(rows, labels)
    wanted = expected.k_hardest_negatives(expected.members(), 5)
    torch.set_float32_matmul_precision("medium")
    try:
        index = ClassBallIndex.build(rows, labels)
        assert index.layout.moved.dtype == torch.float64
        assert torch.equal(index.k_hardest_negatives(index.members(), 5).rows, wanted.rows)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(expected.k_hardest_negatives(expected.members(), 5).rows, wanted.rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_the_same() -> None:
    rows, labels = clustered(100, 8, 16, 0.3)
    expected = ClassBallIndex.build(rows, labels)
    index = ClassBallIndex.build(rows.cuda(), labels.cuda())
    for k in (1, 5):
        wanted = expected.k_hardest_negatives(expected.members(), k)
        found = index.k_hardest_negatives(index.members(), k)
        assert torch.equal(found.rows.cpu(), wanted.rows)
        assert torch.equal(found.distances.cpu(), wanted.distances)
    assert torch.equal(
        index.hardest_positive(index.members()).rows.cpu(), expected.hardest_positive(expected.members()).rows
    )
