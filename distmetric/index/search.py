"""Nearest neighbors of foreign queries among rows, whoever searches: what is found, who can search, who is chosen."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from distmetric.errors import InputError, ResourceError
from distmetric.evaluation.inputs import Array, as_embeddings
from distmetric.index.config import SearchConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """The nearest rows of every query, nearest first, ties by row.

    Attributes:
        rows: (Q, k) int64, -1 where there are no more.
        distances: (Q, k) float32 Euclidean distances; inf at -1.
        squares: (Q, k) float64 their squares before rounding, which decide the order; inf at -1.
    """

    rows: Tensor
    distances: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor, squares: Tensor) -> Found:
        """Complete rows and squared distances, both (Q, k), by the distances."""
        return cls(rows, squares.sqrt().to(torch.float32), squares)

    @classmethod
    def nothing(cls, queries: int, k: int, device: torch.device | str = "cpu") -> Found:
        """(Q, k) places that nothing was found for."""
        rows = torch.full((queries, k), -1, dtype=torch.int64, device=device)
        return cls.of(rows, torch.full((queries, k), torch.inf, dtype=torch.float64, device=device))

    def only(self, kept: Tensor, k: int) -> Found:
        """The first k of those that are kept, in the same order.

        Args:
            kept: (Q, w) bool, for each of the w places that there are.
            k: At most w.
        """
        kept = kept & (self.rows >= 0)
        first = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
        there = kept.gather(1, first)
        rows = self.rows.gather(1, first).masked_fill_(~there, -1)
        return Found.of(rows, self.squares.gather(1, first).masked_fill_(~there, torch.inf))

    def to(self, device: torch.device) -> Found:
        """The same on another device."""
        return Found(self.rows.to(device), self.distances.to(device), self.squares.to(device))


class Searcher(Protocol):
    """Finds the nearest of a fixed set of rows.

    Attributes:
        name: Who searches, where, and how well, such as "faiss flat on cpu, exact".
        exact: Whether it finds what brute force finds, ties included.
    """

    name: str
    exact: bool

    def search(self, queries: Tensor, k: int) -> Found:
        """Find the k nearest rows of every query.

        distance = |query - row|, by direct differences in float64; ties go to the lower row

        Args:
            queries: (Q, D) real numbers, finite, on any device; a row that is a query finds itself.
            k: At least 1; may exceed the number of rows.

        Returns:
            What was found, on the device of the queries.

        Raises:
            InputError: If the queries are not finite, not (Q, D), or k is no count.
        """


def build_searcher(
    embeddings: Tensor, config: SearchConfig | None = None, *, threads: int | None = None
) -> Searcher:
    """Prepare rows to be searched, by whom the configuration, the installed packages and the devices allow.

    Args:
        embeddings: (N, D) real numbers, finite; half precision becomes single, double stays.
        config: Defaults to `SearchConfig()`: FAISS where it can be imported, exact up to 200,000 rows, on a GPU
            where FAISS has one and it fits.
        threads: CPU threads of FAISS while it builds and searches; None leaves its own setting. torch's threads
            are torch's own setting.

    Returns:
        The searcher; it keeps the embeddings, without a copy where dtype and device allow.

    Raises:
        InputError: If embeddings are not finite or not (N, D).
        ResourceError: If FAISS or a GPU was asked for by name and is not there.

    Cost: flat: one copy of the embeddings, O(N D). ivf: k-means on a sample, O(N D sqrt(N)). Cost of a search of
    Q queries: flat O(Q N D); ivf O(Q D (lists + probes N / lists)).

    What "auto" had to give up is logged, once per process.
    """
    config = SearchConfig() if config is None else config
    rows = as_embeddings(embeddings)
    if config.backend != "torch" and len(rows) and (why := _without_faiss()):
        if config.backend == "faiss":
            raise ResourceError(
                f"index.search.backend=faiss: {why}; pip install faiss-cpu (or faiss-gpu), "
                "or set index.search.backend=torch"
            )
        say_once(
            logging.WARNING, f"{why}: torch searches instead, exactly; pip install faiss-cpu to change that"
        )
    elif config.backend != "torch" and len(rows):
        from distmetric.index.faiss_search import build_faiss_searcher, faiss_sees_a_gpu

        torch_can = config.backend == "auto" and config.kind != "ivf" and torch.cuda.is_available()
        if config.device != "cuda" or faiss_sees_a_gpu() or not torch_can:
            return build_faiss_searcher(rows, config, threads)
    from distmetric.index.torch_search import TorchSearcher, torch_device

    return TorchSearcher(rows, torch_device(rows, config))


def as_queries(queries: Array, rows: Tensor, k: int) -> Tensor:
    """Check queries against the rows they are searched in, and the number of neighbors.

    Returns:
        (Q, D) float32 or float64.

    Raises:
        InputError: If they are not finite, not as wide as the rows, or k is no count.
    """
    wanted = as_embeddings(queries, "queries")
    if wanted.shape[1] != rows.shape[1]:
        raise InputError(f"queries have {wanted.shape[1]} columns, the indexed embeddings {rows.shape[1]}")
    if k < 1:
        raise InputError(f"k must be 1 or more, got {k}")
    return wanted


def measured_recall(
    searcher: Searcher, reference: Searcher, queries: Tensor, k: int, own: Tensor | None = None
) -> float:
    """Recall@k of one searcher against an exact one over the same rows.

    recall = rows found that are no farther than the k-th nearest / rows to be found, over all queries

    Args:
        searcher: The one in question.
        reference: An exact one.
        queries: (Q, D).
        k: At least 1.
        own: (Q,) the row that each query is, which does not count; None where queries are no rows.

    Returns:
        0..1; 1 where there was nothing to find. A row tied with the k-th nearest counts as right.
    """
    width = k if own is None else k + 1
    truth, found = reference.search(queries, width), searcher.search(queries, width)
    if own is not None:
        truth, found = (one.only(one.rows != own[:, None], k) for one in (truth, found))
    there = truth.rows >= 0
    reach = truth.squares.masked_fill(~there, -torch.inf).amax(dim=1, keepdim=True)
    total = int(there.sum())
    return int((found.squares <= reach).sum()) / total if total else 1.0


@cache
def say_once(level: int, message: str) -> None:
    """Log a line the first time it has to be said in this process."""
    log.log(level, message)


def _without_faiss() -> str:
    """Why FAISS cannot be used; empty when it can."""
    if importlib.util.find_spec("faiss") is None:
        return "FAISS is not installed"
    try:
        importlib.import_module("distmetric.index.faiss_search")
    except (ImportError, OSError) as error:
        return f"FAISS cannot be imported ({' '.join(str(error).split())})"
    return ""
