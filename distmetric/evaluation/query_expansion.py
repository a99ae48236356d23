"""Alpha query expansion: a query moved toward what it found, so that it is searched for again, better."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.inputs import Array, as_embeddings, as_tensor
from distmetric.evaluation.neighbors import BLOCK_BYTES, queries_per_block, ranked, sum_by_halves

UNIT_TOLERANCE = 0.02
"""How far from 1 a length may be that half precision, or a mean of a few such, made of 1."""


@torch.no_grad()
def expand_queries(
    queries: Array,
    gallery: Array,
    *,
    neighbors: int = 10,
    alpha: float = 3.0,
    query_index: Array | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor:
    """Replace every query by a weighted mean of itself and its nearest gallery items.

    q' = v / |v|,  v = q + sum_{i in N_n(q)} max(q . x_i, 0)^alpha x_i

    Args:
        queries: (Q, D) of length 1.
        gallery: (G, D) of length 1.
        neighbors: n, at least 1; beyond the size of the gallery it means all of it.
        alpha: At least 0. Large values trust the nearest only; 0 is the plain mean (average query expansion).
        query_index: (Q,) int64 gallery index of each query, which does not count among its neighbors; -1 where a
            query is no gallery item. None: no query is one.
        block_bytes: Memory for one block of queries, in bytes.

    Returns:
        (Q, D) of length 1, in the dtype and on the device of the queries.

    Raises:
        InputError: If embeddings are not finite, not (N, D) or not of length 1, dimensions differ, or a setting is
            out of range.

    Cost: Q G D multiplications, `block_bytes` and two copies of the gallery.

    Neighbors are exact, ties go to the lower gallery index, and the sum is made in float64 in one order of additions:
    the result does not depend on block size or threads. An empty gallery, or a sum of 0, leaves the query as it is.

    Reference: Radenovic, Tolias and Chum, Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019
    (arXiv:1711.02512). A negative similarity counts as 0, where its power would not be a number.
    """
    wanted, rows = _checked(queries, gallery, alpha)
    if neighbors < 1:
        raise InputError(f"neighbors must be 1 or more, got {neighbors}")
    own = _own(query_index, wanted, rows)
    listed = torch.full((len(wanted), min(neighbors, len(rows))), -1, device=wanted.device)
    # Those that are left out of their own list need one more to choose from.
    for part, index in ((own < 0, None), (own >= 0, own)):
        at = part.nonzero().squeeze(1)
        count = min(neighbors, len(rows) - (index is not None))
        if len(at) == 0 or count == 0:
            continue
        searched = build_gallery(rows, count)
        for block in torch.split(at, queries_per_block(searched, count, block_bytes)):
            skip = None if index is None else index[block]
            listed[block, :count] = ranked(searched, wanted[block], skip, count, block_bytes)
    return _expanded(wanted, rows, listed, alpha, block_bytes)


@torch.no_grad()
def expand_with(
    queries: Array, gallery: Array, listed: Tensor, *, alpha: float = 3.0, block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """Expand queries by gallery items that a search has listed for them; see `expand_queries`.

    Args:
        queries: (Q, D) of length 1.
        gallery: (G, D) of length 1.
        listed: (Q, n) int64 gallery indices, -1 for none.
        alpha: At least 0.
        block_bytes: Memory for one block of queries, in bytes.

    Returns:
        (Q, D) of length 1, in the dtype and on the device of the queries.

    Raises:
        InputError: As `expand_queries`.

    Cost: Q n D multiplications.
    """
    wanted, rows = _checked(queries, gallery, alpha)
    return _expanded(wanted, rows, listed.to(wanted.device), alpha, block_bytes)


def _checked(queries: Array, gallery: Array, alpha: float) -> tuple[Tensor, Tensor]:
    wanted = as_embeddings(queries, "queries")
    rows = as_embeddings(gallery, "gallery").to(wanted.device)
    if wanted.shape[1] != rows.shape[1]:
        raise InputError(f"queries have {wanted.shape[1]} dimensions but the gallery has {rows.shape[1]}")
    if not 0 <= alpha < math.inf:
        raise InputError(f"alpha must be a number of 0 or more, got {alpha}")
    _check_unit(wanted, "queries")
    _check_unit(rows, "gallery")
    return wanted, rows


def _expanded(queries: Tensor, rows: Tensor, listed: Tensor, alpha: float, block_bytes: int) -> Tensor:
    expanded = queries.clone()
    if listed.shape[1] == 0 or len(rows) == 0:
        return expanded
    size = max(1, block_bytes // (32 * queries.shape[1] * (listed.shape[1] + 1)))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        own, found = queries[part].double(), rows[listed[part].clamp_min(0)].double()
        weights = sum_by_halves(found * own[:, None]).clamp_(min=0).pow_(alpha)
        weights.masked_fill_(listed[part] < 0, 0)
        total = own.clone()
        for place in range(listed.shape[1]):  # one order of additions, whatever the device
            total += weights[:, place, None] * found[:, place]
        lengths = sum_by_halves(total.square()).sqrt_()[:, None]
        expanded[part] = torch.where(lengths > 0, total / lengths, own).to(queries.dtype)
    return expanded


def _own(query_index: Array | None, queries: Tensor, rows: Tensor) -> Tensor:
    if query_index is None:
        return torch.full((len(queries),), -1, device=queries.device)
    own = as_tensor(query_index).to(device=queries.device, dtype=torch.int64)
    if own.shape != (len(queries),):
        raise InputError(f"query_index must have shape ({len(queries)},), got {tuple(own.shape)}")
    if len(own) and not (int(own.min()) >= -1 and int(own.max()) < len(rows)):
        raise InputError(f"query_index must hold gallery indices from 0 to {len(rows) - 1}, or -1 for none")
    return own


def _check_unit(rows: Tensor, name: str) -> None:
    for start in range(0, len(rows), 8192):
        lengths = rows[start : start + 8192].double().norm(dim=1)
        wrong = ((lengths - 1).abs() > UNIT_TOLERANCE).nonzero().squeeze(1)
        if len(wrong):
            first = int(wrong[0])
            raise InputError(
                f"{name} row {start + first} has length {float(lengths[first]):.4g}, and query expansion needs "
                "length 1: normalize the embeddings (model.normalize=true), or search without it"
            )
