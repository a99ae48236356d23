"""Ranks of chosen items among all gallery items: exact, and mostly without a sort of the gallery."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distmetric.evaluation.copies import find_copies
from distmetric.evaluation.counting import count
from distmetric.evaluation.gallery import FOLD, Gallery, gallery_of, single_precision_is_full
from distmetric.evaluation.neighbors import BLOCK_BYTES, sum_by_halves
from distmetric.evaluation.relevance import MISSING

_COUNTED = 10
"""Items of a query up to which scores are counted once for each of them, instead of sorted."""
_DOUBTFUL_COUNTED, _DOUBTFUL_SORTED = 1 / 32, 1 / 4
"""Share of the gallery that may be in doubt for a query before the next, finer and slower way is cheaper."""
_PAIR_BYTES = 2**22
"""Memory for the differences of pairs that are computed at once: what stays in the cache."""
_LARGEST = {torch.float32: 2.0**100, torch.float64: 2.0**1000}
"""Squared norms up to which no score overflows."""


@dataclass(frozen=True)
class _Asked:
    """Some queries, the items asked for (-1 for none), and the distinct rows that these are."""

    queries: Tensor
    own: Tensor | None
    items: Tensor
    columns: Tensor

    def of(self, rows: Tensor) -> _Asked:
        own = None if self.own is None else self.own[rows]
        return _Asked(self.queries[rows], own, self.items[rows], self.columns[rows])


class ItemRanks:
    """Ranks that gallery items have in the rankings of queries, by euclidean distance, ties by gallery index.

    rank_q(j) = number of items i other than the query itself with (|x_q - x_i|, i) <= (|x_q - x_j|, j)

    Args:
        rows: (N, D) float32 or float64 gallery, N >= 1.
        block_bytes: memory for one block of queries, in bytes.

    Few items are ranked by counting the scores below theirs, many by sorting all scores. What the error bound of the
    scores leaves in doubt, distances decide that are computed in float64 in one fixed order of operations: the ranks
    are those in the lists of `nearest`.

    Cost of Q queries with S items each: Q N D multiplications and, where S <= 10, up to 2 S Q N comparisons, nearly
    all of which a good model saves; with more items the multiplications in float64 and a sort of Q N float64 numbers.
    Memory: `block_bytes` and three copies of the gallery. Equal rows cost nothing. Where most distances are equal
    though the rows are not (embeddings of few different numbers), Q N D operations in float64 and a sort with indices
    for every query, which is far slower.
    """

    def __init__(self, rows: Tensor, block_bytes: int = BLOCK_BYTES) -> None:
        self._rows, self._block_bytes = rows, block_bytes
        self._copies = find_copies(rows)
        self._galleries: dict[bool, Gallery] = {}
        self._buffer: Tensor | None = None
        self._weights: Tensor | None = None
        if self._copies.numbers is not None:
            self._weights = torch.zeros(self._num_columns, dtype=torch.float64, device=rows.device)
            self._weights[: len(self._copies.numbers)] = self._copies.numbers.double()

    @property
    def _num_columns(self) -> int:
        return -(-len(self._copies.members) // FOLD) * FOLD

    def queries_per_block(self, width: int) -> int:
        """How many queries with up to `width` items each can be asked for at once."""
        return self._fitting(width, width > _COUNTED, self._block_bytes * 3 // 4)

    def _fitting(self, width: int, sorting: bool, memory: int) -> int:
        # Counting: scores, two masks, the nearest groups of these. Sorting: float64, on a GPU out of place.
        per_column = 24 if sorting else 12
        if self._weights is not None:
            per_column += 24 if sorting else 8
        if sorting and self._rows.device.type != "cpu":
            per_column += 32
        return max(1, memory // (per_column * self._num_columns + 128 * width + 32 * self._rows.shape[1]))

    def ranks(self, queries: Tensor, own: Tensor | None, items: Tensor) -> Tensor:
        """Rank items for one block of queries.

        Args:
            queries: (B, D).
            own: (B,) gallery index of each query, which is not counted; None when queries are no gallery members.
            items: (B, S) int64 gallery indices, S >= 1, none of them the query itself; -1 for none.

        Returns:
            (B, S) int64 ranks from 1 on; `MISSING` where there is no item.
        """
        asked = _Asked(queries, own, items, self._copies.column[items.clamp(min=0)])
        width = items.shape[1]
        if width > _COUNTED:
            found, left = self._by_sorting(asked, self._scores_buffer(len(queries), self._gallery(False)))
        else:
            found, unsure = self._by_counting(asked)
            left = unsure[:0]
            size = self._fitting(width, True, self._block_bytes // 4)
            for part in torch.split(unsure, size) if len(unsure) else ():
                found[part], still = self._by_sorting(asked.of(part), None)
                left = torch.cat([left, part[still]])
        for row in left:
            found[row] = self._by_all_distances(asked.of(row[None]))
        return found.masked_fill_(items < 0, MISSING)

    def _gallery(self, single: bool) -> Gallery:
        if single not in self._galleries:
            self._galleries[single] = gallery_of(self._rows, self._copies.members, single=single)
        return self._galleries[single]

    def _scores_buffer(self, num_queries: int, gallery: Gallery) -> Tensor:
        buffer = self._buffer
        if buffer is None or len(buffer) < num_queries or buffer.dtype != gallery.centered.dtype:
            self._buffer = None
            self._buffer = buffer = gallery.scores_buffer(num_queries)
        return buffer

    def _by_counting(self, asked: _Asked) -> tuple[Tensor, Tensor]:
        """(B, S) ranks, and which rows are left without them."""
        gallery = self._gallery(single_precision_is_full())
        scores, norms = gallery.lower_bounds(asked.queries, self._scores_buffer(len(asked.queries), gallery))
        low, high = _window(gallery, asked, scores, norms)
        most = max(FOLD, int(_DOUBTFUL_COUNTED * len(gallery.rows)))
        counts = count(scores, low, high, self._weights, most)
        found = self._ranks_of(asked, counts.below, _own_scores(asked, self._copies.column, scores), low)
        unsure = counts.too_many | _overflowing(gallery, norms)
        self._settle(asked, found, counts.row, counts.slot, counts.column)
        return found, unsure.nonzero().squeeze(1)

    def _by_sorting(self, asked: _Asked, buffer: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, S) ranks, and which rows are left without them."""
        gallery = self._gallery(False)
        scores, norms = gallery.lower_bounds(asked.queries, buffer)
        rows = len(gallery.rows)
        # The column takes the lowest bits of each score, so that it is known after sorting.
        mask = (1 << (rows - 1).bit_length()) - 1
        scores.view(torch.int64)[:, :rows].bitwise_and_(~mask).bitwise_or_(
            torch.arange(rows, device=scores.device)
        )
        low, high = _window(gallery, asked, scores, norms, coarse=(mask + 1) * 2.0**-52)
        own_scores = _own_scores(asked, self._copies.column, scores)
        scores = _sorted_rows(scores)
        columns = scores.view(torch.int64)
        begin = torch.searchsorted(scores, low)
        number = torch.searchsorted(scores, high, right=True).sub_(begin)
        found = self._ranks_of(asked, self._weight_of_first(columns, mask, begin), own_scores, low)
        unsure = number.sum(dim=1) > asked.items.shape[1] + max(FOLD, int(_DOUBTFUL_SORTED * rows))
        unsure |= _overflowing(gallery, norms)
        row, slot = ((number > 1) & ~unsure[:, None]).nonzero(as_tuple=True)
        number, begin = number[row, slot], begin[row, slot]
        within = torch.arange(int(number.sum()), device=row.device)
        within -= (number.cumsum(0) - number).repeat_interleave(number)
        row, slot = row.repeat_interleave(number), slot.repeat_interleave(number)
        column = columns[row, begin.repeat_interleave(number).add_(within)] & mask
        self._settle(asked, found, row, slot, column)
        return found, unsure.nonzero().squeeze(1)

    def _weight_of_first(self, columns: Tensor, mask: int, begin: Tensor) -> Tensor:
        """What the first `begin` (B, S) scores of sorted rows count for."""
        if self._weights is None:
            return begin
        running = self._weights[columns & mask].cumsum(dim=1)
        return running.gather(1, (begin - 1).clamp_(min=0)).long().masked_fill_(begin == 0, 0)

    def _by_all_distances(self, asked: _Asked) -> Tensor:
        """(1, S) ranks for a single query, by its distances to all distinct rows."""
        members = self._copies.members
        distances = self._squared_distances(asked.queries, torch.zeros_like(members), members)
        order = distances[self._copies.column].argsort(stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(1, len(order) + 1, device=order.device)
        found = ranks[asked.items]
        return found if asked.own is None else found - (ranks[asked.own][:, None] < found).long()

    def _ranks_of(self, asked: _Asked, below: Tensor, own_scores: Tensor | None, low: Tensor) -> Tensor:
        """Ranks from the number of items that are nearer for certain, as if no other were."""
        found = below + self._copies.before(asked.columns, asked.items) + 1
        if asked.own is not None and own_scores is not None:
            own, place = asked.own[:, None], self._copies.column[asked.own][:, None]
            found -= torch.where(place == asked.columns, own < asked.items, own_scores < low).long()
        return found

    def _settle(self, asked: _Asked, found: Tensor, row: Tensor, slot: Tensor, column: Tensor) -> None:
        """Add to the ranks what listed distinct rows, of unknown place, count for before the items."""
        other = (column != asked.columns[row, slot]).nonzero().squeeze(1)
        row, slot, column = row[other], slot[other], column[other]
        if len(row) == 0:
            return
        members, item = self._copies.members, asked.items[row, slot]
        key, place = torch.unique(row * found.shape[1] + slot, return_inverse=True)
        to_item = self._squared_distances(asked.queries, key // found.shape[1], asked.items.flatten()[key])[
            place
        ]
        distance = self._squared_distances(asked.queries, row, members[column])
        nearer, equal = distance < to_item, distance == to_item
        number = self._copies.number(column) * nearer + self._copies.before(column, item) * equal
        if asked.own is not None:
            own = asked.own[row]
            counted = nearer | (equal & (own < item))
            number -= ((self._copies.column[own] == column) & counted).long()
        found.view(-1).index_add_(0, row * found.shape[1] + slot, number)

    def _squared_distances(self, queries: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """(T,) float64 squared distances of listed queries to listed items, as `nearest` compares them."""
        size = max(1, min(self._block_bytes // 8, _PAIR_BYTES) // (16 * queries.shape[1]))
        parts = [
            sum_by_halves((queries[some].double() - self._rows[others].double()).square_()).clone()
            for some, others in zip(torch.split(row, size), torch.split(item, size), strict=True)
        ]
        return torch.cat(parts)


def _own_scores(asked: _Asked, columns: Tensor, scores: Tensor) -> Tensor | None:
    """(B, 1) scores of the queries' own rows."""
    return None if asked.own is None else scores.gather(1, columns[asked.own][:, None])


def _window(
    gallery: Gallery, asked: _Asked, scores: Tensor, norms: Tensor, coarse: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Below which score a row is nearer than the item for certain, and above which it is not, each (B, S).

    `coarse` is by what share of themselves scores may be off, beyond their error bound.
    """
    at = scores.gather(1, asked.columns).double()
    farthest = gallery.squared_norms.max()
    off = (4 * coarse * (norms + farthest))[:, None]
    low = at - gallery.gaps(norms, farthest)[:, None] - off
    high = at + gallery.gaps(norms[:, None], gallery.squared_norms[asked.columns]) + off
    if scores.dtype == torch.float32:
        low = low.float().nextafter(low.new_tensor(-torch.inf, dtype=torch.float32))
        high = high.float().nextafter(low.new_tensor(torch.inf))
    nowhere = (asked.items < 0) | _overflowing(gallery, norms)[:, None]
    return low.masked_fill_(nowhere, -torch.inf), high.masked_fill_(nowhere, -torch.inf)


def _overflowing(gallery: Gallery, norms: Tensor) -> Tensor:
    """(B,) queries so far away that their scores may overflow."""
    return ~(norms + gallery.squared_norms.max() <= _LARGEST[gallery.centered.dtype])


def _sorted_rows(scores: Tensor) -> Tensor:
    """Rows (B, P) of float64 in ascending order; on the CPU in place, by NumPy, which is several times faster."""
    if scores.device.type != "cpu":
        return scores.sort(dim=1).values
    threads = torch.get_num_threads()
    parts = [part for part in np.array_split(scores.numpy(), threads) if len(part)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.sort(axis=1), parts))
    return scores
