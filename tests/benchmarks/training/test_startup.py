"""What a run of jobs/train.py has told is read as a start, and as the phases of its steps."""

from __future__ import annotations

import pytest

from distmetric.benchmarks.training import startup
from distmetric.benchmarks.training.startup import measure_hard_neighbors, measure_startup
from distmetric.training.ledger import PHASES


def test_a_first_start_does_not_count(monkeypatch) -> None:
    asked, totals = [], iter([50.0, 10.0, 12.0])

    def trained(*settings: str):
        asked.append(settings)
        total = next(totals)
        history = {
            "time/startup_ray": [(1, 4.0)],
            "time/startup_workers": [(1, total - 4.0)],
            "time/startup_total": [(1, total)],
            "time/forward": [(1, 0.1)],
        }
        return history, [(1.0, 2.0), (9.0, 15.0), (11.0, 18.0), (60.0, 99.0)]

    monkeypatch.setattr(startup, "_trained", trained)
    starts = measure_startup(2)
    assert [start.seconds for start in starts] == [10.0, 12.0]
    assert [start.cpu for start in starts] == [15.0, 18.0]  # what was busy until the first step
    assert starts[0].parts == {"ray": 4.0, "workers": 6.0}
    assert asked == [("train.steps=1",)] * 3


def test_pushing_is_a_phase_of_the_steps_after_the_first_ones(monkeypatch) -> None:
    def trained(*settings: str):
        assert "sampler=hard_neighbors" in settings
        assert "sampler.classes_per_batch=8" in settings
        return {
            f"time/{phase}": [
                (step, 9.0 if step <= 20 else 0.01 * number) for step in range(1, startup._STEPS + 1)
            ]
            for number, phase in enumerate(PHASES)
        }, []

    monkeypatch.setattr(startup, "_trained", trained)
    steps, phases = measure_hard_neighbors(32)
    assert len(steps) == startup._STEPS - 20
    assert steps == pytest.approx([0.01 * sum(range(len(PHASES)))] * len(steps))
    assert phases["index"] == pytest.approx(0.01 * PHASES.index("index"))
