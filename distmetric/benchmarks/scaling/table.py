"""What was measured of the scaling, what was fitted to it, and what follows for GPUs, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.scaling.cost import Cost, StepSize, fit_cost, fit_speed, step_seconds
from distmetric.benchmarks.scaling.forecast import GPUS, IMAGES, arithmetic, forecast, forecast_index
from distmetric.benchmarks.scaling.measure import DIM, NEIGHBORS, PRODUCT, ScalingMeasurement, ScalingSpec
from distmetric.benchmarks.table import NONE, busy, document, duration, header, table
from distmetric.config.jobs.assumed_cluster import AssumedCluster
from distmetric.index.scale import IndexSize, Speed, build_seconds

_PARTS = ("trunk", "pair", "gather", "reduce", "update")
_UNITS = {
    "trunk": "10^9 operations, forward and backward",
    "pair": "10^9 operations of one product of anchors and columns",
    "gather": "10^9 bytes",
    "reduce": "10^9 bytes",
    "update": "10^9 weights",
}
_MEASURED = (
    "**Measured.** A step is forward, gather, supervised contrastive loss, backward with DDP and AdamW, of a small "
    "convolutional network on images of 28 x 28 in memory, D = 128, one thread per process (gloo); medians. `weak` is "
    "the efficiency at as many images per process, `strong` that at as many images in all, against one process: 1 is "
    "perfect. More processes than cores share them: their times on the wall are no scaling, and CPU time stands for "
    "them. `predicted` is what the cost model below says, which was fitted to single parts at other sizes, never to a "
    "whole step; `error` is against the measured time, by CPU time in the last column."
)
_COSTS = (
    "**Fitted.** seconds = fixed + per unit x work, by relative least squares, of each part alone (wall: of processes "
    "that have a core each). `products` is the time of the loss in that of the bare product beside it, both per unit."
)
_INDEX = (
    "The index is rebuilt from an embedding table (nearest classes of every class, four rows a class); fitted are the "
    "two speeds of `distmetric/index/scale.py`, to all but the largest, which is predicted."
)
_PREDICTED = (
    "**Predicted, and nothing of it measured.** The same model with assumed speeds instead of fitted ones (`cluster` "
    "in the settings), and {products:.1f} products for the pair loss, as measured here. Parts are added up as if "
    "nothing went on at the same time; DDP and the loader do hide some of it. Memory is of one GPU: weights and "
    "moments, activations, images, and what the loss holds."
)
_PREDICTED_INDEX = (
    "An epoch is as many steps as there are batches in the images. The index works beside the steps, in actors on "
    "hosts; `age` is how many steps go by during a rebuild. `GiB per shard` and `GiB for classes` are at its worst "
    "moment."
)

ScalingOutcome = Outcome[ScalingSpec, ScalingMeasurement]


@dataclass(frozen=True)
class Model:
    """The cost model of this machine.

    Args:
        costs: Of each part, by the clock on the wall.
        cpu_costs: By CPU time.
        products: Time of the pair loss in that of a bare product.
        speed: Of the index's rebuilds; None where they were not measured.
    """

    costs: dict[str, Cost]
    cpu_costs: dict[str, Cost]
    products: float
    speed: Speed | None


def fit_model(outcomes: Sequence[ScalingOutcome], cores: int) -> Model | None:
    """Fit the model to what was measured of single parts; None where nothing was.

    Args:
        outcomes: Of all cells so far.
        cores: Of the machine.
    """
    steps = _ok(outcomes, "step")
    if not steps:
        return None
    wall, cpu = dict[str, list[tuple[float, float]]](), dict[str, list[tuple[float, float]]]()
    for outcome in steps:
        for same in zip(*(rank.points for rank in outcome.ranks), strict=True):
            part, work = same[0][0], same[0][1]
            if outcome.spec.processes <= cores:
                wall.setdefault(part, []).append((work, max(point[2] for point in same)))
            cpu.setdefault(part, []).append((work, mean(point[3] for point in same)))
    costs = {part: fit_cost(points) for part, points in wall.items()}
    cpu_costs = {part: fit_cost(points) for part, points in cpu.items()}
    builds = [(_index_size(each), each.seconds) for each in _fitted_builds(outcomes)]
    # By CPU time and by what is not fixed: large batches are what the predictions are of.
    products = cpu_costs["pair"].per_work / cpu_costs[PRODUCT].per_work
    return Model(costs, cpu_costs, products, fit_speed(builds) if builds else None)


def conclusions(outcomes: Sequence[ScalingOutcome], cores: int, cluster: AssumedCluster) -> dict[str, Any]:
    """The model and its predictions, as plain containers; empty where nothing was measured."""
    model = fit_model(outcomes, cores)
    if model is None:
        return {}
    steps = [forecast(cluster, gpus, model.products) for gpus in GPUS]
    indexes = [forecast_index(cluster, images) for images in IMAGES]
    return {
        "fitted": asdict(model),
        "held_out": [
            {"processes": each.spec.processes, "size": each.spec.size, **held_out(each, model, cores)}
            for each in _ok(outcomes, "step")
        ],
        "predicted_steps": [
            {"gpus": step.size.processes, "seconds": step.seconds, "parts": step.parts, "memory": step.memory}
            for step in steps
        ],
        "predicted_index": [asdict(index) for index in indexes],
    }


def held_out(outcome: ScalingOutcome, model: Model, cores: int) -> dict[str, float]:
    """What the model says of a step that it was not fitted to, beside what it took."""
    size, found = step_size(outcome), dict[str, float]()
    if outcome.spec.processes <= cores:
        found["predicted_seconds"] = sum(step_seconds(model.costs, size).values())
        found["error"] = found["predicted_seconds"] / outcome.seconds - 1
    measured = _cpu(outcome)
    found["predicted_cpu_seconds"] = sum(step_seconds(model.cpu_costs, size).values())
    found["cpu_error"] = found["predicted_cpu_seconds"] / measured - 1
    return found


def step_size(outcome: ScalingOutcome) -> StepSize:
    """What a measured step worked on."""
    rank, spec = outcome.ranks[0], outcome.spec
    return StepSize(
        processes=spec.processes,
        images=spec.size,
        dim=DIM,
        parameters=rank.parameters,
        image_flops=rank.image_flops,
    )


def summary(outcome: ScalingOutcome) -> dict[str, float]:
    """What the tables show of a cell, by name; nothing where it was not measured."""
    if outcome.status != "ok":
        return {}
    return {
        "median_seconds": outcome.seconds,
        "median_cpu_seconds": _cpu(outcome),
        "peak_mib": outcome.peak_bytes / 2**20,
    }


def label(spec: ScalingSpec) -> str:
    """A cell in words."""
    if spec.kind == "build":
        return f"rebuild of the index, {spec.size} rows"
    return f"step, {spec.processes} processes of {spec.size} images"


def markdown(machine: Mapping[str, Any], outcomes: Sequence[ScalingOutcome], cluster: AssumedCluster) -> str:
    """All tables, below a line that says what they were measured on.

    Args:
        machine: As `describe_machine` gives it.
        outcomes: Of all cells so far.
        cluster: What is assumed of GPUs.
    """
    cores = machine["cores"]
    parts, model = ["# Scaling: measured, fitted, predicted", header(machine)], fit_model(outcomes, cores)
    if model is not None:
        parts += [_MEASURED, _measured(outcomes, model, cores), _COSTS, _fitted(model)]
        if model.speed is not None:
            parts += [_INDEX, _builds(outcomes, model.speed)]
        parts += [_PREDICTED.format(products=model.products), _predicted(cluster, model.products)]
        parts += [_PREDICTED_INDEX, _predicted_index(cluster, model.products)]
        worked = forecast(cluster, GPUS[-1], model.products)
        lines = "\n".join(arithmetic(worked, cluster, model.products))
        parts += [f"The arithmetic of {GPUS[-1]} GPUs:", f"```text\n{lines}\n```"]
    failed = [
        f"- {label(each.spec)} {each.status}: {each.message}" for each in outcomes if each.status != "ok"
    ]
    return document(parts, [*busy(machine, outcomes), *failed])


def _measured(outcomes: Sequence[ScalingOutcome], model: Model, cores: int) -> str:
    steps = _ok(outcomes, "step")
    by_size = {(each.spec.processes, each.spec.size): each for each in steps}
    titles = [*("processes", "images each", "N", "step", "CPU time", "weak", "strong", "predicted", "error")]
    titles += ["error by CPU time", "MiB"]
    lines = []
    for outcome in steps:
        spec, found = outcome.spec, held_out(outcome, model, cores)
        crowded = spec.processes > cores
        weak, strong = by_size.get((1, spec.size)), by_size.get((1, spec.size * spec.processes))
        is_one = spec.processes == 1 or crowded
        lines.append(
            [
                f"{spec.processes}{' (share the cores)' if crowded else ''}",
                str(spec.size),
                str(spec.size * spec.processes),
                duration(outcome.seconds),
                duration(_cpu(outcome)),
                NONE if is_one or weak is None else f"{weak.seconds / outcome.seconds:.2f}",
                NONE
                if is_one or strong is None
                else f"{strong.seconds / outcome.seconds / spec.processes:.2f}",
                duration(found["predicted_seconds"]) if "predicted_seconds" in found else NONE,
                f"{found['error']:+.0%}" if "error" in found else NONE,
                f"{found['cpu_error']:+.0%}",
                f"{outcome.peak_bytes / 2**20:.0f}",
            ]
        )
    return table(titles, lines)


def _fitted(model: Model) -> str:
    lines = []
    for part in _PARTS:
        if part in model.cpu_costs:
            wall, cpu = model.costs.get(part), model.cpu_costs[part]
            lines.append(
                [
                    part + (f" ({model.products:.1f} products)" if part == "pair" else ""),
                    _UNITS[part],
                    NONE if wall is None else duration(wall.per_work * 1e9),
                    NONE if wall is None else duration(wall.fixed),
                    duration(cpu.per_work * 1e9),
                    duration(cpu.fixed),
                ]
            )
    return table(["part", "unit", "per unit", "fixed", "per unit, CPU", "fixed, CPU"], lines)


def _builds(outcomes: Sequence[ScalingOutcome], speed: Speed) -> str:
    fitted = _fitted_builds(outcomes)
    lines = [
        [
            str(each.spec.size),
            duration(each.seconds),
            duration(predicted := build_seconds(_index_size(each), speed).total),
            f"{predicted / each.seconds - 1:+.0%}" + ("" if each in fitted else " (not fitted)"),
        ]
        for each in _ok(outcomes, "build")
    ]
    return table(["rows", "rebuild", "model", "error"], lines)


def _predicted(cluster: AssumedCluster, products: float) -> str:
    titles = ["GPUs", "N", *_PARTS, "latency", "step", "images/s", "GiB", "of which loss"]
    lines = []
    for gpus in GPUS:
        step = forecast(cluster, gpus, products)
        lines.append(
            [
                *(str(gpus), f"{step.size.rows:,}"),
                *(duration(step.parts[part]) for part in (*_PARTS, "latency")),
                duration(step.seconds),
                f"{step.size.rows / step.seconds:,.0f}",
                f"{sum(step.memory.values()) / 2**30:.1f}",
                f"{step.memory['loss'] / 2**30:.2f}",
            ]
        )
    return table(titles, lines)


def _predicted_index(cluster: AssumedCluster, products: float) -> str:
    titles = ["images", "shards", "GiB per shard", "GiB for classes", "rebuild"]
    titles += [each for gpus in GPUS for each in (f"epoch, {gpus} GPUs", "age")]
    steps, lines = [forecast(cluster, gpus, products) for gpus in GPUS], []
    for images in IMAGES:
        index = forecast_index(cluster, images)
        line = [f"{images:,}", str(index.size.shards), f"{index.shard_bytes / 2**30:.2g}"]
        line += [f"{index.coordinator_bytes / 2**30:.2g}", duration(index.seconds)]
        for step in steps:
            line += [duration(images / step.size.rows * step.seconds), f"{index.seconds / step.seconds:,.0f}"]
        lines.append(line)
    return table(titles, lines)


def _ok(outcomes: Sequence[ScalingOutcome], kind: str) -> list[ScalingOutcome]:
    return [each for each in outcomes if each.spec.kind == kind and each.status == "ok"]


def _fitted_builds(outcomes: Sequence[ScalingOutcome]) -> list[ScalingOutcome]:
    """All builds but the largest, which the fit has to predict; a single one is fitted."""
    builds = sorted(_ok(outcomes, "build"), key=lambda each: each.spec.size)
    return builds[:-1] or builds


def _index_size(outcome: ScalingOutcome) -> IndexSize:
    classes = outcome.ranks[0].classes
    return IndexSize(rows=outcome.spec.size, classes=classes, dim=DIM, neighbors=NEIGHBORS)


def _cpu(outcome: ScalingOutcome) -> float:
    return median(median(rank.cpu_seconds) for rank in outcome.ranks)
