"""Classes in the order of how often they were met, while that changes."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]


class LeastVisited:
    """Hands out classes for one batch after the other, those least visited first, ties in a given order.

    A class is handed out once a batch, and its visit counts from the next batch on.

    Args:
        visits: (C,) int32 visits of each class so far; counted on in place.
        order: (C,) the classes in the order that decides between equal visits.

    Cost: O(C) once (a radix sort while the visits differ by less than 2^16), then O(log n) amortized for each of n
    visits.
    """

    def __init__(self, visits: NDArray[np.int32], order: Classes) -> None:
        self.visits = visits
        self._turn = np.empty_like(order)
        self._turn[order] = np.arange(len(order))
        ahead = (visits - visits.min())[order]
        kind = np.min_scalar_type(int(ahead.max()))
        # Classes not met since the start stand in a line that is sorted once, the others in a heap.
        self._line: Classes = order[np.argsort(ahead.astype(kind), kind="stable")]
        self._next = 0
        self._met_before: list[tuple[int, int, int]] = []
        self._last_batch = np.full(len(order), -1, dtype=np.int32)
        self._batch = -1
        self.members: list[int] = []
        """Classes of the batch, in the order in which they came."""

    def open_batch(self) -> int:
        """Begin a batch; the least visits that a class has."""
        self._batch += 1
        self.members = []
        return int(self.visits[self._first()])

    def close_batch(self) -> None:
        """Count the visits of the batch."""
        members = np.asarray(self.members, dtype=np.int64)
        self.visits[members] += 1
        counts, turns = self.visits[members].tolist(), self._turn[members].tolist()
        for entry in zip(counts, turns, self.members, strict=True):
            heapq.heappush(self._met_before, entry)

    def take(self) -> int:
        """The least visited class that is not in the batch, which it joins."""
        label = self._first()
        self.join(label)
        return label

    def join(self, label: int) -> None:
        """Put a class that is not in the batch into it."""
        self._last_batch[label] = self._batch
        self.members.append(label)

    def is_in_batch(self, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these classes are in the batch."""
        inside: NDArray[np.bool_] = self._last_batch[labels] == self._batch
        return inside

    def _first(self) -> int:
        while self._next < len(self._line) and self._last_batch[self._line[self._next]] >= 0:
            self._next += 1
        # A class of this batch will be put back; one of an older batch may also stand there with fewer visits.
        while (heap := self._met_before) and (
            self._last_batch[heap[0][2]] == self._batch or self.visits[heap[0][2]] != heap[0][0]
        ):
            heapq.heappop(heap)
        if self._next == len(self._line):
            return heap[0][2]
        label = int(self._line[self._next])
        return min([(int(self.visits[label]), int(self._turn[label]), label), *heap[:1]])[2]
