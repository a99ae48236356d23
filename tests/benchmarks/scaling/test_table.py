"""Measured, fitted and predicted stand apart, and steps that the fit has not seen are held against it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.scaling.cost import WORK, Cost, StepSize, step_seconds
from distmetric.benchmarks.scaling.measure import DIM, NEIGHBORS, PRODUCT, ScalingMeasurement, ScalingSpec
from distmetric.benchmarks.scaling.suite import ScalingSuite
from distmetric.benchmarks.scaling.table import conclusions, fit_model, held_out, markdown
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.config.jobs.assumed_cluster import AssumedCluster
from distmetric.errors import ConfigError
from distmetric.index.scale import IndexSize, Speed, build_seconds
from machines import MACHINE

COSTS = {
    "trunk": Cost(1e-10, 1e-3),
    "pair": Cost(6e-10, 2e-3),
    "gather": Cost(1e-9, 5e-4),
    "reduce": Cost(2e-9, 1e-4),
    "update": Cost(3e-9),
}
PRODUCT_COST = Cost(1.5e-10)
SPEED = Speed(flops=2e10, bytes_per_second=5e9)


def step(processes: int, images: int, factor: float = 1.0) -> Outcome:
    """A cell that took what the costs say, the whole step `factor` times as much; CPU time is half of it."""
    size = StepSize(processes=processes, images=images, dim=DIM, parameters=50_000, image_flops=1e7)
    points = []
    for part, cost in (*COSTS.items(), (PRODUCT, PRODUCT_COST)):
        for times in (1, 4):
            some = replace(size, images=images * times, parameters=50_000 * times)
            work = WORK["pair" if part == PRODUCT else part](some)
            if work:
                points.append((part, work, cost.seconds(work), cost.seconds(work) / 2))
    seconds = factor * sum(step_seconds(COSTS, size).values())
    rank = ScalingMeasurement(
        *([seconds], [1.0], 0, 1 << 20, [seconds / 2], points), image_flops=1e7, parameters=50_000
    )
    spec = ScalingSpec("step", images, processes=processes)
    return Outcome(spec, "ok", ranks=[rank] * processes)


def build(rows: int) -> Outcome:
    size = IndexSize(rows=rows, classes=rows // 4, dim=DIM, neighbors=NEIGHBORS)
    rank = ScalingMeasurement([build_seconds(size, SPEED).total], [], 0, 0, [1.0], classes=rows // 4)
    return Outcome(ScalingSpec("build", rows), "ok", ranks=[rank])


STEPS = [step(1, 128), step(1, 256), step(2, 128, factor=1.25), step(2, 256), step(4, 64)]
BUILDS = [build(4000), build(8000), build(16_000)]


def test_the_costs_behind_the_cells_are_found_and_whole_steps_held_against_them() -> None:
    model = fit_model([*STEPS, *BUILDS], cores=2)
    assert model is not None
    for part, cost in COSTS.items():
        assert model.costs[part].per_work == pytest.approx(cost.per_work, rel=1e-6)
        assert model.costs[part].fixed == pytest.approx(cost.fixed, rel=1e-4, abs=1e-9)
        assert model.cpu_costs[part].per_work == pytest.approx(cost.per_work / 2, rel=1e-6)
    assert model.products == pytest.approx(4)
    assert model.speed is not None
    assert model.speed.flops == pytest.approx(SPEED.flops, rel=1e-4)
    errors = [held_out(each, model, 2).get("error") for each in STEPS]
    assert errors[:4] == pytest.approx([0, 0, -0.2, 0], abs=1e-6)
    assert errors[4] is None  # four processes share two cores: only their CPU time says something
    assert held_out(STEPS[4], model, 2)["cpu_error"] == pytest.approx(0, abs=1e-6)


def test_the_tables_say_which_is_which() -> None:
    text = markdown(MACHINE, [*STEPS, *BUILDS], AssumedCluster())
    for title in ("**Measured.**", "**Fitted.**", "**Predicted, and nothing of it measured.**"):
        assert title in text
    (crowded,) = [line for line in text.splitlines() if line.startswith("| 4 (share the cores)")]
    assert crowded.split("|")[6:10] == [" – ", " – ", " – ", " – "]  # efficiencies, prediction and its error
    (slow,) = [line for line in text.splitlines() if line.startswith("| 2 | 128 |")]
    assert "-20%" in slow
    assert "+0% (not fitted)" in text or "-0% (not fitted)" in text
    for gpus in (8, 64, 512):
        assert f"| {gpus} | {gpus * 512:,} |" in text
    assert "| 1,000,000 | 1 |" in text
    assert "| 100,000,000 | 25 |" in text
    assert "pair     k 2 N^2 D / W = 4.0 x 2 x 262144^2 x 128 / 512 / 40e12 per s" in text


def test_the_raw_numbers_have_the_model_and_its_predictions() -> None:
    found = conclusions([*STEPS, *BUILDS], 2, AssumedCluster())
    assert found["fitted"]["products"] == pytest.approx(4)
    assert [each["gpus"] for each in found["predicted_steps"]] == [8, 64, 512]
    assert [each["size"]["rows"] for each in found["predicted_index"]] == [10**6, 10**8]
    assert len(found["held_out"]) == len(STEPS)
    assert conclusions([], 2, AssumedCluster()) == {}


def test_what_failed_is_named() -> None:
    failed = Outcome(ScalingSpec("step", 64, processes=2), "failed", "no port")
    assert "- step, 2 processes of 64 images failed: no port" in markdown(MACHINE, [failed], AssumedCluster())
    assert "**Fitted.**" in markdown(MACHINE, [failed, *STEPS], AssumedCluster())


def test_steps_come_by_processes_and_images_and_rebuilds_after_them() -> None:
    def plan(*overrides: str) -> list[tuple[str, int, int]]:
        job = load("benchmark", BenchmarkJob, ["suite=scaling", "tracking=none", *overrides])
        return [(spec.kind, spec.processes, spec.size) for spec in ScalingSuite().plan(job)]

    assert plan("sizes=[32,16]", "processes=[2,1]") == [
        *(("step", 1, 16), ("step", 1, 32), ("step", 2, 16), ("step", 2, 32)),
        *(("build", 1, 256), ("build", 1, 512), ("build", 1, 1024)),
    ]
    with pytest.raises(ConfigError, match="sizes=12 must be a multiple of 8"):
        plan("sizes=[12]")
