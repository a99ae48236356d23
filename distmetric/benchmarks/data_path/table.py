"""What was measured of the data path, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.data_path.measure import DataMeasurement, DataSpec
from distmetric.benchmarks.data_path.sets import SETS
from distmetric.benchmarks.table import NONE, busy, document, failures, header, table

_METHOD = (
    "`plan`, `read`, `decode` and `augment` are what each of them keeps one core busy for, alone and per image: "
    "choosing a batch, reading and verifying encoded images in the mapped catalog (of images that are decoded once: "
    "gathering them), decoding and resizing, augmenting. `alone` is how many images per second that makes on all "
    "the cores of the cell, were they never idle. `loader` is how many come out of the loader and are augmented, in "
    "turns with the parts alone, each cell in a fresh process that keeps to its cores; `share` is the median of its "
    "ratio to `alone`. `CPU` is the time that all threads of the loader take over that of the parts: what threads, "
    "batches and Python add."
)
_TITLES = [
    *("images", "cores", "batch", "KiB", "plan", "read", "decode", "augment"),
    *("alone", "loader", "share", "CPU"),
]

DataOutcome = Outcome[DataSpec, DataMeasurement]


def markdown(machine: Mapping[str, Any], outcomes: Sequence[DataOutcome]) -> str:
    """The table, below a line that says what it was measured on.

    Args:
        machine: As `describe_machine` gives it.
        outcomes: Of all cells so far.
    """
    parts = ["# Data path: read, decode, augment", header(machine, ["pillow"]), _METHOD]
    notes = failures(outcomes, label)
    return document([*parts, table(_TITLES, map(_row, outcomes))], [*busy(machine, outcomes), *notes])


def label(spec: DataSpec) -> str:
    """A cell in words."""
    cores = "1 core" if spec.threads == 1 else f"{spec.threads} cores"
    return f"{spec.images}, batches of {spec.size}, {cores}"


def shown(outcome: DataOutcome) -> dict[str, float]:
    """What the table shows of a cell, by name; nothing where it was not measured."""
    if outcome.status != "ok":
        return {}
    found, size = outcome.ranks[0], outcome.spec.size
    parts = {
        "plan": found.plan_seconds,
        "read": found.read_seconds,
        "decode": found.decode_seconds,
        "augment": found.augment_seconds,
    }
    return {
        **{f"{name}_microseconds": seconds / size * 1e6 for name, seconds in parts.items()},
        "images_per_second_alone": size / median(found.matmul_seconds),
        "images_per_second": size / outcome.seconds,
        "share": 1 / outcome.times_matmul,
        "times_cpu": found.cpu_seconds / sum(parts.values()),
        "encoded_kib": found.encoded_bytes / 1024,
    }


def _row(outcome: DataOutcome) -> list[str]:
    spec, values = outcome.spec, shown(outcome)
    line = [f"{spec.images}: {SETS[spec.images].described}", str(spec.threads), str(spec.size)]
    if not values:
        return [*line, outcome.status, *[NONE] * (len(_TITLES) - 4)]
    return [
        *line,
        f"{values['encoded_kib']:.1f}",
        *(f"{values[f'{name}_microseconds']:.0f} us" for name in ("plan", "read", "decode", "augment")),
        f"{values['images_per_second_alone']:,.0f}",
        f"{values['images_per_second']:,.0f}",
        f"{values['share']:.2f}",
        f"{values['times_cpu']:.2f}",
    ]
