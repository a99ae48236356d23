"""What was measured of the index, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.index.measure import IndexMeasurement, IndexSpec
from distmetric.benchmarks.index.predict import predict
from distmetric.benchmarks.table import NONE, busy, document, duration, failures, header, summary, table
from distmetric.config.jobs import BenchmarkJob

_METHOD = (
    "`build` is what is done once; `time` is the median time of the work for all N rows, each cell in a fresh process; "
    "`x` is the median of that time over that of one bare float32 product N x N x D right before it. `MiB` is the most "
    "memory that building and the first run take beyond the rows: resident memory, or on a GPU that of torch's tensors "
    "or of all that is held afterwards, whichever is more. `predicted x` and `predicted MiB` are what the arithmetic "
    "of `index/scale.py` says of the cell, given the speed of the bare product and of copying memory. Recall is "
    "measured on 200 rows against brute force; `scanned` is the share of all N x N distances that were computed."
)
_TITLES = [
    *("method", "device", "threads", "N", "D", "C", "k", "build", "time", "x", "predicted x"),
    *("recall@10", "recall@k", "scanned", "MiB", "predicted MiB"),
]

IndexOutcome = Outcome[IndexSpec, IndexMeasurement]


def markdown(machine: Mapping[str, Any], outcomes: Sequence[IndexOutcome], job: BenchmarkJob) -> str:
    """The table, below a line that says what it was measured on.

    Args:
        machine: As `describe_machine` gives it.
        outcomes: Of all cells so far.
        job: What was asked for.
    """
    lines = [_row(outcome) for outcome in outcomes]
    if machine["device"] != "cuda":
        why = "device=cpu" if job.device == "cpu" else "no GPU"
        lines.append(["all", "cuda", NONE, *[NONE] * 5, f"not run: {why}", *[NONE] * (len(_TITLES) - 9)])
    parts = ["# Index: search, exact mining, snapshots", header(machine, ["faiss"]), _rows_used(job), _METHOD]
    return document([*parts, table(_TITLES, lines)], [*busy(machine, outcomes), *_notes(outcomes)])


def label(spec: IndexSpec) -> str:
    """A cell in words."""
    return f"{spec.method}, N = {spec.size}, {spec.device}"


def shown(outcome: IndexOutcome) -> dict[str, float]:
    """What the table shows of a cell, by name; nothing where it was not measured."""
    if outcome.status != "ok":
        return {}
    found, said = outcome.ranks[0], predict(outcome.spec, outcome.ranks[0])
    values = {"build_seconds": found.build_seconds, **found.recall}
    values |= {} if found.scanned is None else {"scanned": found.scanned}
    if said is not None:
        values |= {"predicted_times_matmul": said.times_matmul, "predicted_mib": said.num_bytes / 2**20}
    return summary(outcome) | values


def _rows_used(job: BenchmarkJob) -> str:
    if job.embeddings is not None:
        return f"Rows: {job.embeddings}."
    return (
        f"Rows: unit vectors, {job.per_class} around each center, {job.spread:g} from it per coordinate "
        f"(`per_class`, `spread`)."
    )


def _row(outcome: IndexOutcome) -> list[str]:
    spec = outcome.spec
    where = [spec.method, spec.device, str(spec.threads), str(spec.size), str(spec.dim)]
    if outcome.status != "ok":
        why = f"not run: {outcome.message}" if outcome.status == "not run" else outcome.status
        return [*where, NONE, str(spec.k), NONE, why, *[NONE] * (len(_TITLES) - 9)]
    found, values = outcome.ranks[0], shown(outcome)
    k = found.k
    return [
        *where,
        str(found.num_classes),
        str(k),
        duration(found.build_seconds),
        duration(outcome.seconds),
        f"{outcome.times_matmul:.2f}",
        _number(values.get("predicted_times_matmul"), "{:.2f}"),
        _number(values.get("recall_at_10") if k >= 10 else None, "{:.3f}"),
        _number(values.get(f"recall_at_{k}"), "{:.3f}"),
        _number(found.scanned, "{:.3f}"),
        f"{values['peak_mib']:.0f}",
        _number(values.get("predicted_mib"), "{:.0f}"),
    ]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _notes(outcomes: Sequence[IndexOutcome]) -> list[str]:
    notes = failures(outcomes, label)
    for each in outcomes:
        notes += [f"- {label(each.spec)}: {rank.backend}{_fell_back(rank)}" for rank in each.ranks]
    return notes


def _fell_back(rank: IndexMeasurement) -> str:
    return ", which gave pruning up and compared with all rows" if rank.fell_back else ""
