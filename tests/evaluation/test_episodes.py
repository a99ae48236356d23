"""Episodes: what is drawn, the answers against plain loops, blocks, groups, mistakes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import EpisodeMetrics, evaluate_episodes
from distmetric.evaluation.episodes import _drawn_rows, _pool, _without_replacement
from distmetric.functional.counter_random import uniform
from pair_oracle import coordinates, distance


def characters(noise: float = 0.8, per_class: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """40 classes, in groups of 4 to 16."""
    generator = torch.Generator().manual_seed(6)
    rows = torch.randn(40, 8, generator=generator).repeat_interleave(per_class, dim=0)
    rows = rows + noise * torch.randn(len(rows), 8, generator=generator)
    groups = torch.arange(4).repeat_interleave(torch.tensor([4, 8, 12, 16]))
    order = torch.randperm(len(rows), generator=generator)
    labels = torch.arange(40).repeat_interleave(per_class)[order] * 3 - 50
    return rows[order], labels, groups.repeat_interleave(per_class)[order]


def drawn(
    labels: Tensor, groups: Tensor | None, ways: int, count: int, episodes: int, seed: int = 0
) -> Tensor:
    return _drawn_rows(_pool(labels, groups, ways, count), torch.arange(episodes), ways, count, seed)


def oracle(rows: list[list[float]], episodes: list[list[list[int]]], shots: int, method: str) -> list[float]:
    """The accuracy of each episode of rows [way][example or query]; ties go to the way that was drawn first."""
    accuracies = []
    for ways in episodes:
        right = total = 0
        for way, members in enumerate(ways):
            for query in members[shots:]:
                to = []
                for other in ways:
                    examples = [rows[i] for i in other[:shots]]
                    if method == "prototype":
                        examples = [[math.fsum(column) / shots for column in zip(*examples, strict=True)]]
                    to.append(min(distance(rows[query], example) for example in examples))
                right += to.index(min(to)) == way
                total += 1
        accuracies.append(right / total)
    return accuracies


def assert_as_defined(found: EpisodeMetrics, accuracies: list[float]) -> None:
    mean, std = np.mean(accuracies), np.std(accuracies, ddof=1)
    half = 1.96 * std / math.sqrt(len(accuracies))
    assert found.accuracy == pytest.approx(mean, abs=1e-12)
    assert found.std == pytest.approx(std, abs=1e-9)
    assert found.interval == pytest.approx((max(mean - half, 0.0), min(mean + half, 1.0)), abs=1e-9)


@pytest.mark.parametrize("method", ["nearest", "prototype"])
@pytest.mark.parametrize(("shots", "queries"), [(1, 1), (1, 3), (3, 2)])
def test_answers_equal_plain_loops(method, shots, queries):
    rows, labels, groups = characters()
    found = evaluate_episodes(
        rows, labels, ways=5, shots=shots, queries=queries, episodes=60, groups=groups, method=method, seed=9
    )
    episodes = drawn(labels, groups, 5, shots + queries, 60, seed=9).tolist()
    assert_as_defined(found, oracle(rows.tolist(), episodes, shots, method))
    assert 0.4 < found.accuracy < 0.99


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(coordinates, min_size=2, max_size=2), min_size=12, max_size=12),
    method=st.sampled_from(["nearest", "prototype"]),
    shots=st.sampled_from([1, 2]),  # halves of quarters are exact
    block_bytes=st.sampled_from([1, 2**27]),
)
def test_answers_equal_plain_loops_with_many_ties(rows, method, shots, block_bytes):
    labels = torch.arange(12) % 4
    found = evaluate_episodes(
        np.array(rows), labels, ways=3, shots=shots, episodes=15, method=method, block_bytes=block_bytes
    )
    assert_as_defined(found, oracle(rows, drawn(labels, None, 3, shots + 1, 15).tolist(), shots, method))


def test_an_episode_has_different_classes_of_one_group_and_different_rows_of_each():
    _, labels, groups = characters()
    rows = drawn(labels, groups, 8, 4, 300)
    assert rows.shape == (300, 8, 4)
    classes = labels[rows]
    assert bool((classes == classes[:, :, :1]).all())
    assert all(len(set(episode)) == 8 for episode in classes[:, :, 0].tolist())
    assert all(len(set(way)) == 4 for way in rows.flatten(0, 1).tolist())
    of = groups[rows].flatten(1)
    assert bool((of == of[:, :1]).all())
    # The group of 4 classes is too small; the others have equal chances, whatever their sizes.
    assert torch.bincount(of[:, 0]).tolist() == pytest.approx([0, 100, 100, 100], abs=30)


def test_classes_and_rows_have_equal_chances_in_every_place():
    _, labels, _ = characters()
    rows = drawn(labels, None, 10, 3, 2000)
    assert torch.bincount(rows.flatten(), minlength=240).tolist() == pytest.approx([250] * 240, abs=80)
    first, last = labels[rows[:, 0, 0]], labels[rows[:, -1, -1]]
    for place in (first, last):
        assert torch.bincount((place + 50) // 3, minlength=40).tolist() == pytest.approx([50] * 40, abs=35)
    # An example is not drawn before, and so not smaller than, a query.
    assert (rows[:, :, 0] < rows[:, :, 2]).double().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("size", "count"), [(5, 2), (4, 4), (6, 3)])
def test_every_set_without_replacement_is_as_probable(size, count):
    ids = torch.arange(6000)
    sets = _without_replacement(uniform(0, 0, ids, count), torch.full((6000,), size)).sort(dim=1).values
    _, numbers = sets.unique(dim=0, return_counts=True)
    expected = 6000 / math.comb(size, count)
    assert len(numbers) == math.comb(size, count)
    assert numbers.tolist() == pytest.approx([expected] * len(numbers), abs=5 * math.sqrt(expected))


def test_blocks_and_threads_change_nothing_and_more_episodes_begin_with_the_same():
    rows, labels, groups = characters()
    arguments = {"ways": 5, "shots": 2, "queries": 2, "groups": groups, "seed": 3}
    whole = evaluate_episodes(rows, labels, episodes=50, **arguments)
    torch.set_num_threads(2)
    for block_bytes in (1, 30_000):
        assert evaluate_episodes(rows, labels, episodes=50, block_bytes=block_bytes, **arguments) == whole
    assert evaluate_episodes(rows, labels, episodes=50, **{**arguments, "seed": 4}) != whole
    assert torch.equal(drawn(labels, groups, 5, 4, 20), drawn(labels, groups, 5, 4, 50)[:20])


def test_a_collapsed_model_is_right_once_in_ways_times():
    _, labels, _ = characters()
    found = evaluate_episodes(torch.ones(240, 3), labels, ways=8, episodes=100)
    assert found.accuracy == 1 / 8


def test_clear_classes_are_always_recognized():
    rows, labels, _ = characters(noise=0.0)
    found = evaluate_episodes(rows, labels, ways=40, episodes=20)
    assert (found.accuracy, found.interval, found.std) == (1.0, (1.0, 1.0), 0.0)
    assert found.intervals == {"accuracy": (1.0, 1.0)}
    assert found.to_dict() == {
        "accuracy": 1.0,
        "accuracy_std": 0.0,
        "ways": 40.0,
        "shots": 1.0,
        "queries": 1.0,
        "num_episodes": 20.0,
    }


def test_a_single_episode_has_no_spread():
    rows, labels, _ = characters()
    found = evaluate_episodes(rows, labels, ways=5, episodes=1)
    assert found.interval == (found.accuracy, found.accuracy)


ROWS, CLASSES = np.eye(6), np.array([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 4}, "4 ways need as many classes of 2 rows or more, but there are at most 3"),
        ({"shots": 2}, "2 ways need as many classes of 3 rows or more, but there are at most 0"),
        ({"groups": CLASSES}, "2 rows or more in a group, but there are at most 1"),
        ({"groups": np.array([0, 1, 0, 0, 0, 0])}, "class 0 is in two groups"),
        ({"groups": CLASSES[1:]}, r"groups must have shape \(6,\)"),
        ({"ways": 1}, "ways must be at least 2, got 1"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"method": "median"}, "method must be one of nearest, prototype, got median"),
        ({"embeddings": ROWS * np.nan}, "row 0 is not finite"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        evaluate_episodes(**{"embeddings": ROWS, "labels": CLASSES, "ways": 2, **arguments})
    assert "\n" not in str(caught.value)
