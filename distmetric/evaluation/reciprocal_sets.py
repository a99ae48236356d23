"""Who is whose neighbor in return: the sparse encodings that k-reciprocal re-ranking compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.evaluation.gallery import Gallery, build_gallery
from distmetric.evaluation.neighbors import queries_per_block, ranked, sum_by_halves


@dataclass(frozen=True, eq=False)
class Encodings:
    """Sparse rows of weights, the columns of each ascending.

    Attributes:
        starts: (M + 1,) int64, where each row begins in the other two, and where the last ends.
        columns: (P,) int32.
        weights: (P,) float64.
    """

    starts: Tensor
    columns: Tensor
    weights: Tensor

    @classmethod
    def of_parts(cls, parts: list[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> Encodings:
        """Join blocks of rows, each given as (counts of its rows, columns, weights)."""
        empty = torch.zeros(1, dtype=torch.int64, device=device)
        counts, columns, weights = (torch.cat(each) for each in zip(*parts, strict=True))
        return cls(torch.cat([empty, counts.cumsum(0)]), columns, weights)

    def counts(self) -> Tensor:
        """(M,) entries of each row."""
        return self.starts[1:] - self.starts[:-1]

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the entries of some rows are: (P',) number of the row among those asked for, and (P',) place."""
        counts = self.counts()[rows]
        number = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        within = torch.arange(len(number), device=rows.device) - (counts.cumsum(0) - counts)[number]
        return number, self.starts[rows][number] + within

    def by_column(self, first: int, size: int) -> Encodings:
        """The rows from `first` on, turned: a row for each of the `size` columns of this, which lists rows from 0."""
        row, place = self.places(torch.arange(first, len(self.starts) - 1, device=self.starts.device))
        order = self.columns[place].argsort(stable=True)
        counts = torch.bincount(self.columns[place], minlength=size)
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return Encodings(starts, row[order].to(torch.int32), self.weights[place[order]])


def neighbors_and_reach(rows: Tensor, width: int, block_bytes: int) -> tuple[Tensor, Tensor]:
    """The nearest rows of every row, itself first, and the square of how far the farthest is.

    Args:
        rows: (N, D) float32 or float64, N >= 2.
        width: At most N; the row itself counts.
        block_bytes: Memory for one block of rows.

    Returns:
        (N, width) int64, by distance, ties by index; (N,) float64.

    Cost: 2 N N D multiplications.
    """
    N = len(rows)
    index = torch.arange(N, device=rows.device)
    listed = torch.empty(N, width, dtype=torch.int64, device=rows.device)
    listed[:, 0] = index
    reach = torch.empty(N, dtype=torch.float64, device=rows.device)
    count = max(1, width - 1)
    gallery = build_gallery(rows, count)
    for block in torch.split(index, queries_per_block(gallery, count, block_bytes)):
        listed[block, 1:] = ranked(gallery, rows[block], block, count, block_bytes)[:, : width - 1]
    for block in torch.split(index, max(1, block_bytes // (48 * gallery.centered.shape[0]))):
        reach[block] = _farthest(gallery, rows[block], block_bytes)
    return listed, reach


def _farthest(gallery: Gallery, queries: Tensor, block_bytes: int) -> Tensor:
    """(B,) float64 square of the largest distance of each query to a row."""
    scores, squared_norms = gallery.lower_bounds(queries)
    scores = scores[:, : len(gallery.rows)]
    # No score is off by more than the slack, so that the farthest row is among those near the largest score.
    tiny = torch.finfo(torch.float32).tiny * queries.shape[1]
    slack = 8 * gallery.allowance * (squared_norms + gallery.squared_norms.max()) + tiny
    edge = (scores.amax(dim=1).double() - slack).to(scores.dtype)
    query, row = (scores >= edge[:, None]).nonzero(as_tuple=True)
    squares = listed_squares(queries, gallery.rows, query, row, block_bytes // 4)
    return torch.zeros_like(squared_norms).scatter_reduce_(0, query, squares, "amax")


def listed_squares(
    left: Tensor, right: Tensor, left_at: Tensor, right_at: Tensor, scratch_bytes: int
) -> Tensor:
    """Squared distances of listed pairs, the same to the last bit in any batch.

    Args:
        left: (M, D).
        right: (N, D).
        left_at: (P,) int64 rows of `left`.
        right_at: (P,) int64 rows of `right`.
        scratch_bytes: Memory for one block of pairs.

    Returns:
        (P,) float64.
    """
    squares = torch.empty(len(left_at), dtype=torch.float64, device=left.device)
    size = max(1, scratch_bytes // (32 * left.shape[1]))
    for start in range(0, len(left_at), size):
        part = slice(start, start + size)
        terms = left[left_at[part]].double() - right[right_at[part]]
        squares[part] = sum_by_halves(terms.square_())
    return squares


def encode(rows: Tensor, listed: Tensor, reach: Tensor, half: int, block_bytes: int) -> Encodings:
    """Encode every row by its expanded k-reciprocal set.

    R(i, k) = {j in N(i, k) : i in N(j, k)};
    R*(i) = R(i, k1) and all R(j, k1/2) with j in R(i, k1) and |R(i, k1) & R(j, k1/2)| > 2/3 |R(j, k1/2)|;
    V_ij = exp(-d_ij) / sum_{l in R*(i)} exp(-d_il) for j in R*(i), else 0;  d_ij = |x_i - x_j|^2 / max_l |x_i - x_l|^2

    Args:
        rows: (N, D).
        listed: (N, k1 + 1) int64 nearest rows of each, itself first.
        reach: (N,) float64 square of each row's largest distance.
        half: k1/2, with the row itself one more.
        block_bytes: Memory for one block of rows.

    Returns:
        V.
    """
    near = listed[:, :half].contiguous()
    mutual, mutual_near = _mutual(listed, block_bytes), _mutual(near, block_bytes)
    width = listed.shape[1]
    parts = []
    index = torch.arange(len(rows), device=rows.device)
    for block in torch.split(index, max(1, block_bytes // (96 * width * (half + 1)))):
        members = torch.where(mutual[block], listed[block], len(rows)).sort(dim=1).values
        other, kept = near[listed[block]], mutual_near[listed[block]]
        place = torch.searchsorted(members, other.flatten(1)).clamp_(max=width - 1)
        shared = (members.gather(1, place).view_as(other) == other) & kept
        joins = mutual[block] & (3 * shared.sum(dim=2) > 2 * kept.sum(dim=2))
        added = torch.where(kept & joins[:, :, None], other, len(rows)).flatten(1)
        parts.append(_weighted(rows, block, torch.cat([members, added], dim=1), reach, block_bytes))
    return Encodings.of_parts(parts, rows.device)


def _mutual(listed: Tensor, block_bytes: int) -> Tensor:
    """(N, w) bool: does the listed row list this one, too?"""
    found = torch.empty_like(listed, dtype=torch.bool)
    index = torch.arange(len(listed), device=listed.device)
    for block in torch.split(index, max(1, block_bytes // (12 * listed.shape[1] ** 2))):
        found[block] = (listed[listed[block]] == block[:, None, None]).any(dim=2)
    return found


def _weighted(
    rows: Tensor, block: Tensor, sets: Tensor, reach: Tensor, block_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, columns and weights of sets that are given with repetitions, len(rows) for none."""
    ordered = sets.sort(dim=1).values
    ordered[:, 1:] = torch.where(ordered[:, 1:] == ordered[:, :-1], len(rows), ordered[:, 1:])
    ordered = ordered.sort(dim=1).values
    there = ordered < len(rows)
    counts = there.sum(dim=1)
    there = there[:, : int(counts.max())]
    at, place = there.nonzero(as_tuple=True)
    columns = ordered[at, place]
    squares = listed_squares(rows, rows, block[at], columns, block_bytes // 4)
    far = reach[block][at]
    weights = torch.zeros(there.shape, dtype=torch.float64, device=rows.device)
    weights[at, place] = torch.where(far > 0, squares / far, 0.0).neg_().exp_()
    # A column at a time: zeros at the end of a row, of which there are more or less by block, change nothing.
    totals = torch.zeros_like(weights[:, 0])
    for column in weights.unbind(dim=1):
        totals += column
    return counts, columns.to(torch.int32), weights[at, place] / totals[at]


def averaged(encodings: Encodings, listed: Tensor, block_bytes: int) -> Encodings:
    """Local query expansion: every row becomes the mean of those of its k2 nearest, itself among them.

    V'_i = (1 / k2) sum_{j in N(i, k2)} V_j

    Args:
        encodings: N rows.
        listed: (N, k2) int64 nearest rows of each, itself first.
        block_bytes: Memory for one block of rows.

    Returns:
        V'; its rows have up to k2 times as many entries.
    """
    N, k2 = listed.shape
    entries = encodings.counts()[listed].sum(dim=1)
    parts = []
    for start, stop in _runs_within(entries, max(1, block_bytes // 128)):
        # By index, not by distance: rows with the same neighbors get the same mean to the last bit.
        block = listed[start:stop].sort(dim=1).values
        number, place = encodings.places(block.flatten())
        key = torch.div(number, k2, rounding_mode="floor") * N + encodings.columns[place]
        key, order = key.sort(stable=True)
        weights = encodings.weights[place[order]]
        distinct, group, sizes = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
        within = torch.arange(len(key), device=key.device) - (sizes.cumsum(0) - sizes)[group]
        total = torch.zeros(len(distinct), dtype=torch.float64, device=key.device)
        for turn in range(k2):  # one order of additions, whatever the device
            now = within == turn
            total[group[now]] += weights[now]
        row = torch.div(distinct, N, rounding_mode="floor")
        parts.append((torch.bincount(row, minlength=len(block)), (distinct % N).to(torch.int32), total / k2))
    return Encodings.of_parts(parts, listed.device)


def _runs_within(sizes: Tensor, limit: int) -> list[tuple[int, int]]:
    """Cut 0..N-1 into runs whose sizes add up to at most `limit`, or are one."""
    runs, start, total = [], 0, 0
    for number, size in enumerate(sizes.tolist()):
        if number > start and total + size > limit:
            runs.append((start, number))
            start, total = number, 0
        total += size
    return [*runs, (start, len(sizes))]
