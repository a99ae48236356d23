"""Rows in the order of exact pruned search: by class, by ball, by distance from the ball's center."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.evaluation.gallery import FOLD
from distmetric.functional.distances import block_bytes
from distmetric.functional.segments import segment_counts, segment_extreme, segment_sum
from distmetric.index.class_balls import MARGIN, SPHERE
from distmetric.index.class_statistics import distances_to_own

LARGE = 1e37
"""In place of infinity where something infinite must stay out."""
_TINY = 1e-30
"""Allowance for what single precision rounds to zero, in squares of coordinates near 1."""


@dataclass(frozen=True, eq=False)
class Balls:
    """Disjoint sets of rows with their centers and radii; those of a class are neighbors.

    Attributes:
        classes: (B,) int64 place of each ball's class, ascending.
        centers: (B, D) float64; means, or unit mean directions on the sphere.
        mean_offset: (B,) float64 a and
        mean_slope: (B,) float64 b of: mean squared distance of x to the members = a + b |x - center|^2.
        ball: (N,) int64 ball of each row.
        rho: (N,) float64 distance of each row from its center.
    """

    classes: Tensor
    centers: Tensor
    mean_offset: Tensor
    mean_slope: Tensor
    ball: Tensor
    rho: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def counts(self) -> Tensor:
        """(B,) int64 members."""
        return segment_counts(self.ball, len(self))

    @property
    def radius(self) -> Tensor:
        """(B,) float64 largest rho."""
        return segment_extreme(self.rho, self.ball, len(self), largest=True)


def measure_balls(rows: Tensor, ball: Tensor, classes: Tensor, spherical: bool) -> Balls:
    """Center and measure given sets of rows.

    Args:
        rows: (N, D); of length one if spherical.
        ball: (N,) int64 set of each row; none of the B sets is empty.
        classes: (B,) int64 class of each set.
        spherical: Whether distances are chords of the unit sphere.

    Returns:
        The balls. On the sphere the mean similarity is x . mean exactly, whence a = 2 - 2 |mean| and b = |mean|.

    Cost: O(N D), in float64.
    """
    size = len(classes)
    means = torch.zeros(size, rows.shape[1], dtype=torch.float64, device=rows.device)
    step = rows_per_block(rows)
    for start in range(0, len(rows), step):
        means.index_add_(0, ball[start : start + step], rows[start : start + step].double())
    means /= segment_counts(ball, size)[:, None]
    if not spherical:
        rho = distances_to_own(rows, means, ball)
        offset = segment_sum(rho.square(), ball, size) / segment_counts(ball, size)
        return Balls(classes, means, offset, torch.ones_like(offset), ball, rho)
    lengths = means.norm(dim=1)
    # Members that cancel have no direction; then any point of the sphere is a valid center.
    some = rows[_first_rows(ball, size)].double()
    some /= some.norm(dim=1, keepdim=True)
    centers = torch.where(lengths[:, None] > 1e-6, means / lengths.clamp_min(1e-30)[:, None], some)
    slope = torch.where(lengths > 1e-6, lengths, 0.0)
    return Balls(classes, centers, 2 - 2 * slope, slope, ball, distances_to_own(rows, centers, ball))


@dataclass(frozen=True, eq=False)
class BallLayout:
    """What the search reads; made by `lay_out`. Positions 0..N-1 are rows in the order of balls.

    Lengths are in units of `scale`; `moved` and `centers` are shifted by the mean of all rows.

    Attributes:
        rows: (N, D) embeddings by row.
        order: (N,) int64 row at each position.
        position: (N,) int64, its inverse.
        class_of_row: (N,) int64.
        class_of_position: (N,) int64.
        first_ball: (C + 1,) int64 first ball of each class.
        first_position: (B + 1,) int64 first member of each ball.
        first_tile: (B + 1,) int64 first tile of each ball.
        tile_members: (T, w) int64 positions of each tile, ascending by rho; N where there are no more.
        tile_sizes: (T,) int64.
        tile_rho: (T, 2) float64 smallest and largest rho, with an allowance for rounding.
        ball_class: (B,) int64.
        radius_max: (B,) float64; with an allowance for rounding upward.
        mean_offset: (P,), see `Balls`; these and what follows are padded to P, a multiple of `FOLD`.
        mean_slope: (P,).
        mean_slack: What that mean may be off by, where rows of length one are not quite.
        exact_centers: (B, D) float64, unshifted and unscaled.
        centers: (P, D) working precision.
        center_bias: (P,) squared norms, lowered by the allowance; inf for padding.
        test_weights: (3, P), see `CenterBounds`.
        largest: Largest of all squared norms.
        moved: (N + 1, D) working precision; the last row is padding.
        norms: (N + 1,) float64 squares; inf for the padding.
        bias: (N + 1,) working precision, those lowered by the allowance.
        shift: (D,) float64.
        scale: A power of two.
        allowance: c of |score - exact| <= 2 c (|x|^2 + |y|^2) for squared distances by matrix multiplication.
        curvature: 1 / (4 R^2) in these units; 0 in flat space.
    """

    rows: Tensor
    order: Tensor
    position: Tensor
    class_of_row: Tensor
    class_of_position: Tensor
    first_ball: Tensor
    first_position: Tensor
    first_tile: Tensor
    tile_members: Tensor
    tile_sizes: Tensor
    tile_rho: Tensor
    ball_class: Tensor
    radius_max: Tensor
    mean_offset: Tensor
    mean_slope: Tensor
    mean_slack: float
    exact_centers: Tensor
    centers: Tensor
    center_bias: Tensor
    test_weights: Tensor
    largest: float
    moved: Tensor
    norms: Tensor
    bias: Tensor
    shift: Tensor
    scale: float
    allowance: float
    curvature: float

    @property
    def num_balls(self) -> int:
        """B."""
        return len(self.ball_class)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.first_ball) - 1

    def to_units(self, points: Tensor) -> Tensor:
        """(Q, D) points shifted and scaled, in working precision."""
        return ((points.double() - self.shift) / self.scale).to(self.moved.dtype)

    def slack(self, first: Tensor, second: Tensor | float) -> Tensor:
        """How much a lower bound by matrix multiplication may be too low, from squared norms; float64."""
        return 4 * self.allowance * (first + second) + _TINY


def lay_out(rows: Tensor, class_of_row: Tensor, balls: Balls, spherical: bool) -> BallLayout:
    """Sort rows by ball and distance from its center, cut them into tiles, and make a copy to multiply with.

    Args:
        rows: (N, D) float32 or float64, N at least 1.
        class_of_row: (N,) int64, 0 <= class < C.
        balls: Of all rows.
        spherical: Whether distances are chords of the unit sphere.

    Cost: O(N D + N log N); memory: two copies of the rows, in single precision if multiplication keeps that.
    """
    by_rho = torch.argsort(balls.rho, stable=True)
    order = by_rho[torch.argsort(balls.ball[by_rho], stable=True)]
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    first_position = starts(balls.counts)
    first_tile, members, tile_sizes = _tiles(balls.counts, first_position)
    dtype = working_dtype()
    shift, scale = _shift_and_scale(rows)
    # Rows of "length one" are not quite, and the sphere's bounds assume they are.
    uneven = 8 * torch.finfo(rows.dtype).eps / scale if spherical else 0.0
    rho = balls.rho[order] / scale
    moved = _moved(rows, order, shift, scale, dtype)
    norms = squared_norms(moved)
    norms[-1] = torch.inf
    centers = _padded((balls.centers - shift) / scale, dtype)
    center_norms = squared_norms(centers)
    last = first_position[1:] - 1
    radius_max = _inflated(rho[last], uneven)
    curvature = SPHERE * scale**2 if spherical else 0.0
    allowance = (rows.shape[1] + 32) * torch.finfo(dtype).eps
    return BallLayout(
        rows=rows,
        order=order,
        position=position,
        class_of_row=class_of_row,
        class_of_position=class_of_row[order],
        first_ball=starts(segment_counts(balls.classes, int(balls.classes[-1]) + 1)),
        first_position=first_position,
        first_tile=first_tile,
        tile_members=members,
        tile_sizes=tile_sizes,
        tile_rho=torch.stack(
            [
                _deflated(rho[members[:, 0]], uneven),
                _inflated(rho[members[:, 0] + tile_sizes - 1], uneven),
            ],
            dim=1,
        ),
        ball_class=balls.classes,
        radius_max=radius_max,
        mean_offset=_padded(balls.mean_offset / scale**2, dtype),
        mean_slope=_padded(balls.mean_slope, dtype),
        mean_slack=2 * uneven / scale,
        exact_centers=balls.centers,
        centers=centers,
        center_bias=_padded(center_norms[: len(balls)] * (1 - 2 * allowance), dtype, torch.inf),
        test_weights=_padded(_test_weights(radius_max, curvature), dtype).T.contiguous(),
        largest=max(float(center_norms.max()), float(norms[:-1].max())) + float(radius_max.max()) ** 2,
        moved=moved,
        norms=norms,
        bias=(norms * (1 - 2 * allowance)).to(dtype),
        shift=shift,
        scale=scale,
        allowance=allowance,
        curvature=curvature,
    )


def starts(counts: Tensor) -> Tensor:
    """(n + 1,) where each of n runs of given lengths begins, and where the last one ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _tiles(counts: Tensor, first_position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut balls into tiles: where each ball's begin, (T, w) positions of the members, N where a tile is not full, and
    how many members each has.
    """
    device, width = counts.device, tile_width(counts)
    first_tile = starts(-(-counts // width))
    tile_ball = torch.repeat_interleave(torch.arange(len(counts), device=device), first_tile.diff())
    number = torch.arange(len(tile_ball), device=device) - first_tile[tile_ball]
    sizes = (counts[tile_ball] - number * width).clamp_max(width)
    across = torch.arange(width, device=device)
    members = (first_position[tile_ball] + number * width)[:, None] + across
    return first_tile, torch.where(across < sizes[:, None], members, int(first_position[-1])), sizes


def _moved(rows: Tensor, order: Tensor, shift: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """(N + 1, D) rows in another order, shifted and scaled, block by block, and a row of zeros."""
    moved = torch.zeros(len(rows) + 1, rows.shape[1], dtype=dtype, device=rows.device)
    step = rows_per_block(rows)
    for start in range(0, len(rows), step):
        block = order[start : start + step]
        moved[start : start + len(block)] = ((rows[block].double() - shift) / scale).to(dtype)
    return moved


def tile_width(counts: Tensor) -> int:
    """Members that are compared at once: a power of two from 4 to 32, so that typical balls fill one tile."""
    typical = int(counts.median())
    return min(32, max(4, 1 << max(0, typical - 1).bit_length()))


def working_dtype() -> torch.dtype:
    """float32 where matrix multiplications keep its precision, float64 where someone allowed them less."""
    try:
        full = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch refuses to say when the precision was set by its newer per-backend switches
        full = False
    return torch.float32 if full else torch.float64


def squared_norms(rows: Tensor) -> Tensor:
    """(N,) float64 squared norms, in blocks."""
    step = rows_per_block(rows)
    parts = [rows[start : start + step].double().square().sum(dim=1) for start in range(0, len(rows), step)]
    return torch.cat(parts) if parts else rows.new_zeros(0, dtype=torch.float64)


def rows_per_block(rows: Tensor) -> int:
    """How many rows fill a block in float64."""
    return max(1, block_bytes(rows.device) // (16 * rows.shape[1]))


def _shift_and_scale(rows: Tensor) -> tuple[Tensor, float]:
    """The mean of all rows, and a power of two that brings the largest shifted coordinate near 1."""
    shift = rows.mean(dim=0, dtype=torch.float64)
    low, high = torch.aminmax(rows, dim=0)
    extent = float(torch.maximum(high - shift, shift - low).max())
    # In smaller units the rounding of the double-precision shift and centers would exceed the margin of the bounds.
    extent = max(extent, 2.0**-24 * float(torch.maximum(high.abs(), low.abs()).max()))
    return shift, 2.0 ** int(
        torch.tensor(extent, dtype=torch.float64).frexp().exponent
    ) if extent > 0 else 1.0


def _test_weights(radius: Tensor, curvature: float) -> Tensor:
    """(B, 3) factors of 1, t^2 and t' in `CenterBounds`; a ball of more than 90 degrees always passes."""
    square = radius.square()
    turned = (square * (1 - curvature * square)).clamp_min(0.0).sqrt_()
    weights = torch.stack([-square, 2 * curvature * square, -2 * turned], dim=1)
    weights[curvature * square >= 0.5] = torch.tensor(
        [-1e30, 0, 0], dtype=weights.dtype, device=weights.device
    )
    return weights


def _padded(values: Tensor, dtype: torch.dtype, fill: float = 0.0) -> Tensor:
    """(B, ..) values in another type, continued to a multiple of `FOLD`."""
    padded = torch.full(
        (-(-len(values) // FOLD) * FOLD, *values.shape[1:]), fill, dtype=dtype, device=values.device
    )
    padded[: len(values)] = values
    return padded


def _first_rows(ball: Tensor, size: int) -> Tensor:
    rows = torch.arange(len(ball), device=ball.device)
    first = torch.full((size,), len(ball), dtype=torch.int64, device=ball.device)
    return first.scatter_reduce_(0, ball, rows, "amin")


def _inflated(radius: Tensor, uneven: float) -> Tensor:
    """Radii that no member exceeds, whatever rounding did: larger by 1e-6, relatively and absolutely."""
    return radius * (1 + MARGIN) + (MARGIN + uneven)


def _deflated(radius: Tensor, uneven: float) -> Tensor:
    """Radii that no member falls below."""
    return (radius * (1 - MARGIN) - (MARGIN + uneven)).clamp_min(0.0)
