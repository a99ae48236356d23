"""At which ranks queries find the items of their class, block by block of queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels, as_tensor
from distmetric.evaluation.neighbors import BLOCK_BYTES, queries_per_block, ranked
from distmetric.evaluation.ranks import ItemRanks
from distmetric.evaluation.relevance import MISSING, class_members, ranks_of_hits

_LISTED = 16
"""Neighbors that are listed for the sake of recall@k; for a larger k the first relevant item is counted up to."""
_LONG_LIST = 1 / 64
"""Share of the gallery beyond which ranks of the relevant items are found faster than a list of neighbors."""


class RelevantRanks:
    """Queries, the gallery they search, and where in their rankings the items of their class are.

    Args:
        query_embeddings: (Q, D) real numbers, finite; Q may be 0.
        query_labels: (Q,) their integer classes.
        gallery_embeddings: (G, D).
        gallery_labels: (G,) integer classes.
        query_index: (Q,) gallery index of each query, which is left out of its own ranking; None when queries are no
            gallery members.
        block_bytes: memory for one block of queries, in bytes.

    Raises:
        InputError: when embeddings are not finite, lengths or dimensions differ, or there is nothing to search.
    """

    def __init__(
        self,
        query_embeddings: Array,
        query_labels: Array,
        gallery_embeddings: Array,
        gallery_labels: Array,
        query_index: Array | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._queries = as_embeddings(query_embeddings, "query embeddings")
        self._rows = as_embeddings(gallery_embeddings, "gallery embeddings").to(self._queries.device)
        self._classes = as_labels(query_labels, self._queries, "query labels")
        self._gallery_classes = as_labels(gallery_labels, self._rows, "gallery labels")
        dims = self._queries.shape[1], self._rows.shape[1]
        if dims[0] != dims[1]:
            raise InputError(f"queries have {dims[0]} dimensions but the gallery has {dims[1]}")
        self._own = None if query_index is None else checked_index(query_index, self._queries, self._rows)
        self._available = len(self._rows) - (self._own is not None)
        if self._available < 1:
            raise InputError(f"the gallery leaves nothing to search: it has {len(self._rows)} rows")
        self._block_bytes = block_bytes
        self._members = class_members(self._gallery_classes)
        self._all_ranks: ItemRanks | None = None
        self.relevant = self._members.count(self._classes)
        """(Q,) int64 number R of gallery items of each query's class, the query itself not counted."""
        if self._own is not None:
            self.relevant -= (self._gallery_classes[self._own] == self._classes).to(self.relevant.dtype)

    def all_items(self, queries: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The ranks of all relevant items.

        Args:
            queries: (q,) int64, which queries are asked; None for all that have something to find.

        Yields:
            (B,) int64 queries, (B, S) int64 gallery items of their class in ascending order, -1 for none, and (B, S)
            int64 ranks, `MISSING` for none. Queries come by falling R, so that one huge class does not widen all
            blocks.
        """
        if self._all_ranks is None:
            self._all_ranks = ItemRanks(self._rows, self._block_bytes)
        order = self._by_falling_relevance(queries)
        start = 0
        while start < len(order):
            most = int(self.relevant[order[start]])
            block = order[start : start + self._all_ranks.queries_per_block(most)]
            items, own = self._members.listed(self._classes[block]), None
            if self._own is not None:
                own = self._own[block]
                items = _without(items, own)[:, :most]
            yield block, items, self._all_ranks.ranks(self._queries[block], own, items)
            start += len(block)

    def all(self, queries: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The ranks of all relevant items in ascending order, `MISSING` where there are no more."""
        for block, _, ranks in self.all_items(queries):
            yield block, ranks.sort(dim=1).values

    def first(self, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The ranks up to R of relevant items, and the first one's if it is up to `depth`.

        Yields:
            (B,) int64 queries and (B, S) int64 ranks in ascending order, `MISSING` where there are no more; other ranks
            may be there, too. Queries may come again, with more ranks than before.
        """
        order = self._by_falling_relevance(None)
        listed = min(depth, _LISTED)
        wide = self.relevant[order] > max(listed, _LONG_LIST * max(self._available, 4096))
        yield from self.all(order[wide])
        order, missed = order[~wide], []
        if len(order) == 0:
            return
        counts = self.relevant[order].clamp(min=listed, max=self._available)
        gallery, buffer = build_gallery(self._rows, int(counts[0])), None
        start = 0
        while start < len(order):
            count, wanted = int(counts[start]), int(self.relevant[order[start]])
            block = order[start : start + queries_per_block(gallery, count, self._block_bytes)]
            if buffer is None or len(buffer) < len(block):
                buffer = None
                buffer = gallery.scores_buffer(len(block))
            own = None if self._own is None else self._own[block]
            found = ranked(gallery, self._queries[block], own, count, self._block_bytes, buffer)
            hits = self._gallery_classes[found] == self._classes[block, None]
            yield block, ranks_of_hits(hits, wanted)
            missed.append(block[~hits.any(dim=1)] if count < min(depth, self._available) else block[:0])
            start += len(block)
        del gallery, buffer
        again = torch.cat(missed)
        if len(again):
            yield from self.all(again)

    def _by_falling_relevance(self, queries: Tensor | None) -> Tensor:
        asked = torch.arange(len(self.relevant), device=self.relevant.device) if queries is None else queries
        order = asked[self.relevant[asked].argsort(descending=True, stable=True)]
        return order[: int((self.relevant[order] > 0).sum())]


def _without(items: Tensor, own: Tensor) -> Tensor:
    """(B, S) lists without the item (B,) of each row, which leaves a -1 at the end."""
    rest = items.masked_fill((items == own[:, None]) | (items < 0), MISSING).sort(dim=1).values
    return rest.masked_fill_(rest == MISSING, -1)


def checked_index(query_index: Array, queries: Tensor, rows: Tensor) -> Tensor:
    """Check where queries are in the gallery and give it as int64 on their device.

    Args:
        query_index: (Q,) integers.
        queries: (Q, ...).
        rows: (G, ...).

    Raises:
        InputError: when it is not one gallery index for each query.
    """
    own = as_tensor(query_index).to(device=rows.device, dtype=torch.int64)
    if own.shape != (len(queries),):
        raise InputError(f"query_index must have shape ({len(queries)},), got {tuple(own.shape)}")
    if len(own) and not (int(own.min()) >= 0 and int(own.max()) < len(rows)):
        raise InputError(f"query_index must hold gallery indices from 0 to {len(rows) - 1}")
    return own
