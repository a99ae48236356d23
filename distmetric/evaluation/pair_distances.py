"""All pairs of labeled rows, each pair once, in blocks that workers can share."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.distance_grid import GridPoints, as_anchors, on_grid

PAIR_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Default memory for a block of distances: about a core's own cache, or enough to fill a GPU."""


@dataclass(frozen=True, eq=False)
class PairBlock:
    """Some pairs.

    Attributes:
        squared: (B, M) or (B,) float64 squared distances, in units; the reader's to overwrite.
        same: mask of the same shape of the pairs of one class; None where there is none.
        folds: the two folds the pairs are of.
    """

    squared: Tensor
    same: Tensor | None
    folds: tuple[int, int]


@dataclass(frozen=True, eq=False)
class PairTable:
    """Rows on the grid, ordered by class; made by `pair_table`.

    Attributes:
        grid: the rows, in ascending order of fold and class.
        class_numbers: (N,) int64, class numbers 0..C-1 in that order.
        classes: the same in the host's memory.
        num_positives: pairs of the same class.
        num_negatives: pairs of different classes.
        fold_ends: where one fold of the points ends and the next begins.
    """

    grid: GridPoints
    class_numbers: Tensor
    classes: NDArray[np.int64]
    num_positives: int
    num_negatives: int
    fold_ends: tuple[int, ...]

    @property
    def points(self) -> Tensor:
        """The rows on the grid; see `GridPoints`."""
        return self.grid.points

    def blocks(
        self, own: slice | None = None, block_bytes: int | None = None, *, only_same: bool = False
    ) -> Iterator[PairBlock]:
        """All pairs of some anchors, each pair of the table once over all anchors.

        An anchor is paired with the floor(N / 2) points after it, around the end (for even N every second of the
        farthest pairs is left out, as its other point has it): all anchors have equally many pairs, so that
        slices of equal length are equal work.

        Args:
            own: Anchors, a slice of the points; None for all.
            block_bytes: Memory for the distances of a block, in bytes; None for `PAIR_BLOCK_BYTES`.
            only_same: Leave out blocks without a pair of one class.

        Yields:
            The blocks; each is to be read before the next is asked for.

        Cost: N / 2 x D multiplications for each anchor; two blocks.
        """
        start, stop, step = (slice(None) if own is None else own).indices(len(self.points))
        if step != 1:
            raise InputError(f"anchors must be a slice of step 1, got {own}")
        stop = max(start, stop)
        device = self.points.device
        if block_bytes is None:
            block_bytes = PAIR_BLOCK_BYTES.get(device.type, PAIR_BLOCK_BYTES["cpu"])
        side = max(64, min(int((block_bytes / 32) ** 0.5), 4096))
        buffer = torch.empty(4 * side * side, dtype=torch.float64, device=device)
        # The reach of an anchor changes in the middle of an even number of points.
        ends = sorted({start, stop, *(end for end in self._ends() if start < end < stop)})
        for first, last in itertools.pairwise(ends):
            for low in range(first, last, side):
                high = min(low + side, last)
                left = as_anchors(self.points[low:high])
                for columns in self._columns(low, high, 4 * side):
                    same = self._same(low, high, columns)
                    if same is not None or not only_same:
                        yield self._block(left, low, columns, same, buffer)

    def _ends(self) -> set[int]:
        return {*self.fold_ends, len(self.points) // 2}

    def _reach(self, anchor: int) -> int:
        """How many of the points after an anchor are its own."""
        size = len(self.points)
        return size // 2 - (size % 2 == 0 and anchor >= size // 2)

    def _columns(self, low: int, high: int, width: int) -> Iterator[tuple[int, int]]:
        """Cut the points after some anchors, counted on beyond the last point, so that most of the blocks are whole."""
        size, end = len(self.points), high + self._reach(low)
        around = {fold + turn for fold in {*self.fold_ends, size} for turn in (0, size)}
        cuts = {high, low + self._reach(low) + 1, *around}
        cuts = {low + 1, end, *(cut for cut in cuts if low + 1 < cut < end)}
        for first, last in itertools.pairwise(sorted(cuts)):
            for begin in range(first, last, width):
                yield begin, min(begin + width, last)

    def _block(
        self, left: Tensor, low: int, columns: tuple[int, int], same: Tensor | None, buffer: Tensor
    ) -> PairBlock:
        (begin, end), high, reach, size = columns, low + len(left), self._reach(low), len(self.points)
        squared = buffer[: len(left) * (end - begin)].view(len(left), end - begin)
        first = begin % size
        torch.mm(left, self.points[first : first + end - begin].T, out=squared)
        folds = (bisect.bisect_right(self.fold_ends, low), bisect.bisect_right(self.fold_ends, first))
        if begin >= high and end <= low + reach + 1:
            return PairBlock(squared, same, folds)
        anchors = torch.arange(low, high, device=left.device).unsqueeze(1)
        apart = torch.arange(begin, end, device=left.device) - anchors
        theirs = (apart >= 1) & (apart <= reach)
        return PairBlock(squared[theirs], None if same is None else same[theirs], folds)

    def _same(self, low: int, high: int, columns: tuple[int, int]) -> Tensor | None:
        first = columns[0] % len(self.points)
        rows, others = self.classes[low:high], self.classes[first : first + columns[1] - columns[0]]
        if rows[-1] < others[0] or others[-1] < rows[0]:
            return None
        numbers = self.class_numbers
        return numbers[low:high, None] == numbers[first : first + len(others)]


def pair_table(rows: Tensor, labels: Tensor, folds: Tensor | None = None) -> PairTable:
    """Order rows by fold and class, and round them to the grid; see `on_grid`.

    Args:
        rows: (N, D) float32 or float64, finite.
        labels: (N,) int64.
        folds: (N,) int64 fold 0..F-1 of each row, the same in all of a class, and none empty; None for a single one.

    Returns:
        The table, on the device of the rows.

    Raises:
        InputError: without a pair of one class, or without a pair of two.

    Cost: N x (D + 2) float64 values, one sort of the labels.
    """
    order = labels.argsort(stable=True)
    ends: tuple[int, ...] = ()
    if folds is not None:
        order = order[folds[order].argsort(stable=True)]
        ends = tuple(torch.bincount(folds).cumsum(0)[:-1].tolist())
    names = labels[order]
    changes = torch.ones_like(names)
    changes[:1] = 0
    changes[1:] = names[1:] != names[:-1]
    numbers = changes.cumsum(0)
    classes = numbers.cpu().numpy()
    positives, negatives = count_pairs(np.bincount(classes))
    return PairTable(on_grid(rows[order]), numbers, classes, positives, negatives, ends)


def count_pairs(sizes: NDArray[np.int64]) -> tuple[int, int]:
    """Pairs of one class and of two, given the sizes of all classes.

    Raises:
        InputError: where there is none of either.
    """
    total = int(sizes.sum())
    positives = sum(size * (size - 1) // 2 for size in sizes.tolist())
    negatives = total * (total - 1) // 2 - positives
    if positives == 0:
        raise InputError(f"none of {total} rows has another of its class; give classes of two rows or more")
    if negatives == 0:
        raise InputError(f"all {total} rows have the same class; give rows of two classes or more")
    return positives, negatives
