"""The neighbors of queries in an index, re-ranked where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.config.jobs import SearchJob
from distmetric.evaluation.query_expansion import expand_with
from distmetric.evaluation.reranking import rerank
from distmetric.index.neighbor_index import NeighborIndex
from distmetric.index.torch_search import listed_squares
from distmetric.progress import Progress

QUERIES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class FoundNeighbors:
    """What a search found, in the order that it is to be shown in.

    Attributes:
        rows: (Q, k) int64 rows of the gallery, -1 where there are no more.
        distances: (Q, k) float64 euclidean distances to the query itself; inf at -1.
        reranked: (Q, k) float64 what they are ordered by: distance of the re-ranking, or to the expanded query. None
            without re-ranking.
    """

    rows: Tensor
    distances: Tensor
    reranked: Tensor | None


def find_neighbors(index: NeighborIndex, queries: Tensor, own: Tensor, job: SearchJob) -> FoundNeighbors:
    """Search, a few hundred queries at a time.

    Args:
        index: Of the gallery, with its rows as ids, by euclidean distance.
        queries: (Q, D).
        own: (Q,) int64 row of the gallery that is not to be found, -1 for none.
        job: Says how many, and how they are re-ranked.

    Returns:
        The neighbors; no more than the gallery has.

    Raises:
        InputError: If embeddings do not fit each other, or queries are to be expanded and not of length 1.

    Cost: that of the searcher; with k_reciprocal `rerank_candidates` ^2 D multiplications per query more.
    """
    job_k = min(job.k, len(index))
    progress = Progress("queries searched", len(queries))
    parts = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        block, skip = queries[part], own[part]
        if job.rerank == "k_reciprocal":
            with _one_thread():
                parts.append(_reciprocal(index, block, skip, job_k, job))
        elif job.rerank == "query_expansion":
            parts.append(_expanded(index, block, skip, job_k, job))
        else:
            found = index.search(block, job_k, exclude_ids=skip)
            parts.append((found.ids, found.squares, found.squares.sqrt()))
        progress.update(len(block))
    progress.close()
    rows, squares, order = (torch.cat(each) for each in zip(*parts, strict=True))
    return FoundNeighbors(rows, squares.sqrt(), None if job.rerank == "none" else order)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads wait for each other longer than the many small steps of re-ranking one query take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _expanded(
    index: NeighborIndex, queries: Tensor, own: Tensor, k: int, job: SearchJob
) -> tuple[Tensor, Tensor, Tensor]:
    first = index.search(queries, job.expansion_neighbors, exclude_ids=own)
    moved = expand_with(queries, index.embeddings, first.ids, alpha=job.expansion_alpha)
    found = index.search(moved, k, exclude_ids=own)
    return found.ids, listed_squares(index.embeddings, queries, found.ids), found.squares.sqrt()


def _reciprocal(
    index: NeighborIndex, queries: Tensor, own: Tensor, k: int, job: SearchJob
) -> tuple[Tensor, Tensor, Tensor]:
    """Every query by itself: which others are asked along must not change its answer."""
    near = index.search(queries, min(job.rerank_candidates, len(index)), exclude_ids=own)
    rows = torch.full((len(queries), k), -1)
    squares = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    order = squares.clone()
    for number, (ids, far) in enumerate(zip(near.ids, near.squares, strict=True)):
        ids, far = ids[ids >= 0], far[ids >= 0]
        if len(ids) == 0:
            continue
        places, distances = rerank(
            queries[number : number + 1],
            index.embeddings[ids],
            k1=job.reciprocal_k1,
            k2=job.reciprocal_k2,
            lambda_value=job.reciprocal_lambda,
            k=k,
        )
        count = places.shape[1]
        rows[number, :count], squares[number, :count] = ids[places[0]], far[places[0]]
        order[number, :count] = distances[0]
    return rows, squares, order
