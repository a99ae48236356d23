"""The farthest rows of the same class, for every row, exactly and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distmetric.index.torch_search import listed_squares


class RowNeighbors(NamedTuple):
    """Neighbors of some rows.

    Attributes:
        rows: (B,) int64 the rows.
        neighbors: (B, p) int64 their neighbors, -1 where there are no more.
        squares: (B, p) float64 squared distances to them, infinite at -1.
    """

    rows: Tensor
    neighbors: Tensor
    squares: Tensor


@torch.no_grad()
def farthest_positives(
    embeddings: Tensor, labels: Tensor, count: int, *, block_bytes: int
) -> Iterator[RowNeighbors]:
    """Find the farthest rows of its own class for every row.

    neighbors_i = the rows j != i with y_j = y_i and the largest (|x_i - x_j|^2, -j), in that order

    Args:
        embeddings: (N, D) floating-point rows.
        labels: (N,) int64.
        count: p, at least 1.
        block_bytes: Memory for one block of rows, in bytes.

    Yields:
        Every row in one of the blocks, those of small classes first; squared distances are -inf at -1.

    Cost: O(sum over classes of n_c^2 D). In classes with more than about p + 8 rows the distances come from a
    float64 product, whose error bound says which of them are computed once more by direct differences. Many equal
    rows in one large class leave so much doubt that all of its distances are.
    """
    order = labels.argsort(stable=True)
    sizes = torch.unique_consecutive(labels[order], return_counts=True)[1]
    starts = sizes.cumsum(0) - sizes
    width, dim = count + max(8, count // 4), embeddings.shape[1]
    for size in sizes.unique().tolist():
        per_query = 32 * size + 80 * min(size, width) + 24 * dim
        classes = max(1, block_bytes // (per_query * size + 24 * size * dim))
        queries = size if classes > 1 else max(1, block_bytes // per_query)
        for first in torch.split(starts[sizes == size], classes):
            members = order[first[:, None] + torch.arange(size, device=order.device)]
            for own in torch.split(torch.arange(size, device=order.device), queries):
                yield _farthest(embeddings, members, own, count, width)


def _farthest(embeddings: Tensor, members: Tensor, own: Tensor, count: int, width: int) -> RowNeighbors:
    """For the members in the columns `own` of G classes, (G, n) with rows ascending in each."""
    rows, size = members[:, own].flatten(), members.shape[1]
    neighbors = torch.full((len(rows), count), -1, dtype=torch.int64, device=rows.device)
    squares = torch.full(neighbors.shape, -torch.inf, dtype=torch.float64, device=rows.device)
    known = min(count, size - 1)
    everyone = members.repeat_interleave(len(own), dim=0) if width >= size - 1 else None
    if known and everyone is not None:
        neighbors[:, :known], squares[:, :known] = _ranked(embeddings, rows, everyone, known)
    elif known:
        listed, limit = _shortlist(embeddings[members], members, own, width)
        neighbors[:, :known], squares[:, :known] = _ranked(embeddings, rows, listed, known)
        doubtful = (squares[:, known - 1] <= limit).nonzero().squeeze(1)
        for part in torch.split(doubtful, max(1, len(rows) // 4)):
            everyone = members[part // len(own)]
            neighbors[part, :known], squares[part, :known] = _ranked(embeddings, rows[part], everyone, known)
    return RowNeighbors(rows, neighbors, squares)


def _shortlist(group: Tensor, members: Tensor, own: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Far members (B, width), ascending, and (B,) squared distances which no other exceeds; group is (G, n, D)."""
    centered = group.double()
    centered -= centered.mean(dim=1, keepdim=True)
    norms = centered.square().sum(dim=2)
    scores = torch.baddbmm(norms[:, None, :], centered[:, own], centered.mT, alpha=-2)
    scores += norms[:, own, None]
    scores[:, torch.arange(len(own), device=own.device), own] = -torch.inf
    far, places = scores.topk(width, dim=2)
    allowance = 4 * (group.shape[2] + 32) * torch.finfo(torch.float64).eps
    error = allowance * (norms[:, own] + norms.amax(dim=1, keepdim=True)) + torch.finfo(torch.float64).tiny
    listed = members.gather(1, places.sort(dim=2).values.flatten(1))
    return listed.view(-1, width), (far[..., -1] + error).flatten()


def _ranked(embeddings: Tensor, rows: Tensor, listed: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """The `known` farthest of those listed for each row in ascending order, itself left out."""
    squares = listed_squares(embeddings, embeddings[rows], listed)
    squares[listed == rows[:, None]] = -torch.inf
    squares, order = squares.sort(dim=1, descending=True, stable=True)
    return listed.gather(1, order[:, :known]), squares[:, :known]
