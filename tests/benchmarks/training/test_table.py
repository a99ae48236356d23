"""The tables of the trainings show what was measured, and no more."""

from __future__ import annotations

import pytest

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.training.measure import TrainingMeasurement, TrainingSpec
from distmetric.benchmarks.training.table import label, markdown, summary
from machines import MACHINE


def beside(*ranks: tuple[list[float], list[float]]) -> Outcome:
    measured = [
        TrainingMeasurement(
            *(ours, [], 0, 0),
            bare_seconds=bare,
            cpu_seconds=[2 * each for each in ours],
            bare_cpu_seconds=ours,
            loss_difference=1e-6,
        )
        for ours, bare in ranks
    ]
    return Outcome(TrainingSpec("beside", "conv", "none", 256, processes=len(ranks)), "ok", ranks=measured)


def row(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_throughput_is_the_median_of_neighboring_turns_of_the_slowest_process() -> None:
    outcome = beside(([0.10, 0.20, 0.10], [0.09, 0.19, 0.01]), ([0.05, 0.25, 0.05], [0.08, 0.20, 0.05]))
    found = summary(outcome)
    assert found["throughput"] == pytest.approx(0.8)  # of 0.9, 0.8 and 0.5
    assert found["cpu_throughput"] == pytest.approx(0.5)
    assert found["median_seconds"] == pytest.approx(0.10)
    assert found["bare_median_seconds"] == pytest.approx(0.09)
    cells = row(markdown(MACHINE, [outcome]), "conv")
    assert cells == ["conv", "256", "none", "2", "100 ms", "90 ms", "0.800", "0.500", "1e-06"]


def test_what_is_told_is_a_share_of_the_step() -> None:
    tracking = Outcome(
        TrainingSpec("tracking", "conv", "none", 256),
        "ok",
        ranks=[
            TrainingMeasurement(*([0.1], [], 0, 0), parts={"noted": 1e-3, "written": 5e-4, "delivered": 2e-3})
        ],
    )
    index = Outcome(
        TrainingSpec("index", "conv", "none", 256),
        "ok",
        ranks=[TrainingMeasurement([0.2], [], 0, 0, parts={"index": 1e-3, "forward": 0.1})],
    )
    text = markdown(MACHINE, [tracking, index])
    assert row(text, "tracking, conv")[1:] == ["100 ms", "1.00%", "0.50%", "2.00%", "–"]
    assert row(text, "index, conv, 2 workers")[1:] == ["200 ms", "–", "–", "–", "0.50%"]


def test_a_start_is_listed_by_its_parts() -> None:
    outcome = Outcome(
        TrainingSpec("startup", "conv", "none", 256),
        "ok",
        ranks=[
            TrainingMeasurement(
                *([10.0, 12.0, 14.0], [], 0, 0),
                cpu_seconds=[20.0, 22.0, 24.0],
                parts={"ray": 4.0, "workers": 8.0},
            )
        ],
    )
    text = markdown(MACHINE, [outcome])
    assert row(text, "Ray started") == ["Ray started", "4 s"]
    assert row(text, "all, median of 3") == ["all, median of 3", "12 s"]
    assert row(text, "CPU time of all processes until then")[1] == "22 s"
    assert summary(outcome)["workers_seconds"] == 8.0


@pytest.mark.parametrize("what", ["beside", "tracking", "index", "startup"])
def test_what_failed_is_named_and_has_no_numbers(what) -> None:
    outcome = Outcome(TrainingSpec(what, "conv", "none", 256), "failed", "out of luck")
    text = markdown(MACHINE, [outcome])
    assert f"- {label(outcome.spec)} failed: out of luck" in text
    assert summary(outcome) == {}
