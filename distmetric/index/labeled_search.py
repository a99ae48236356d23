"""Nearest rows without the query's own, or without those of its class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.index.config import SearchConfig
from distmetric.index.search import Found, Searcher, as_queries, build_searcher

_HIDDEN = 256
"""Rows of an excluded class that are searched along and left out; of a larger class it is cheaper to search the
other rows on their own."""
_PAIR_BYTES = 96
"""Memory for one place of a query while some are left out."""


class LabeledSearch:
    """Rows with labels, searched as a whole or without the members of one label per query.

    Args:
        embeddings: (N, D) float32 or float64, finite; N may be 0.
        labels: (N,) int64 on the same device.
        config: How to search; None for the defaults.
        threads: CPU threads of FAISS; None leaves its own setting.
        block_bytes: Memory for the candidates of one block of queries, in bytes.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        config: SearchConfig | None = None,
        *,
        threads: int | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._embeddings, self._labels = embeddings, labels
        self._config, self._threads, self._block_bytes = config or SearchConfig(), threads, block_bytes
        self._classes, self._sizes = torch.unique(labels, return_counts=True)
        self._others: tuple[int, Tensor, Searcher] | None = None

    @cached_property
    def searcher(self) -> Searcher:
        """Who searches all rows."""
        return build_searcher(self._embeddings, self._config, threads=self._threads)

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude_rows: Tensor | None = None,
        exclude_labels: Tensor | None = None,
    ) -> Found:
        """Find the k nearest rows of every query among those that are not excluded.

        Args:
            queries: (Q, D) real numbers, finite.
            k: At least 1; may exceed the number of rows.
            exclude_rows: (Q,) int64 one row per query, -1 for none.
            exclude_labels: (Q,) int64 a label per query; one that does not occur excludes nothing.

        Returns:
            What was found, on the device of the queries.

        Raises:
            InputError: If the queries are not finite, not (Q, D), or k is no count.

        Cost: a search for k and as many more as the class that is left out has members; for classes of more than
        4 k + 256 members a search of the other rows alone, whose preparation costs O(N D) per such label in
        a call; the last one is kept.
        """
        wanted = as_queries(queries, self._embeddings, k)
        found = Found.nothing(len(wanted), k, wanted.device)
        own = -torch.ones_like(found.rows[:, 0]) if exclude_rows is None else exclude_rows.to(wanted.device)
        extra = int(exclude_rows is not None)
        for part, hidden, outside, searcher in self._portions(exclude_labels, found.rows, k):
            width = min(k + hidden + extra, max(k, len(self._labels)))
            for at in torch.split(part, max(1, self._block_bytes // (_PAIR_BYTES * width))):
                one = searcher.search(wanted[at], width)
                if outside is not None:
                    one = replace(one, rows=taken(outside, one.rows))
                if hidden or extra:
                    kept = one.rows != own[at, None]
                    if hidden and exclude_labels is not None:
                        kept &= taken(self._labels, one.rows) != exclude_labels.to(kept.device)[at, None]
                    one = one.only(kept, k)
                found.rows[at], found.squares[at] = one.rows, one.squares
        return Found.of(found.rows, found.squares)

    def _portions(
        self, excluded: Tensor | None, like: Tensor, k: int
    ) -> Iterator[tuple[Tensor, int, Tensor | None, Searcher]]:
        """Queries to be searched together: places, most rows to leave out, and where: rows (None: all), searcher."""
        if excluded is None:
            yield torch.arange(len(like), device=like.device), 0, None, self.searcher
            return
        labels = excluded.to(like.device)
        hidden = self._members(labels)
        large = hidden > 4 * k + _HIDDEN
        for label in torch.unique(labels[large]).tolist():
            yield (large & (labels == label)).nonzero().squeeze(1), 0, *self._apart_from(label)
        # Widths double, so that a few searches serve classes of all sizes.
        doubled = 2 ** torch.frexp((hidden - 1).clamp(min=0).double()).exponent.long()
        width = torch.where(hidden > 0, doubled, 0)
        for most in torch.unique(width[~large]).tolist():
            yield ((width == most) & ~large).nonzero().squeeze(1), most, None, self.searcher

    def _members(self, labels: Tensor) -> Tensor:
        """How many rows have each of these labels."""
        if not len(self._classes):
            return torch.zeros_like(labels)
        classes, sizes = self._classes.to(labels.device), self._sizes.to(labels.device)
        place = torch.searchsorted(classes, labels.contiguous()).clamp_(max=len(classes) - 1)
        return torch.where(classes[place] == labels, sizes[place], 0)

    def _apart_from(self, label: int) -> tuple[Tensor, Searcher]:
        """The rows of all other classes, and a searcher over them."""
        if self._others is None or self._others[0] != label:
            self._others = None  # its memory goes before the next one is built
            outside = (self._labels != label).nonzero().squeeze(1)
            # Lists trained anew for one label would cost more than comparing with all of its rows.
            flat = replace(self._config, kind="flat")
            searcher = build_searcher(self._embeddings[outside], flat, threads=self._threads)
            self._others = (label, outside, searcher)
        return self._others[1:]


def taken(values: Tensor, rows: Tensor) -> Tensor:
    """`values` of rows, -1 where the row is -1."""
    found = torch.full_like(rows, -1)
    there = rows >= 0
    found[there] = values.to(rows.device)[rows[there]]
    return found
