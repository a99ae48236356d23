"""Recall@k, R-precision and MAP@R: exact, streamed over blocks of queries, and additive over workers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.evaluation.neighbors import BLOCK_BYTES, queries_per_block, ranked


@dataclass(frozen=True)
class RetrievalMetrics:
    """What retrieval reached; means over the queries that have something to find.

    Attributes:
        queries: number of queries with at least one relevant gallery item.
        lone_queries: number of queries without any, which no mean counts.
        recall_at: for each k, the fraction of queries with a relevant item among their k nearest, 0..1.
        r_precision: mean precision at R, R being the number of relevant items of the query, 0..1.
        map_at_r: mean average precision at R, 0..1.
    """

    queries: int
    lone_queries: int
    recall_at: dict[int, float]
    r_precision: float
    map_at_r: float

    @classmethod
    def from_sums(cls, sums: Tensor, ks: Sequence[int] = (1, 2, 4, 8)) -> "RetrievalMetrics":
        """Turn the sums of all shards, added up, into means.

        Args:
            sums: (4 + number of distinct k,) float64, the total of the vectors of `retrieval_sums`.
            ks: the same numbers of neighbors as were given there.

        Returns:
            The metrics.

        Raises:
            InputError: when the vector does not fit `ks`, or no query had a relevant item.
        """
        depths = _depths(ks)
        if sums.shape != (4 + len(depths),):
            raise InputError(
                f"sums for ks={depths} must have shape ({4 + len(depths)},), got {tuple(sums.shape)}"
            )
        queries, lone, r_precision, map_at_r, *hits = sums.tolist()
        if queries == 0:
            raise InputError(
                f"none of {lone:.0f} queries has a relevant gallery item; give classes of two images or more"
            )
        return cls(
            queries=round(queries),
            lone_queries=round(lone),
            recall_at={k: hit / queries for k, hit in zip(depths, hits, strict=True)},
            r_precision=r_precision / queries,
            map_at_r=map_at_r / queries,
        )

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats, as a tracker logs them: `recall_at_1`, ..., `map_at_r`, `num_queries`."""
        return {
            **{f"recall_at_{k}": value for k, value in self.recall_at.items()},
            "map_at_r": self.map_at_r,
            "r_precision": self.r_precision,
            "num_queries": float(self.queries),
            "num_lone_queries": float(self.lone_queries),
        }


def evaluate(
    embeddings: Array,
    labels: Array,
    *,
    gallery_embeddings: Array | None = None,
    gallery_labels: Array | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    block_bytes: int = BLOCK_BYTES,
) -> RetrievalMetrics:
    """Measure how well nearest neighbors in euclidean distance share the class of their query.

    recall@k = mean_q [some rel_q(i) = 1, i <= k];  R-precision = mean_q P_q(R_q);
    MAP@R = mean_q (1 / R_q) sum_{i <= R_q} P_q(i) rel_q(i),  P_q(i) = (1 / i) sum_{j <= i} rel_q(j)

    Args:
        embeddings: (N, D) queries, real numbers; half precision is computed in float32, float64 kept. On unit
            vectors the order is that of cosine similarity.
        labels: (N,) integer classes of the queries.
        gallery_embeddings: (G, D) items to be found; None for leave-one-out, where every query searches all
            other queries, itself excluded by index and never by value.
        gallery_labels: (G,) integer classes of the gallery.
        ks: numbers of neighbors for recall@k; one beyond the gallery's size means all of it.
        block_bytes: memory for one block of queries, in bytes.

    Returns:
        The metrics as one value object.

    Raises:
        InputError: when an embedding is not finite, lengths or dimensions differ, there are fewer than 2
            rows, no query has a relevant item, or some k < 1.

    Cost: N * G * D multiplications; `block_bytes` and two copies of the gallery, never an N x G array.

    Ties go to the lower gallery index, so results do not depend on block size, threads or shards. Queries
    whose class has no gallery item are dropped from the means and counted in `lone_queries`.

    Reference: Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020 (arXiv:2003.08505).
    """
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise InputError("give gallery_embeddings and gallery_labels together, or neither for leave-one-out")
    if gallery_embeddings is None or gallery_labels is None:
        if len(embeddings) < 2:
            raise InputError(f"leave-one-out retrieval needs at least 2 embeddings, got {len(embeddings)}")
        index = torch.arange(len(embeddings))
        sums = retrieval_sums(embeddings, labels, embeddings, labels, index, ks, block_bytes=block_bytes)
    else:
        sums = retrieval_sums(
            embeddings, labels, gallery_embeddings, gallery_labels, None, ks, block_bytes=block_bytes
        )
    return RetrievalMetrics.from_sums(sums, ks)


@torch.no_grad()
def retrieval_sums(
    query_embeddings: Array,
    query_labels: Array,
    gallery_embeddings: Array,
    gallery_labels: Array,
    query_index: Tensor | None,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor:
    """Sum retrieval measures over some queries, so that workers can share the queries and add their vectors.

    sums = [queries, lone queries, sum R-precision, sum AP@R, then for each distinct k ascending: hits at k]

    Args:
        query_embeddings: (Q, D) this worker's queries; Q may be 0.
        query_labels: (Q,) their integer classes.
        gallery_embeddings: (G, D) the whole gallery, the same on every worker.
        gallery_labels: (G,) integer classes of the gallery.
        query_index: (Q,) int64 gallery index of each query, left out of its own ranking; None when queries
            are no gallery members.
        ks: numbers of neighbors for recall@k.
        block_bytes: memory for one block of queries, in bytes.

    Returns:
        (4 + number of distinct k,) float64 vector on the device of the queries; add the vectors of all
        workers and hand the total to `RetrievalMetrics.from_sums`.

    Raises:
        InputError: as `evaluate`, but for queries without relevant items, which only the total can tell.

    Cost: Q * G * D multiplications; `block_bytes` and two copies of the gallery.

    The measures of a query do not depend on the worker it is on: the total over shards equals the unsharded
    vector up to the order of float64 additions.
    """
    depths = _depths(ks)
    queries = as_embeddings(query_embeddings, "query embeddings")
    rows = as_embeddings(gallery_embeddings, "gallery embeddings").to(queries.device)
    classes = as_labels(query_labels, queries, "query labels")
    gallery_classes = as_labels(gallery_labels, rows, "gallery labels")
    if queries.shape[1] != rows.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} dimensions but the gallery has {rows.shape[1]}")
    own = None if query_index is None else _checked_index(query_index, queries, rows)
    available = len(rows) - (own is not None)
    if available < 1:
        raise InputError(f"the gallery leaves nothing to search: it has {len(rows)} rows")

    relevant = _relevant_counts(classes, gallery_classes, own)
    sums = torch.zeros(4 + len(depths), dtype=torch.float64, device=queries.device)
    sums[1] = (relevant == 0).sum()
    # Queries with equally many relevant items share a block, so one huge class does not widen all of them.
    order = relevant.argsort(descending=True, stable=True)[: int((relevant > 0).sum())]
    if len(order) == 0:
        return sums
    gallery = build_gallery(rows, _depth(relevant[order[0]], depths, available))
    start = 0
    while start < len(order):
        count = _depth(relevant[order[start]], depths, available)
        block = order[start : start + queries_per_block(gallery, count, block_bytes)]
        ids = ranked(gallery, queries[block], None if own is None else own[block], count, block_bytes)
        sums += _block_sums(gallery_classes[ids] == classes[block, None], relevant[block], depths)
        start += len(block)
    return sums


def _depths(ks: Sequence[int]) -> list[int]:
    if not ks or any(k < 1 for k in ks):
        raise InputError(f"recall@k needs one or more k, each at least 1, got {list(ks)}")
    return sorted(set(ks))


def _depth(num_relevant: Tensor, depths: list[int], available: int) -> int:
    """How many neighbors a query needs: enough for the largest k and for R."""
    return min(max(depths[-1], int(num_relevant)), available)


def _checked_index(query_index: Tensor, queries: Tensor, rows: Tensor) -> Tensor:
    own = query_index.to(device=rows.device, dtype=torch.int64)
    if own.shape != (len(queries),):
        raise InputError(f"query_index must have shape ({len(queries)},), got {tuple(own.shape)}")
    if len(own) and not (int(own.min()) >= 0 and int(own.max()) < len(rows)):
        raise InputError(f"query_index must hold gallery indices from 0 to {len(rows) - 1}")
    return own


def _relevant_counts(classes: Tensor, gallery_classes: Tensor, own: Tensor | None) -> Tensor:
    """(Q,) number of gallery items of each query's class, the query itself not counted."""
    names, sizes = torch.unique(gallery_classes, return_counts=True)
    at = torch.searchsorted(names, classes).clamp_(max=len(names) - 1)
    counts = torch.where(names[at] == classes, sizes[at], 0)
    if own is not None:
        counts -= (gallery_classes[own] == classes).to(counts.dtype)
    return counts


def _block_sums(hits: Tensor, relevant: Tensor, depths: list[int]) -> Tensor:
    """The sums of one block from (B, count) flags: is the i-th neighbor relevant?"""
    position = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    found = hits.cumsum(dim=1, dtype=torch.int32)
    inside = hits & (position <= relevant[:, None])
    share = relevant.double().reciprocal()
    precision = (found / position.double()).masked_fill_(~inside, 0).sum(dim=1)
    return torch.stack(
        [
            share.new_tensor(len(hits)),
            share.new_zeros(()),
            (inside.sum(dim=1) * share).sum(),
            (precision * share).sum(),
            *(hits[:, :k].any(dim=1).sum().double() for k in depths),
        ]
    )
