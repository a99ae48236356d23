"""A run's measurements by metric and step: what is finite of them, smoothed, and completed by evaluation records."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric name -> (step, value) pairs, with the names the tracker logs."""
Record = Mapping[str, Any]
"""What a run keeps of one evaluation: step, metrics, and as far as they were made intervals, calibration, histogram."""
Numbers = NDArray[np.float64]

LOW, HIGH = "_low", "_high"
"""Ends of the names under which the bounds of a metric's interval are logged."""


def series(history: History, metric: str) -> tuple[Numbers, Numbers]:
    """Steps and values of a metric in step order, without values that are not finite; empty where it is not logged."""
    pairs = sorted((step, value) for step, value in history.get(metric, ()) if math.isfinite(value))
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def moving_average(values: Numbers) -> Numbers:
    """Centered average over a twentieth of the run, of fewer values at the ends; (n,) as given."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def last_step(history: History) -> int:
    """The last step of which anything is logged; 0 without any."""
    return max((step for pairs in history.values() for step, _ in pairs), default=0)


def in_order(evaluations: Sequence[Record]) -> list[Record]:
    """Evaluation records by step."""
    return sorted(evaluations, key=lambda record: int(record["step"]))


def with_evaluations(history: History, evaluations: Sequence[Record]) -> dict[str, list[tuple[int, float]]]:
    """The history, with what only evaluation records know.

    Args:
        history: metric name -> (step, value) pairs.
        evaluations: records of evaluations, in any order.

    Returns:
        A copy in which `eval/NAME`, `eval/NAME_low` and `eval/NAME_high` are there for untracked runs too.
    """
    whole = {name: list(pairs) for name, pairs in history.items()}
    tracked = set(whole)
    for record in in_order(evaluations):
        values = dict(record["metrics"])
        for name, (low, high) in (record.get("intervals") or {}).items():
            values |= {f"{name}{LOW}": low, f"{name}{HIGH}": high}
        for name, value in values.items():
            if f"eval/{name}" not in tracked:
                whole.setdefault(f"eval/{name}", []).append((int(record["step"]), float(value)))
    return whole
