"""Squared distances as whole numbers: the same to the last bit however they are computed.

A distance in floating point depends on the order of its additions, and so on block sizes, threads and devices: too
little to matter for a mean, too much for "how many pairs are at most this far apart", which workers that share the
pairs must agree on. Here rows are rounded once to a grid so fine that nothing is lost that single precision had, and so
coarse that every product and every sum of a squared distance is a whole number below 2^53. Float64 computes these
exactly, in whatever order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmetric.evaluation.neighbors import sum_by_halves

_GRID_BITS = 25
_UNIT_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class GridPoints:
    """Rows on the grid; made by `on_grid`.

    Attributes:
        points: (N, D + 2) float64 whole numbers [x, 1, |x|^2].
        unit: distance between neighboring points of the grid, a power of two.
        are_unit_rows: whether all rows had length one (to 1e-3), so that no distance is above 2.
        farthest: a bound of all squared distances, in units squared.
    """

    points: Tensor
    unit: float
    are_unit_rows: bool
    farthest: int

    def distance(self, squared: int) -> float:
        """The distance that a whole squared distance stands for."""
        return float(np.sqrt(np.float64(squared))) * self.unit


def on_grid(*parts: Tensor) -> GridPoints:
    """Round rows to a grid.

    The grid is centered between the extremes of every coordinate; its unit is a power of two, 2^-25 to 2^-24 of the
    largest distance from that center. Rows of few bits, such as sign codes, are not changed at all; equal rows stay
    equal, and a distance changes by at most sqrt(D) units.

    Args:
        parts: (N_i, D) float32 or float64, finite; one after the other they are the N rows.

    Returns:
        The points, on the device of the rows.

    Cost: N x (D + 2) float64 values.
    """
    center, extent = _middle(parts)
    # Below 2^-900 squares would underflow.
    exponent = max(_exponent(extent), -900)
    largest = 0.0
    for part in _chunks(parts):
        moved = (part.double() - center) * 2.0**-exponent
        largest = max(largest, float(sum_by_halves(moved.square_()).max()))
    bits = _GRID_BITS - _exponent(largest**0.5)
    points = torch.ones(sum(map(len, parts)), len(center) + 2, dtype=torch.float64, device=center.device)
    start = 0
    for part in _chunks(parts):
        moved = ((part.double() - center) * 2.0**-exponent * 2.0**bits).round_()
        target = points[start : start + len(part)]
        target[:, :-2] = moved
        target[:, -1] = sum_by_halves(moved.square_())
        start += len(part)
    return GridPoints(points, 2.0 ** (exponent - bits), are_unit_rows(*parts), 4 * int(points[:, -1].max()))


def are_unit_rows(*parts: Tensor) -> bool:
    """Whether all rows (N_i, D) have length one, to 1e-3."""
    return all(
        bool(((sum_by_halves(part.double().square()).sqrt() - 1).abs() <= _UNIT_NORM_TOLERANCE).all())
        for part in _chunks(parts)
    )


def as_anchors(points: Tensor) -> Tensor:
    """(..., B, D + 2) rows whose products with points are squared distances: [-2 x, |x|^2, 1]."""
    anchors = points.clone()
    anchors[..., :-2] *= -2.0
    anchors[..., -2:] = points[..., -2:].flip(-1)
    return anchors


def _middle(parts: Sequence[Tensor]) -> tuple[Tensor, float]:
    lows, highs = zip(*(torch.aminmax(part, dim=0) for part in parts if len(part)), strict=True)
    low, high = torch.stack(lows).amin(dim=0).double(), torch.stack(highs).amax(dim=0).double()
    center = low / 2 + high / 2
    return center, float(torch.maximum(high - center, center - low).max())


def _chunks(parts: Sequence[Tensor]) -> list[Tensor]:
    return [chunk for part in parts if len(part) for chunk in torch.split(part, 8192)]


def _exponent(value: float) -> int:
    """The smallest e with value < 2^e; 0 for 0."""
    return int(np.frexp(value)[1])
