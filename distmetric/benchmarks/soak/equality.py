"""Whether two runs are the same: bit for bit in their checkpoints, number for number in their histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distmetric.tracking.tracker import History
from distmetric.training.checkpoint import read_checkpoint

CLOCKS = (
    *("time/", "train/samples_per_second", "system/", "index/wait_seconds", "index/build_seconds"),
    *("index/pushed", "index/dropped_pushes", "index/restarts", "index/rebuilds", "index/failed_"),
    *("index/rejected_rows", "index/coverage", "index/rows_embedded"),
)
"""Beginnings of the names of metrics that a clock has measured, or that count what processes have done since they were
started: they differ between any two runs."""


@dataclass(frozen=True)
class HistoryDifference:
    """How a history differs from the one of the reference.

    Args:
        compared: Records of the reference.
        lost: Of these, not there.
        different: Of these, there with another value.
        added: Records that the reference does not have.
        example: One of those, in words.
    """

    compared: int
    lost: int
    different: int
    added: int
    example: str = ""

    @property
    def is_none(self) -> bool:
        """Whether they are equal."""
        return self.compared > 0 and not (self.lost or self.different or self.added)


def state_of(location: str) -> dict[str, Any]:
    """All that a checkpoint says of model, optimizer, loss, memory and sampler, by dotted name.

    Args:
        location: Folder of the checkpoint.
    """
    checkpoint, found = read_checkpoint(location), dict[str, Any]()
    for name in sorted(checkpoint.files):
        if name.endswith(".pt"):
            _flatten(name.removesuffix(".pt"), checkpoint.tensors(name.removesuffix(".pt")), found)
    return found


def different_parts(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """The names under which two states differ in a single bit, or that only one of them has."""
    return sorted(
        name
        for name in ours.keys() | reference.keys()
        if name not in ours or name not in reference or not _is_same(ours[name], reference[name])
    )


def compare_histories(ours: History, reference: History, steps: int) -> HistoryDifference:
    """Compare measurements, clocks left out.

    Args:
        ours: Of the run.
        reference: Of the one that was left alone.
        steps: How far to compare. An evaluation after just as many is left out: whoever stops there leaves it to who
            resumes.
    """
    left, right = (_points(history, steps) for history in (ours, reference))
    lost = sorted(right.keys() - left.keys())
    added = sorted(left.keys() - right.keys())
    different = sorted(key for key in left.keys() & right.keys() if left[key] != right[key])
    example = next(iter([*different, *lost, *added]), None)
    words = (
        ""
        if example is None
        else f"{example[0]} at step {example[1]}: {left.get(example)} beside {right.get(example)}"
    )
    return HistoryDifference(len(right), len(lost), len(different), len(added), words)


def _points(history: History, steps: int) -> dict[tuple[str, int], float]:
    return {
        (name, step): value
        for name, points in history.items()
        for step, value in points
        if step <= steps
        and not name.startswith((*CLOCKS, "best/"))
        and (step < steps or not name.startswith("eval/"))
    }


def _flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(f"{name}.{key}", part, into)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            _flatten(f"{name}.{place}", part, into)
    else:
        into[name] = value


def _is_same(ours: Any, reference: Any) -> bool:
    if isinstance(reference, torch.Tensor):
        return (
            isinstance(ours, torch.Tensor) and ours.dtype == reference.dtype and torch.equal(ours, reference)
        )
    return bool(ours == reference)
