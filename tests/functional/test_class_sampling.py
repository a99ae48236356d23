"""Which classes are kept: those of the batch, near ones, and others by a hash that knows nothing of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.functional.class_sampling import kept_classes
from distmetric.functional.counter_random import uniform
from distmetric.losses.class_shards import class_shard

NUM_CLASSES = 60


def nearest_classes(k: int = 4) -> np.ndarray:
    draws = np.random.default_rng(0)
    table = np.stack(
        [draws.choice(np.delete(np.arange(NUM_CLASSES), c), k, replace=False) for c in range(NUM_CLASSES)]
    )
    table[::5, -1] = -1
    return table.astype(np.int32)


def plainly(labels, rate: float, seed: int, step: int, nearest=None) -> list[int]:
    kept = sorted(set(labels))
    if nearest is not None:
        present = list(kept)
        room = int(rate * NUM_CLASSES) - len(kept)
        for rank in range(nearest.shape[1]):
            for label in present:
                near = int(nearest[label, rank])
                if near >= 0 and near not in kept and room > 0:
                    kept.append(near)
                    room -= 1
    probability = (rate * NUM_CLASSES - len(kept)) / (NUM_CLASSES - len(kept))
    draws = uniform(seed, step, torch.arange(NUM_CLASSES), 1)[:, 0].tolist()
    return sorted(c for c in range(NUM_CLASSES) if c in kept or draws[c] < probability)


@pytest.mark.parametrize("hard", [False, True], ids=["random", "hard"])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8, 1.0])
def test_ranks_together_keep_what_a_plain_loop_does(rate: float, hard: bool) -> None:
    labels = torch.tensor([3, 17, 17, 59, 0, 3, 41])
    nearest = nearest_classes() if hard else None
    for step in range(10):
        expected = plainly(labels.tolist(), rate, 9, step, nearest)
        assert set(labels.tolist()) <= set(expected)
        for world_size in (1, 2, 7, 60):
            shares = [
                kept_classes(
                    labels, class_shard(NUM_CLASSES, rank, world_size), NUM_CLASSES, rate, 9, step, nearest
                )
                for rank in range(world_size)
            ]
            assert torch.cat(shares).tolist() == expected
        if rate == 1:
            assert len(expected) == NUM_CLASSES


def test_the_rate_is_kept_on_average_and_every_class_has_its_turn() -> None:
    labels = torch.tensor([1, 2, 3])
    drawn = [kept_classes(labels, range(1000), 1000, 0.1, 0, step) for step in range(200)]
    assert np.mean([len(kept) for kept in drawn]) == pytest.approx(100, abs=3)
    turns = torch.bincount(torch.cat(drawn), minlength=1000)
    assert turns[1:4].tolist() == [200] * 3
    assert turns.min() > 3
    other = kept_classes(labels, range(1000), 1000, 0.1, 1, 0)
    assert other.tolist() != drawn[0].tolist()


def test_without_a_batch_or_others_nothing_breaks() -> None:
    nobody = torch.empty(0, dtype=torch.int64)
    assert len(kept_classes(nobody, range(10), 10, 0.01, 0, 0)) <= 3
    assert kept_classes(torch.tensor([0]), range(1), 1, 0.5, 0, 0).tolist() == [0]
