"""The searched side of a nearest-neighbor search: fast scores that come with a proven error bound."""

from dataclasses import dataclass

import torch
from torch import Tensor

FOLD = 32
"""Columns of a score row that share one minimum; score rows are padded to a multiple of it."""


@dataclass(frozen=True)
class Gallery:
    """Gallery rows as the search reads them; made by `build_gallery`.

    Attributes:
        rows: (M, D) the searched embeddings, as they came.
        members: (M,) int64, index of each searched row in the gallery handed in, ascending.
        place: (N,) int64, the inverse: searched row of each gallery index, -1 when it need not be searched.
        centered: (P, D) rows minus `center`, divided by `scale`; rows M..P are padding.
        bounds: (P,) squared norms of `centered`, lowered by the rounding allowance; +inf for padding.
        squared_norms: (M,) float64, squared norms of `centered`.
        center: (D,) float64.
        scale: power of two that brings the largest centered coordinate near 1.
        allowance: c of the error bound |score - exact| <= 2 c (|query|^2 + |row|^2).
    """

    rows: Tensor
    members: Tensor
    place: Tensor
    centered: Tensor
    bounds: Tensor
    squared_norms: Tensor
    center: Tensor
    scale: float
    allowance: float

    def lower_bounds(self, queries: Tensor, buffer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squared distances to all rows from below, up to a constant for each query.

        score_ij = (1 - 2c) |g_j|^2 - 2 q_i . g_j <= |q_i - g_j|^2 - |q_i|^2 + 2 c |q_i|^2

        Args:
            queries: (B, D).
            buffer: (B or more, P) from `scores_buffer`, for the scores; None for fresh memory, whose first use
                costs half as much again as the product.

        Returns:
            (B, P) scores in the dtype of `centered`, and (B,) float64 squared norms |q_i|^2.

        Cost: one B x P x D matrix product, B * P values.
        """
        moved = _moved(queries, self.center, self.scale).to(self.centered.dtype)
        # Under autocast the product would be rounded to half precision and the error bound would be wrong.
        with torch.autocast(queries.device.type, enabled=False):
            out = None if buffer is None else buffer[: len(queries)]
            scores = torch.addmm(self.bounds, moved, self.centered.T, alpha=-2, out=out)
        return scores, moved.double().square().sum(dim=1)

    def gaps(self, squared_norms: Tensor, row_norms: Tensor) -> Tensor:
        """How far above its lower bound, up to the same constant, a squared distance may lie.

        Args:
            squared_norms: (...) float64, of the queries, from `lower_bounds`.
            row_norms: (...) float64, of the rows, from `squared_norms`.

        Returns:
            (...) float64.
        """
        tiny = torch.finfo(torch.float32).tiny * self.rows.shape[1]
        return 4 * self.allowance * (squared_norms + row_norms) + tiny

    def scores_buffer(self, num_queries: int) -> Tensor:
        """(num_queries, P) memory for scores, to be used again and again."""
        return self.centered.new_empty(num_queries, len(self.centered))


def build_gallery(rows: Tensor, count: int) -> Gallery:
    """Prepare embeddings to be searched for up to `count` neighbors of a query.

    Centering and scaling change no order, but make the rounding error small next to the distances even when
    all embeddings lie close together. Of equal rows only the first `count` + 1 are searched: no later one can
    be among the `count` nearest, and a collapsed model costs no more than a good one.

    Args:
        rows: (N, D) float32 or float64.
        count: the largest number of neighbors that will be asked for.

    Returns:
        The prepared gallery.

    Cost: one sort of N rows; one more copy of the embeddings.
    """
    return gallery_of(rows, _searched(rows, count), single=_single_precision_suffices(len(rows), count))


def gallery_of(rows: Tensor, members: Tensor, *, single: bool) -> Gallery:
    """Prepare some of the embeddings to be searched.

    Args:
        rows: (N, D) float32 or float64.
        members: (M,) int64, indices of those to be searched, ascending.
        single: whether scores of float32 rows may be float32; they are float64 otherwise.

    Returns:
        The prepared gallery.
    """
    place = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    place[members] = torch.arange(len(members), device=rows.device)
    if len(members) < len(rows):
        rows = rows[members]
    center = rows.mean(dim=0, dtype=torch.float64)
    low, high = torch.aminmax(rows, dim=0)
    extent = float(torch.maximum(high - center, center - low).max())
    scale = 2.0 ** int(torch.tensor(extent, dtype=torch.float64).frexp().exponent) if extent > 0 else 1.0
    dtype = rows.dtype if single else torch.float64
    allowance = _allowance(rows.shape[1], dtype)
    padded = -(-len(rows) // FOLD) * FOLD
    centered = torch.zeros(padded, rows.shape[1], dtype=dtype, device=rows.device)
    for target, part in zip(torch.split(centered[: len(rows)], 8192), torch.split(rows, 8192), strict=True):
        target.copy_(_moved(part, center, scale))
    squared_norms = torch.cat([part.double().square().sum(dim=1) for part in torch.split(centered, 8192)])
    bounds = (squared_norms * (1 - 2 * allowance)).to(dtype)
    bounds[len(rows) :] = torch.inf
    return Gallery(
        rows, members, place, centered, bounds, squared_norms[: len(rows)], center, scale, allowance
    )


def _allowance(dim: int, dtype: torch.dtype) -> float:
    """c, for scores that are summed in any order, in units u = eps / 2 of relative rounding error.

    Of |x|^2 + |y|^2 = S: 2 (D + 1) u for a sum of D products and the norm, u for the norm itself, 4 u for rows that
    were rounded before, and 2 c has to exceed it. In float64 the norms (D u) and the distances that are held to be
    exact (2 log2(D) u) are rounded as well.
    """
    eps = torch.finfo(dtype).eps
    return (dim + 16) * eps / 2 * (1 + dim * eps) if dtype == torch.float32 else (dim + 32) * eps


def single_precision_is_full() -> bool:
    """Whether float32 products are computed in float32, not in something shorter that others switched on."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch refuses to say when the precision was set by its newer per-backend switches
        return False


def _moved(rows: Tensor, center: Tensor, scale: float) -> Tensor:
    return (rows.double() - center).div_(scale)


def _searched(rows: Tensor, count: int) -> Tensor:
    """Indices of all rows but those with more than `count` equal rows before them."""
    distinct, group, sizes = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if len(distinct) == len(rows):
        return torch.arange(len(rows), device=rows.device)
    order = group.argsort(stable=True)
    earlier = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[group[order]]
    kept: Tensor = order[earlier <= count].sort().values
    return kept


def _single_precision_suffices(num_rows: int, count: int) -> bool:
    """Whether float32 scores pay: full-precision products, and few neighbors to settle afterwards."""
    return single_precision_is_full() and count * 64 <= max(num_rows, 4096)
