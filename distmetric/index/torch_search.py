"""Exact search in torch, on the CPU or a GPU: the reference, and what there is without FAISS."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from distmetric.errors import ResourceError
from distmetric.evaluation.gallery import Gallery, build_gallery
from distmetric.evaluation.neighbors import BLOCK_BYTES, queries_per_block, ranked, sum_by_halves
from distmetric.index.config import SearchConfig
from distmetric.index.search import Found, as_queries, say_once

_PAIR_VALUES = {"cpu": 2**20, "cuda": 2**26}
"""Coordinates of pairs whose differences are taken at once: what stays in the cache, or fills a GPU."""
_SMALLEST_COUNT = 64
"""Neighbors that a gallery is prepared for at least, so that a few more or less need no other one."""


class TorchSearcher:
    """Exact nearest rows by blocks of scores, and by distances in float64 wherever scores leave an order open.

    Args:
        rows: (N, D) float32 or float64, finite; N may be 0.
        device: Where to search.
        block_bytes: Memory for one block of queries, in bytes.

    Cost of a search: Q N D multiplications, `block_bytes`, and at the first one two copies of the rows and a sort
    of them. Equal rows beyond k + 1 of a kind are not searched.
    """

    exact = True

    def __init__(
        self, rows: Tensor, device: torch.device | str = "cpu", block_bytes: int = BLOCK_BYTES
    ) -> None:
        self._rows = rows.to(device)
        self._block_bytes = block_bytes
        self._prepared: tuple[int, Gallery] | None = None
        self.name = f"torch flat on {self._rows.device.type}, exact"

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> Found:
        """Find the k nearest rows of every query; see `Searcher`."""
        wanted = as_queries(queries, self._rows, k)
        found = Found.nothing(len(wanted), k, self._rows.device)
        count = min(k, len(self._rows))
        if count == 0 or len(wanted) == 0:
            return found.to(queries.device)
        gallery = self._gallery(count)
        size = queries_per_block(gallery, count, self._block_bytes)
        for start in range(0, len(wanted), size):
            block = wanted[start : start + size].to(self._rows.device)
            rows = ranked(gallery, block, None, count, self._block_bytes)
            found.rows[start : start + size, :count] = rows
            found.squares[start : start + size, :count] = listed_squares(self._rows, block, rows)
        return Found.of(found.rows, found.squares).to(queries.device)

    def _gallery(self, count: int) -> Gallery:
        """The rows prepared for `count` neighbors or more, but not for so many that it would cost precision."""
        prepared = self._prepared
        if prepared is None or not count <= prepared[0] <= max(_SMALLEST_COUNT, 8 * count):
            size = min(len(self._rows), max(_SMALLEST_COUNT, count))
            prepared = self._prepared = (size, build_gallery(self._rows, size))
        return prepared[1]


def torch_device(rows: Tensor, config: SearchConfig) -> torch.device:
    """Where torch is to search: on the GPU if there is one and the rows fit, else on the CPU with one log line.

    Raises:
        ResourceError: If a GPU was asked for by name and torch sees none.
    """
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if config.device == "cuda":
            raise ResourceError(
                "index.search.device=cuda: torch sees no GPU here; give the index one "
                "(index.num_gpus=1) or set index.search.device=auto"
            )
        say_once(logging.INFO, "no GPU for the index: torch searches on the CPU")
        return torch.device("cpu")
    # The rows, the centered copy of them in float64 at worst, and what sorting them takes.
    needed = 4 * len(rows) * rows.shape[1] * 8 + BLOCK_BYTES
    free = torch.cuda.mem_get_info()[0]
    if config.device == "auto" and needed > free:
        say_once(
            logging.WARNING, "the index does not fit the free memory of the GPU: torch searches on the CPU"
        )
        return torch.device("cpu")
    return torch.device("cuda")


def listed_squares(rows: Tensor, queries: Tensor, listed: Tensor) -> Tensor:
    """Squared distances of queries to the rows listed for them, the same to the last bit wherever they are computed.

    square_ij = sum_d (query_id - row_listed_ij,d)^2

    Args:
        rows: (N, D) float32 or float64.
        queries: (Q, D) on the same device.
        listed: (Q, w) int64 rows, -1 for none.

    Returns:
        (Q, w) float64; inf for none.

    Cost: Q w D differences in float64, in blocks; they are summed as `evaluation.neighbors` sums them.
    """
    Q, width = listed.shape
    D = rows.shape[1]
    squares = torch.empty(Q, width, dtype=torch.float64, device=rows.device)
    if Q == 0 or width == 0:
        return squares
    step = max(1, _PAIR_VALUES.get(rows.device.type, _PAIR_VALUES["cpu"]) // (width * D))
    size = min(step, Q)
    # Buffers are used again: fresh memory of this size costs more than the arithmetic on it.
    gathered = torch.empty(size * width, D, dtype=rows.dtype, device=rows.device)
    terms = torch.empty(size * width, D, dtype=torch.float64, device=rows.device)
    for start in range(0, Q, step):
        block = listed[start : start + step]
        pairs = block.numel()
        torch.index_select(rows, 0, block.clamp(min=0).view(-1), out=gathered[:pairs])
        left = terms[:pairs].copy_(gathered[:pairs]).view(len(block), width, D)
        left.sub_(queries[start : start + step, None].double()).square_()
        squares[start : start + step] = sum_by_halves(left)
    return squares.masked_fill_(listed < 0, torch.inf)


def nearest_first_order(rows: Tensor, squares: Tensor) -> Tensor:
    """The order of what is listed for every query: by square, ties by row.

    Args:
        rows: (Q, w) int64.
        squares: (Q, w) float64, inf where nothing is listed.

    Returns:
        (Q, w) int64 columns.

    Cost: one sort by square, and two more of the queries that have ties.
    """
    ordered, order = squares.sort(dim=1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero().squeeze(1)
    if len(tied):
        by_row = rows[tied].argsort(dim=1)
        again = squares[tied].gather(1, by_row).argsort(dim=1, stable=True)
        order[tied] = by_row.gather(1, again)
    return order


def nearest_first(rows: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and squared distances in that order."""
    order = nearest_first_order(rows, squares)
    return rows.gather(1, order), squares.gather(1, order)
