"""Equal means every bit and every record, clocks apart; and what is not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distmetric.benchmarks.soak.equality import compare_histories, different_parts, state_of
from distmetric.training.checkpoint import CheckpointStore

HISTORY = {
    "train/loss": [(1, 0.5), (2, 0.25)],
    "time/data": [(1, 0.1), (2, 0.1)],
    "eval/map_at_r": [(2, 0.7)],
}


def save(folder: Path, weight: torch.Tensor, momentum: float = 0.1) -> str:
    state = {"optimizer": {"state": [{"momentum": torch.tensor(momentum)}]}, "sampler": {"round": 3}}
    return CheckpointStore(str(folder)).save(1, {"model": {"w": weight}, "training": state}, {}).location


def test_one_bit_is_a_difference(tmp_path: Path) -> None:
    weight = torch.tensor([1.0, 2.0])
    whole, same = (state_of(save(tmp_path / name, weight)) for name in ("whole", "same"))
    assert len(whole) == 3
    assert different_parts(same, whole) == []
    nearly = state_of(save(tmp_path / "nearly", torch.nextafter(weight, torch.tensor(9.0)), momentum=0.2))
    assert different_parts(nearly, whole) == ["model.w", "training.optimizer.state.0.momentum"]
    double = state_of(save(tmp_path / "double", weight.double()))
    assert different_parts(double, whole) == ["model.w"]
    assert different_parts({}, {"model.w": weight}) == ["model.w"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (0, 0, 0)),
        ({"time/data": [(1, 9.0)]}, (0, 0, 0)),
        ({"index/dropped_pushes": [(1, 3.0)]}, (0, 0, 0)),
        ({"train/loss": [(1, 0.5)]}, (1, 0, 0)),
        ({"train/loss": [(1, 0.5), (2, 0.2500001)]}, (0, 1, 0)),
        ({"train/loss": [(1, 0.5), (2, 0.25), (3, 0.1)]}, (0, 0, 0)),  # beyond what is compared
        ({"train/new": [(1, 0.5)]}, (0, 0, 1)),
        ({"eval/map_at_r": []}, (0, 0, 0)),  # the evaluation where it stopped
    ],
)
def test_every_record_that_is_not_a_clock_counts(change, expected: tuple[int, int, int]) -> None:
    found = compare_histories({**HISTORY, **change}, HISTORY, steps=2)
    assert (found.lost, found.different, found.added) == expected
    assert found.is_none == (expected == (0, 0, 0))
    assert bool(found.example) != found.is_none


def test_an_evaluation_that_was_due_may_not_be_lost() -> None:
    found = compare_histories({**HISTORY, "eval/map_at_r": []}, HISTORY, steps=3)
    assert (found.lost, found.example) == (1, "eval/map_at_r at step 2: None beside 0.7")


def test_an_empty_history_equals_nothing() -> None:
    assert not compare_histories({}, {}, steps=2).is_none
