"""How far apart two embeddings are: exact distances of listed pairs, blocks of squared ones for searching.

Shapes: B anchors, N columns, P listed pairs, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["euclidean", "squared_euclidean", "cosine", "dot_product"]
"""|a - b|, |a - b|^2, 1 - cos(a, b), and -a.b; the smaller, the more alike."""

DISTANCES: tuple[Distance, ...] = ("euclidean", "squared_euclidean", "cosine", "dot_product")

# What a block of B_block x N distances may take: about the size of a CPU's last-level cache, and large enough for its
# threads not to wait for each other more than they compute; on a GPU a multiplication large enough to fill it.
BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
# Fewer rows than this make a matrix multiplication that reads the columns more than it computes.
MIN_BLOCK_ROWS = 64
# More rows have more columns that may share a label with one of them, and work on those grows with the square.
MAX_BLOCK_ROWS = {"cpu": 256, "cuda": 2048}


def block_bytes(device: torch.device) -> int:
    """`BLOCK_BYTES` of a device."""
    return BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"])


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 where its type is narrower: distances cancel, and half precision has nothing to spare."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale rows (B, D) to length one in their own dtype; zeros stay zeros and pass no gradient, NaN stays NaN."""
    with torch.autocast(embeddings.device.type, enabled=False):
        norms = embeddings.norm(dim=1, keepdim=True)
        # Dividing by max(norm, eps) instead would give a zero row a gradient of 1/eps.
        dead = norms <= 1e-12
        return torch.where(dead, 0, embeddings / torch.where(dead, 1, norms))


def row_blocks(num_rows: int, num_columns: int, like: Tensor) -> Iterator[slice]:
    """Slices of rows such that a block of rows x columns of the type of `like` is about `BLOCK_BYTES` large."""
    budget = block_bytes(like.device)
    rows = max(MIN_BLOCK_ROWS, budget // max(1, num_columns * like.element_size()))
    rows = min(rows, MAX_BLOCK_ROWS.get(like.device.type, MAX_BLOCK_ROWS["cpu"]))
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


def pair_chunks(num_pairs: int, like: Tensor) -> Iterator[slice]:
    """Slices of listed pairs such that a row of `like` (N, D) for each of them is about `BLOCK_BYTES` large."""
    budget = block_bytes(like.device)
    size = max(1, budget // max(1, like.shape[1] * like.element_size()))
    for start in range(0, num_pairs, size):
        yield slice(start, min(start + size, num_pairs))


def similarity_at_zero(distance: Distance) -> float:
    """What a distance of 0 is as a similarity: s = this - d is the cosine, the dot product, or -d."""
    return 1.0 if distance == "cosine" else 0.0


def squared_distance_block(anchors: Tensor, columns: Tensor, column_squares: Tensor | None = None) -> Tensor:
    """All squared distances of a few anchors to all columns, by one matrix multiplication.

    Formula: |a|^2 + |c|^2 - 2 a.c, clamped at 0. The absolute error is about 1e-7 (|a| + |c|)^2 in float32, so
    use it to search and to weigh, and `paired_distances` for values.

    Args:
        anchors: (B, D), float32 or float64.
        columns: (N, D), same type.
        column_squares: (N,) squared norms of the columns, where the caller has them.

    Returns:
        (B, N) squared distances. Cost: B N D multiplications, B N values.
    """
    if column_squares is None:
        column_squares = columns.square().sum(1)
    squares = torch.addmm(column_squares, anchors, columns.T, alpha=-2.0)
    return squares.add_(anchors.square().sum(1, keepdim=True)).clamp_min_(0.0)


def paired_distances(first: Tensor, second: Tensor, distance: Distance = "euclidean") -> Tensor:
    """Distance of each row of one tensor to the same row of the other, with a gradient that is never NaN.

    Formula: |a_p - b_p|_2 (gradient 0 where the rows coincide), its square, 1 - a_p.b_p of unit rows, or -a_p.b_p.

    Args:
        first: (P, D) rows; of length one for "cosine".
        second: (P, D) rows; of length one for "cosine".
        distance: Which one.

    Returns:
        (P,) distances in float32 or wider. Cost: P D.
    """
    first, second = at_least_float32(first), at_least_float32(second)
    if distance in ("cosine", "dot_product"):
        return similarity_at_zero(distance) - (first * second).sum(-1)
    squares = (first - second).square().sum(-1)
    if distance == "squared_euclidean":
        return squares
    apart = squares > 0
    # The inner `where` keeps the root's infinite derivative at 0 out of the graph, the outer one the value at 0.
    return torch.where(apart, torch.where(apart, squares, torch.ones_like(squares)).sqrt(), squares)
