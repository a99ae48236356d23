"""A block of queries as exact search reads it, and products that bound distances from below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmetric.evaluation.neighbors import sum_by_halves
from distmetric.index.ball_layout import BallLayout


@dataclass(frozen=True, eq=False)
class Batch:
    """A block of q queries.

    Args:
        points: (q, D) in the coordinates of `BallLayout.rows`.
        moved: (q, D) in its units.
        norms: (q,) float64 squared norms of those.
        classes: (q,) int64 place of the own class; -1 for none.
        positions: (q,) int64 own position, which is never found; -1 for none.
        beyond: (q,) float64 distance that what is found must exceed, on the sphere its square, unscaled; None for no
            such condition. Either is what is compared, so that a distance never exceeds itself.
    """

    points: Tensor
    moved: Tensor
    norms: Tensor
    classes: Tensor
    positions: Tensor
    beyond: Tensor | None = None

    def __len__(self) -> int:
        return len(self.points)

    def only(self, chosen: Tensor) -> Batch:
        """Some of the queries."""
        return Batch(
            self.points[chosen],
            self.moved[chosen],
            self.norms[chosen],
            self.classes[chosen],
            self.positions[chosen],
            None if self.beyond is None else self.beyond[chosen],
        )

    def bias(self, allowance: float) -> Tensor:
        """(q,) what a query adds to its scores."""
        return (self.norms * (1 - 2 * allowance)).to(self.moved.dtype)

    def slack(self, layout: BallLayout) -> Tensor:
        """(q,) float64 how much the lower bound of a squared distance may be too low, to whatever center or row."""
        return layout.slack(self.norms, layout.largest)


def scores_from_below(bias: Tensor, queries: Tensor, members: Tensor, query_bias: Tensor) -> Tensor:
    """Squared distances from below, by matrix multiplication: |x|^2 + |y|^2 - 2 x . y less an allowance in the norms.

    Args:
        bias: (w,) or (J, w) squared norms of the members, lowered; inf for padding.
        queries: (g, D) or (J, g, D).
        members: (w, D) or (J, w, D).
        query_bias: (g,) or (J, g), see `Batch.bias`.

    Returns:
        (g, w) or (J, g, w) in the type of the points; may be slightly negative.
    """
    # Under autocast the product would be rounded to half precision and the error bound would be wrong.
    with torch.autocast(queries.device.type, enabled=False):
        if queries.ndim == 2:
            scores = torch.addmm(bias, queries, members.T, alpha=-2)
        else:
            scores = torch.baddbmm(bias[:, None], queries, members.transpose(1, 2), alpha=-2)
    return scores.add_(query_bias[..., None])


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(P,) float64 squared distances of row pairs (P, D), the same to the last bit on any device and in any batch."""
    return sum_by_halves((first.double() - second.double()).square_())


def rounded_roots(squares: Tensor) -> Tensor:
    """Square roots of float64 values, correctly rounded, so that a distance compares with itself the same anywhere.

    torch's own on a CPU are off by one in the last place for one value in seventy.
    """
    if squares.device.type == "cpu":
        return torch.from_numpy(np.sqrt(squares.numpy()))
    return squares.sqrt()
