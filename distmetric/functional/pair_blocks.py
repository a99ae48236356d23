"""All distances of a batch, a block of anchors at a time: what every loss and miner over pairs is built on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.functional.distances import Distance, pair_chunks, row_blocks
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_bands import inverse, label_ranges

# A Gram matrix gives squared distances with an error of some eps |x|^2. Below this fraction of the mean |x|^2 that
# is too much of them, and they are computed again from differences, as long as that costs less than the matrix.
REFINE_BELOW = {torch.float32: 1e-4, torch.float64: 1e-6}
REFINE_AT_MOST = 1 / 16  # of the pairs of a block, or so many of an anchor on average:
REFINE_AT_LEAST = 64


@dataclass
class NearPairs:
    """Pairs of a block that are so near that the difference of their embeddings has to be taken itself.

    Attributes:
        anchors: (P,) int64 rows of the block.
        columns: (P,) int64 columns of the block.
    """

    anchors: Tensor
    columns: Tensor


@dataclass
class PairBlock:
    """Distances of b anchors to all N columns, with anchors and columns sorted by label.

    Columns that can share a label with one of the anchors are neighbors in that order: the band. Outside of it every
    pair is negative, so that masks are needed in the band only, b x w instead of b x N.

    Attributes:
        distances: (b, N) distances, to be read only; infinite from an anchor to itself.
        place: Which of the sorted anchors these are.
        band: Columns first .. last of the w columns of the band.
        same: (b, w) bool, columns of the anchor's label, the anchor itself among them.
        positive: (b, w) bool, the same without the anchor itself.
        first: (b,) int64 position in the band of the first column of the anchor's label.
        num_same: (b,) int64, columns of the anchor's label, the anchor itself among them.
        num_positives: (b,) int64.
        num_negatives: (b,) int64.
        rows: (b,) int64, which anchors of the batch these are.
        columns: (N,) int64, which columns of the batch these are.
        gradient: (b, N) buffer for the derivative of the terms by the distances, or None where nobody wants it.
        scratch: (b, N) buffer to work in.
        most_same: The largest of `num_same`, known to the host.
        near: Pairs whose distances come from differences, if there are any.
    """

    distances: Tensor
    place: slice
    band: slice
    same: Tensor
    positive: Tensor
    first: Tensor
    num_same: Tensor
    num_positives: Tensor
    num_negatives: Tensor
    rows: Tensor
    columns: Tensor
    gradient: Tensor | None
    scratch: Tensor
    most_same: int
    near: NearPairs | None = None

    def fill_same_(self, values: Tensor, value: float) -> Tensor:
        """Set the entries of a (b, N) tensor at columns of the anchor's label, the anchor itself among them."""
        values[:, self.band].masked_fill_(self.same, value)
        return values

    def positives_of(self, values: Tensor, fill: float) -> Tensor:
        """(b, w): the band of a (b, N) tensor, with `fill` wherever there is no positive."""
        return values[:, self.band].masked_fill(~self.positive, fill)

    def same_places(self) -> tuple[Tensor, Tensor]:
        """Where in the band the columns of each anchor's label lie, in the caller's order.

        Returns:
            (b, J) int64 places, for the J of the anchor that has most, and (b, J) bool, whether there is a j-th one.
        """
        width = self.same.shape[1]
        number = torch.arange(self.most_same, device=self.first.device)
        return (self.first[:, None] + number).clamp_max_(width - 1), number < self.num_same[:, None]


class SortedPairs:
    """A batch with anchors and columns sorted by label, ready to give out its distances block by block.

    Args:
        batch: Anchors (B, D) and columns (N, D) in float32 or float64, of length one for "cosine".
        distance: Which one.

    Attributes:
        anchors: (B, D) sorted anchors; for euclidean distances with the mean of the columns as origin, which leaves
            distances as they are and their rounding errors smallest.
        columns: (N, D) sorted columns, likewise.
        anchor_order: (B,) int64, which anchor of the batch comes at which place.
        order: (N,) int64, the same for columns.

    Cost: N log N for sorting, two copies of anchors and columns.
    """

    def __init__(self, batch: JointBatch, distance: Distance) -> None:
        self._batch = batch
        self.distance: Distance = distance
        sorted_labels, self.order = torch.sort(batch.column_labels, stable=True)
        self.anchor_order = torch.argsort(batch.labels, stable=True)
        self._first, self._last = label_ranges(batch.labels[self.anchor_order], sorted_labels)
        self._host_first, self._host_last = host_ranges(batch)
        self._own = _own_positions(batch, self.anchor_order, self.order)
        self.anchors = batch.anchors.detach()[self.anchor_order]
        self.columns = batch.columns.detach()[self.order]
        if self.is_euclidean:
            center = self.columns.mean(0)
            self.anchors, self.columns = self.anchors.sub_(center), self.columns.sub_(center)
        self._left, self._right, self._refine_below = self._factors()

    @property
    def is_euclidean(self) -> bool:
        """Whether the distance is the euclidean one or its square."""
        return self.distance in ("euclidean", "squared_euclidean")

    def blocks(self, with_gradient: bool = False) -> Iterator[PairBlock]:
        """Compute all distances, block by block into the same buffers.

        Args:
            with_gradient: Whether to provide a buffer for it.

        Yields:
            Blocks that together hold every anchor once. A block is valid until the next one is asked for.

        Cost: B N D multiplications; two blocks of `BLOCK_BYTES`, or three.
        """
        num_columns, device = len(self.order), self.order.device
        buffers: list[Tensor] = []
        for place in row_blocks(len(self.anchor_order), num_columns, self.columns):
            size = place.stop - place.start
            count = 3 if with_gradient else 2
            buffers = buffers or [self.columns.new_empty(size, num_columns) for _ in range(count)]
            distances, scratch, *gradient = (buffer[:size] for buffer in buffers)
            first, last = self._first[place], self._last[place]
            own = None if self._own is None else self._own[place]
            near = self._compute(place, own, distances)
            # Sorted labels: the first anchor's label begins the band, and the last one's ends it.
            host_first, host_last = self._host_first[place], self._host_last[place]
            band = slice(int(host_first[0]), int(host_last[-1]))
            position = torch.arange(band.start, band.stop, device=device)
            same = (position >= first[:, None]) & (position < last[:, None])
            num_same = last - first
            block = PairBlock(
                distances=distances,
                place=place,
                band=band,
                same=same,
                positive=same if own is None else same & (position != own[:, None]),
                first=first - band.start,
                num_same=num_same,
                num_positives=num_same if own is None else num_same - 1,
                num_negatives=num_columns - num_same,
                rows=self.anchor_order[place],
                columns=self.order,
                gradient=gradient[0] if gradient else None,
                scratch=scratch,
                most_same=int((host_last - host_first).max()),
                near=near,
            )
            self._refine(block)
            yield block

    def near_differences(self, block: PairBlock) -> Iterator[tuple[slice, Tensor]]:
        """Differences a - c of the near pairs of a block, (p, D), a few at a time, and which of them those are."""
        near = block.near
        assert near is not None, "a block without near pairs has no differences"
        # Of the embeddings as they came: their difference is exact, while moving the origin has rounded.
        rows, columns = block.rows[near.anchors], self.order[near.columns]
        for part in pair_chunks(len(rows), self.columns):
            yield part, self._batch.anchors.detach()[rows[part]] - self._batch.columns.detach()[columns[part]]

    def _factors(self) -> tuple[Tensor, Tensor, Tensor | float]:
        """Two matrices whose product holds the distances, constants included, and what is too small in it."""
        anchors, columns = self.anchors, self.columns
        anchor_ones, column_ones = anchors.new_ones(len(anchors), 1), columns.new_ones(len(columns), 1)
        if self.is_euclidean:
            anchor_squares = anchors.square().sum(1, keepdim=True)
            column_squares = columns.square().sum(1, keepdim=True)
            left = torch.cat([-2 * anchors, anchor_squares, anchor_ones], 1)
            right = torch.cat([columns, column_ones, column_squares], 1)
            return left, right, column_squares.mean() * REFINE_BELOW[columns.dtype]
        if self.distance == "cosine":
            return torch.cat([-anchors, anchor_ones], 1), torch.cat([columns, column_ones], 1), 0.0
        return -anchors, columns, 0.0

    def _compute(self, place: slice, own: Tensor | None, out: Tensor) -> NearPairs | None:
        with torch.autocast(out.device.type, enabled=False):
            torch.mm(self._left[place], self._right.T, out=out)
        if own is not None:
            out.scatter_(1, own[:, None], torch.inf)
        return self._near_pairs(out) if self.is_euclidean else None

    def _near_pairs(self, squares: Tensor) -> NearPairs | None:
        if squares.numel() == 0 or squares.amin() >= self._refine_below:
            return None
        near = squares < self._refine_below
        most = max(REFINE_AT_LEAST, int(REFINE_AT_MOST * squares.shape[1])) * len(squares)
        squares.clamp_min_(0.0)
        return NearPairs(*near.nonzero().unbind(1)) if int(near.sum()) <= most else None

    def _refine(self, block: PairBlock) -> None:
        if block.near is not None:
            for part, difference in self.near_differences(block):
                where = block.near.anchors[part], block.near.columns[part]
                block.distances[where] = difference.square().sum(1)
        if self.distance == "euclidean":
            block.distances.sqrt_()


def host_ranges(batch: JointBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the label of each sorted anchor begins and ends among sorted columns, for the host: it sets the bands."""
    labels, column_labels = (np.sort(known) for known in batch.on_host())
    return np.searchsorted(column_labels, labels), np.searchsorted(column_labels, labels, side="right")


def _own_positions(batch: JointBatch, anchor_order: Tensor, order: Tensor) -> Tensor | None:
    """Where each sorted anchor is among the sorted columns."""
    if batch.anchor_index is None:
        return None
    return inverse(order)[batch.anchor_index[anchor_order]]
