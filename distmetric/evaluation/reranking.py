"""k-reciprocal re-ranking: neighbors that are each other's neighbors come first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.inputs import Array, as_embeddings, as_tensor
from distmetric.evaluation.neighbors import BLOCK_BYTES, queries_per_block, ranked
from distmetric.evaluation.reciprocal_sets import (
    Encodings,
    averaged,
    encode,
    listed_squares,
    neighbors_and_reach,
)

_BYTES_PER_PAIR = 64
"""Of a query and a gallery item while their shared weights are added up."""
_BYTES_PER_CANDIDATE = 160
"""Of a pair that may be listed, while these are put in order."""


@torch.no_grad()
def rerank(
    queries: Array,
    gallery: Array,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    k: int | None = None,
    query_index: Array | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Rank the gallery for every query by how much their neighborhoods have in common.

    With N(i, n) the row i and its n nearest others among queries and gallery items together, and
    d_ij = |x_i - x_j|^2 / max_l |x_i - x_l|^2:

    R(i, n) = {j in N(i, n) : i in N(j, n)};
    R*(i) = R(i, k1) and all R(j, k1/2) with j in R(i, k1) and |R(i, k1) & R(j, k1/2)| > 2/3 |R(j, k1/2)|;
    V_ij = exp(-d_ij) / sum_{l in R*(i)} exp(-d_il) for j in R*(i), else 0;
    V'_i = mean of V_j over i and its k2 - 1 nearest others;
    J_ij = 1 - sum_l min(V'_il, V'_jl) / sum_l max(V'_il, V'_jl);
    distance_ij = (1 - lambda) J_ij + lambda d_ij

    Args:
        queries: (Q, D) real numbers, finite.
        gallery: (G, D).
        k1: Neighbors that may be reciprocal, at least 1; beyond Q + G - 1 it means all.
        k2: Rows in the mean of encodings (local query expansion), 1 to k1; 1 for none.
        lambda_value: Share of the original distance, 0 to 1.
        k: How many to list; None, or more than there are: all.
        query_index: (Q,) int64 gallery index of each query where queries are gallery items: they are looked up there,
            never listed for themselves, and not counted twice as neighbors. None: no query is one.
        block_bytes: Memory for one block, in bytes.

    Returns:
        (Q, k) int64 gallery indices, nearest first, and (Q, k) float64 re-ranked distances, 0..1, on the device of the
        queries. Equal distances go by the original distance, then by gallery index.

    Raises:
        InputError: If embeddings are not finite or not (N, D), dimensions differ, the gallery has nothing to list, or
            a setting or a query index is out of range.

    Cost: with N = Q + G (N = G with `query_index`): 2 N N D multiplications, O(N k1^2) comparisons, and for every
    query the entries of the gallery's encodings in its columns; memory `block_bytes`, three copies of the
    embeddings, and about 60 bytes for each of at most N k2 |R*| entries of the encodings. There is no N x N array,
    and no Q x G array but, with k = None, the result.

    Distances are exact, a row counts as its own first neighbor even among equal rows, and ties go to the lower index,
    queries first: the result does not depend on block size or threads. It does depend on which queries are asked
    together, since they are each other's neighbors. Where all rows are equal, d is 0.

    Reference: Zhong, Zheng, Cao and Li, Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017
    (arXiv:1701.08398). Where the paper and the authors' program differ, this follows the program, which made the
    published numbers: encodings of sum 1, squared distances by the largest, k1/2 rounded half to even, and strictly
    more than 2/3.
    """
    wanted = as_embeddings(queries, "queries")
    items = as_embeddings(gallery, "gallery").to(wanted.device)
    if wanted.shape[1] != items.shape[1]:
        raise InputError(f"queries have {wanted.shape[1]} dimensions but the gallery has {items.shape[1]}")
    own = None if query_index is None else _checked_index(query_index, wanted, items)
    available = len(items) - (own is not None)
    _check(available, k1, k2, lambda_value, k)
    count = available if k is None else min(k, available)
    indices = torch.empty(len(wanted), count, dtype=torch.int64, device=wanted.device)
    distances = torch.empty(len(wanted), count, dtype=torch.float64, device=wanted.device)
    if len(wanted) == 0:
        return indices, distances
    rows = torch.cat([wanted, items]) if own is None else items
    listed, reach = neighbors_and_reach(rows, min(k1 + 1, len(rows)), block_bytes)
    encodings = encode(rows, listed, reach, min(round(k1 / 2) + 1, len(rows)), block_bytes)
    if k2 > 1:
        encodings = averaged(encodings, listed[:, :k2], block_bytes)
    side = _Sides(rows, reach, encodings, len(rows) - len(items), own)
    start = 0
    for found, values in side.ranked(len(wanted), count, lambda_value, block_bytes):
        indices[start : start + len(found)], distances[start : start + len(found)] = found, values
        start += len(found)
    return indices, distances


class _Sides:
    """Queries and gallery of a joint table, ready to be compared.

    Args:
        rows: (N, D), the gallery last.
        reach: (N,) float64 square of each row's largest distance.
        encodings: N rows.
        first: Where the gallery begins.
        own: (Q,) gallery index of each query; None where the queries are the rows before the gallery.
    """

    def __init__(
        self, rows: Tensor, reach: Tensor, encodings: Encodings, first: int, own: Tensor | None
    ) -> None:
        self._rows, self._reach, self._encodings, self._own = rows, reach, encodings, own
        self._gallery = rows[first:]
        self._holders = encodings.by_column(first, len(rows))

    def ranked(
        self, num_queries: int, count: int, lambda_value: float, block_bytes: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gallery indices and distances of the `count` first, a block of queries at a time."""
        G, own = len(self._gallery), self._own
        whole = count == G - (own is not None)
        size = max(1, block_bytes // (G * (_BYTES_PER_CANDIDATE if whole else _BYTES_PER_PAIR)))
        prepared = None if whole else build_gallery(self._gallery, count)
        if prepared is not None:
            size = min(size, queries_per_block(prepared, count, block_bytes))
        for block in torch.split(torch.arange(num_queries, device=self._rows.device), size):
            rows = block if own is None else own[block]
            shared = _shared_weights(self._encodings, self._holders, rows, G)
            if prepared is None:
                wanted = torch.ones_like(shared, dtype=torch.bool)
            else:
                # What shares no neighbor is ranked by distance, so that only the nearest of it can be listed.
                skip = None if own is None else rows
                near = ranked(prepared, self._rows[rows], skip, count, block_bytes)
                wanted = (shared > 0).scatter_(1, near, True)
            if own is not None:
                wanted.scatter_(1, rows[:, None], False)
            query, item = wanted.nonzero(as_tuple=True)
            squares = listed_squares(self._rows, self._gallery, rows[query], item, block_bytes // 4)
            common, far = shared[query, item], self._reach[rows][query]
            original = torch.where(far > 0, squares / far, 0.0)
            final = (1 - lambda_value) * (1 - common / (2 - common)) + lambda_value * original
            order = _order(query, final, squares, len(block), count)
            yield item[order], final[order]


def _check(available: int, k1: int, k2: int, lambda_value: float, k: int | None) -> None:
    if available < 1:
        raise InputError("the gallery leaves nothing to rank: give it more rows")
    if k1 < 1:
        raise InputError(f"k1 must be 1 or more, got {k1}")
    if not 1 <= k2 <= k1:
        raise InputError(f"k2 must be from 1 to k1={k1}, got {k2}")
    if not 0 <= lambda_value <= 1:
        raise InputError(f"lambda_value must be from 0 to 1, got {lambda_value}")
    if k is not None and k < 1:
        raise InputError(f"k must be 1 or more, got {k}")


def _checked_index(query_index: Array, queries: Tensor, items: Tensor) -> Tensor:
    own = as_tensor(query_index).to(device=queries.device, dtype=torch.int64)
    if own.shape != (len(queries),):
        raise InputError(f"query_index must have shape ({len(queries)},), got {tuple(own.shape)}")
    if len(own) and not (int(own.min()) >= 0 and int(own.max()) < len(items)):
        raise InputError(f"query_index must hold gallery indices from 0 to {len(items) - 1}")
    return own


def _shared_weights(encodings: Encodings, holders: Encodings, queries: Tensor, gallery_size: int) -> Tensor:
    """(B, G) float64 sum_l min(V_ql, V_jl); a column of every query at a time, which is one order of additions."""
    shared = torch.zeros(len(queries), gallery_size, dtype=torch.float64, device=encodings.weights.device)
    counts, starts = encodings.counts()[queries], encodings.starts[queries]
    for turn in range(int(counts.max())):
        asking = (counts > turn).nonzero().squeeze(1)
        place = starts[asking] + turn
        number, at = holders.places(encodings.columns[place].long())
        both = torch.minimum(encodings.weights[place][number], holders.weights[at])
        shared[asking[number], holders.columns[at].long()] += both
    return shared


def _order(query: Tensor, final: Tensor, squares: Tensor, num_queries: int, count: int) -> Tensor:
    """(B, count) places of the first of each query; pairs come by query and item."""
    order = squares.argsort(stable=True)
    for key in (final, query):
        order = order[key[order].argsort(stable=True)]
    counts = torch.bincount(query, minlength=num_queries)
    starts = counts.cumsum(0) - counts
    return order[starts[:, None] + torch.arange(count, device=query.device)]
