"""Time and memory of a loss, in this process."""

from __future__ import annotations

import sys

from distmetric.benchmarks import timing
from distmetric.benchmarks.losses.measure import LossSpec, measure_loss


def test_long_steps_are_timed_as_often_as_asked_and_short_ones_more_often(monkeypatch) -> None:
    found = measure_loss(LossSpec("contrastive", "ours", 64, steps=3))
    assert len(found.seconds) == len(found.matmul_seconds) > 3
    assert min([*found.seconds, *found.matmul_seconds]) > 0
    monkeypatch.setattr(timing, "_WANTED_S", 0.0)
    assert len(measure_loss(LossSpec("contrastive", "ours", 64, steps=3)).seconds) == 3


def test_a_cell_of_ours_needs_no_peer(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    assert measure_loss(LossSpec("batch_hard", "ours", 64, steps=1)).value > 0
