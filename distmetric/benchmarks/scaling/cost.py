"""The cost model: what a step and a rebuild of the index consist of, and what each part costs by the work in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from distmetric.index.scale import IndexSize, Speed, build_seconds


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What a training step works on.

    Args:
        processes: W.
        images: B, of each process.
        dim: D.
        parameters: P.
        image_flops: Operations of an image's way through the trunk and back.
    """

    processes: int
    images: int
    dim: int
    parameters: int
    image_flops: float

    @property
    def rows(self) -> int:
        """N, of all processes together."""
        return self.processes * self.images

    @property
    def _sent(self) -> float:
        """Of everything, the share that has to come from other processes."""
        return (self.processes - 1) / self.processes


WORK: dict[str, Callable[[StepSize], float]] = {
    "trunk": lambda size: size.images * size.image_flops,
    "pair": lambda size: 2.0 * size.rows**2 * size.dim / size.processes,
    "gather": lambda size: 8.0 * size.rows * size.dim * size._sent,
    "reduce": lambda size: 8.0 * size.parameters * size._sent,
    "update": lambda size: float(size.parameters),
}
"""Work of one process in each part of a step.

    trunk   B F                operations, forward and backward
    pair    2 N^2 D / W        operations of one product of its anchors with all columns
    gather  8 N D (W - 1) / W  bytes that it receives and, backward, sends: float32 both ways
    reduce  8 P (W - 1) / W    bytes of the gradients, to be summed and handed back
    update  P                  numbers
"""


@dataclass(frozen=True)
class Cost:
    """What a part costs: seconds = fixed + per_work * work; nothing where there is no work.

    Args:
        per_work: Seconds per unit of work.
        fixed: Seconds whatever the work.
    """

    per_work: float
    fixed: float = 0.0

    def seconds(self, work: float) -> float:
        """Of so much work."""
        return self.fixed + self.per_work * work if work > 0 else 0.0


def step_seconds(costs: Mapping[str, Cost], size: StepSize) -> dict[str, float]:
    """Seconds of each part of a step; the step takes their sum, as if nothing went on at the same time."""
    return {part: costs[part].seconds(work(size)) for part, work in WORK.items() if part in costs}


def fit_cost(points: Sequence[tuple[float, float]]) -> Cost:
    """The cost that fits measured points best, by relative error.

    Args:
        points: (work, seconds), both above 0.

    Formula: min sum ((fixed + per_work w - t) / t)^2 with both at least 0.

    Raises:
        ValueError: If there are no points.
    """
    work, seconds = np.array(points, dtype=np.float64).reshape(-1, 2).T
    columns = [work] if len(set(work)) < 2 else [work, np.ones_like(work)]
    return Cost(*fit_not_negative(columns, seconds))


def fit_speed(builds: Sequence[tuple[IndexSize, float]]) -> Speed:
    """The speeds of a machine by which rebuilds of the index took what they took, see `build_seconds`.

    Args:
        builds: (size, seconds) of each.

    Raises:
        ValueError: If there are no builds.
    """
    operations = np.array([build_seconds(size, _Only.OPERATIONS).total for size, _ in builds])
    copied = np.array([build_seconds(size, _Only.BYTES).total for size, _ in builds])
    found = fit_not_negative([operations, copied], np.array([seconds for _, seconds in builds]))
    flops, per_second = (np.inf if each == 0 else 1 / each for each in found)
    return Speed(flops=float(flops), bytes_per_second=float(per_second))


class _Only:
    """Speeds that leave one of the two costs of a rebuild: its seconds are its operations, or its bytes."""

    OPERATIONS = Speed(flops=1.0, bytes_per_second=np.inf)
    BYTES = Speed(flops=np.inf, bytes_per_second=1.0)


def fit_not_negative(columns: Sequence[NDArray[np.float64]], values: NDArray[np.float64]) -> list[float]:
    """Factors of at least 0 for each column by which their sum comes nearest to the values, by relative error.

    Args:
        columns: A few, (n,) each.
        values: (n,), above 0.

    Raises:
        ValueError: If there are no values.

    Cost: all subsets of the columns are tried, the best of those without negative factors is exact.
    """
    if not len(values):
        raise ValueError("there is nothing to fit to")
    table = np.stack(columns, 1) / values[:, None]
    # Columns of like size, for the sake of the numbers.
    scale = np.abs(table).max(0)
    scale[scale == 0] = 1.0
    best, factors = np.inf, np.zeros(len(columns))
    for count in range(1, len(columns) + 1):
        for chosen in map(list, combinations(range(len(columns)), count)):
            found = np.linalg.lstsq(table[:, chosen] / scale[chosen], np.ones(len(values)), rcond=None)[0]
            error = float(np.square((table[:, chosen] / scale[chosen]) @ found - 1).sum())
            if (found >= 0).all() and error < best - 1e-15:
                best, factors = error, np.zeros(len(columns))
                factors[chosen] = found / scale[chosen]
    return [float(factor) for factor in factors]
