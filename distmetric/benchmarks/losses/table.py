"""What was measured of the losses, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.losses.cells import DIM, PEER, PER_CLASS, Side, columns
from distmetric.benchmarks.losses.measure import LossMeasurement, LossSpec
from distmetric.benchmarks.table import NONE, busy, document, duration, failures, header, table

_METHOD = (
    f"A step is mining, forward and backward from a leaf of N embeddings (D = {DIM}, {PER_CLASS} of length one per "
    "class, clustered). `time` is the median over the steps of a cell, each cell in a fresh process; `x` is the median "
    "of a step's time over that of one bare float32 matmul N x M x D right before it, where M is what every embedding "
    "is compared with: the batch, class vectors or a memory. `MiB` is the most memory of a step beyond what was held "
    "before it: resident memory, or on a GPU that of its tensors. PML is pytorch-metric-learning."
)
_RANKS_METHOD = (
    "One thread per process; N is the batch of all processes together, and both libraries give its exact gradient. "
    "`x` is the time over that of one process (with enough cores, 1 / processes would be perfect); `MiB` is what each "
    "process takes."
)
_DIFFERENT = 1e-3  # relative, of the values of the loss, above which they are not taken for the same

LossOutcome = Outcome[LossSpec, LossMeasurement]
Shape = tuple[int, int, str]
"""Processes, threads of each, device."""


class _Cells:
    """Outcomes by what was measured."""

    def __init__(self, outcomes: Sequence[LossOutcome]) -> None:
        self._by_key = {
            (*_shape(each.spec), each.spec.loss, each.spec.size, each.spec.side): each for each in outcomes
        }
        self._specs = [outcome.spec for outcome in outcomes]

    def get(self, shape: Shape, loss: str, size: int, side: Side) -> LossOutcome | None:
        """That of a cell; None where it has not been measured."""
        return self._by_key.get((*shape, loss, size, side))

    def rows(self, shape: Shape) -> list[tuple[str, int]]:
        """Losses in the order of their first cells, each with its sizes."""
        order = list(dict.fromkeys(spec.loss for spec in self._specs))
        found = {(spec.loss, spec.size) for spec in self._specs if _shape(spec) == shape}
        return sorted(found, key=lambda row: (order.index(row[0]), row[1]))


def markdown(machine: Mapping[str, Any], outcomes: Sequence[LossOutcome], peers: bool) -> str:
    """The tables, below a line that says what they were measured on.

    Args:
        machine: As `describe_machine` gives it.
        outcomes: Of all cells so far.
        peers: Whether pytorch-metric-learning was to be measured.
    """
    cells = _Cells(outcomes)
    parts = ["# Losses: time and memory", header(machine, [PEER] if peers else [])]
    shape: Shape = (1, machine["threads"], machine["device"])
    if rows := cells.rows(shape):
        titles = ["loss", "N", "M", "time", "x", "MiB"]
        titles += ["PML: time", "x", "MiB", "speed-up", "memory"] if peers else []
        parts += [_METHOD, table(titles, (_row(cells, shape, *row, peers) for row in rows))]
    for processes in sorted({outcome.spec.processes for outcome in outcomes} - {1}):
        several: Shape = (processes, 1, "cpu")
        titles = ["loss", "N", "1 process", f"{processes} processes", "x", "MiB"]
        titles += ["PML: 1 process", *titles[3:]] if peers else []
        lines = (_ranks_row(cells, several, *row, peers) for row in cells.rows(several))
        parts += [f"## {processes} processes", _RANKS_METHOD, table(titles, lines)]
    return document(parts, [*busy(machine, outcomes), *_notes(cells, outcomes)])


def metric_name(spec: LossSpec) -> str:
    """What the metrics of a cell begin with in a tracker, where its N is the step."""
    return f"{spec.loss}/{spec.side}_{spec.device}_{spec.processes}x{spec.threads}"


def label(spec: LossSpec) -> str:
    """A cell in words."""
    whose = "" if spec.side == "ours" else f" of {PEER}"
    many = f", {spec.processes} processes" if spec.processes > 1 else ""
    return f"{spec.loss}{whose}, N = {spec.size}{many}"


def _shape(spec: LossSpec) -> Shape:
    return spec.processes, spec.threads, spec.device


def _row(cells: _Cells, shape: Shape, loss: str, size: int, peers: bool) -> list[str]:
    ours, peer = cells.get(shape, loss, size, "ours"), cells.get(shape, loss, size, "peer")
    line = [loss, str(size), str(columns(loss, size)), *_shown(ours)]
    if peers:
        speed_up = _ratio(peer, ours, lambda each: each.seconds, "{:.1f}x")
        line += [*_shown(peer), speed_up, _ratio(peer, ours, lambda each: each.peak_bytes, "{:.1f}x")]
    return line


def _ranks_row(cells: _Cells, shape: Shape, loss: str, size: int, peers: bool) -> list[str]:
    line = [loss, str(size)]
    sides: list[Side] = ["ours", "peer"] if peers else ["ours"]
    for side in sides:
        alone, together = cells.get((1, *shape[1:]), loss, size, side), cells.get(shape, loss, size, side)
        ratio = _ratio(together, alone, lambda each: each.seconds, "{:.2f}")
        line += [_shown(alone)[0], _shown(together)[0], ratio, _shown(together)[2]]
    return line


def _shown(outcome: LossOutcome | None) -> tuple[str, str, str]:
    """Time, its ratio to the matmul, and memory."""
    if outcome is None or outcome.status != "ok":
        return NONE if outcome is None else outcome.status, NONE, NONE
    memory = ", ".join(f"{rank.peak_bytes / 2**20:.0f}" for rank in outcome.ranks)
    return duration(outcome.seconds), f"{outcome.times_matmul:.1f}", memory


def _ratio(
    of: LossOutcome | None, to: LossOutcome | None, quantity: Callable[[LossOutcome], float], form: str
) -> str:
    if of is None or to is None or of.status != "ok" or to.status != "ok" or quantity(to) == 0:
        return NONE
    return form.format(quantity(of) / quantity(to))


def _notes(cells: _Cells, outcomes: Sequence[LossOutcome]) -> list[str]:
    notes = failures(outcomes, label)
    for peer in outcomes:
        ours = cells.get(_shape(peer.spec), peer.spec.loss, peer.spec.size, "ours")
        if peer.spec.side == "ours" or ours is None or not (ours.status == peer.status == "ok"):
            continue
        value, other = ours.ranks[0].value, peer.ranks[0].value
        if not abs(value - other) <= _DIFFERENT * max(abs(value), abs(other)):
            notes.append(f"- {label(ours.spec)}: the losses differ, {value:.6g} and {other:.6g} ({PEER})")
    return notes
