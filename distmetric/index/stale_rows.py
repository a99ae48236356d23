"""Which rows to embed again: the least recently embedded ones, each asked for once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

SCAN_SHARE = 16
"""One scan over all rows lines up at most one row in so many, so that sorting them stays cheap."""
ROWS_PER_STEP = 2**20
"""Scans are spread over the steps so that no more than about so many rows are looked at per step."""


class StaleRows:
    """Hand out rows that were not embedded for long, never one that is already asked for.

    A scan over all rows lines up the oldest; they are handed out from that line until it is used up. Steps of
    rows only grow, so a row of the line whose step is unchanged is still older than all that are not in it.

    Args:
        num_rows: M.
        line_rows: Most rows that one scan lines up; None for M / 16, at least 1024.

    Cost: a scan is O(M), about 10 ms for 10^7 rows when few are stale and 0.1 s when many are. There are 16 or
    fewer for M rows handed out, and where nothing is left to hand out one every 1 + M / 2^20 steps.
    """

    def __init__(self, num_rows: int, line_rows: int | None = None) -> None:
        self._most = max(1024, num_rows // SCAN_SHARE) if line_rows is None else line_rows
        self._every = 1 + num_rows // ROWS_PER_STEP
        self._line = np.empty(0, dtype=np.int64)
        self._line_steps = np.empty(0, dtype=np.int64)
        self._scanned: int | None = None
        self._more = True
        self._asked: list[tuple[int, Rows, Rows]] = []

    def take(self, steps: Rows, count: int, before_step: int, retry_steps: int) -> Rows:
        """Take the next rows.

        Args:
            steps: (M,) int64 step each row was embedded at, -1 for never.
            count: Most rows to take.
            before_step: Rows embedded before this step are stale.
            retry_steps: By how much `before_step` has to grow until a row that was asked for, and not embedded
                since, is asked for again.

        Returns:
            (n,) int64, n <= count, oldest first, ties by row; rows that are asked for again come after those in
            line.
        """
        taken: list[Rows] = []
        wanted, scanned = count, False
        while wanted > 0:
            if len(self._line) == 0:
                if scanned or not self._scan_is_due(before_step):
                    break
                self._scan(steps, before_step, retry_steps)
                scanned = not self._more
                if len(self._line) == 0:
                    break
            rows, marks = self._line[:wanted], self._line_steps[:wanted]
            stale = marks < before_step
            used = len(rows) if stale.all() else int(stale.argmin())
            good = steps[rows[:used]] == marks[:used]
            taken.append(rows[:used][good])
            if len(taken[-1]):
                self._asked.append((before_step, taken[-1], marks[:used][good]))
                wanted -= len(taken[-1])
            self._line, self._line_steps = self._line[used:], self._line_steps[used:]
            if used < len(rows):
                break
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)

    def _scan_is_due(self, before_step: int) -> bool:
        return self._more or self._scanned is None or before_step >= self._scanned + self._every

    def _scan(self, steps: Rows, before_step: int, retry_steps: int) -> None:
        stale = steps < before_step
        self._asked = [
            (asked, rows[waiting], marks[waiting])
            for asked, rows, marks in self._asked
            if asked + retry_steps > before_step and (waiting := steps[rows] == marks).any()
        ]
        for _, rows, _ in self._asked:
            stale[rows] = False
        found = np.flatnonzero(stale)
        ages = steps[found]
        self._more = len(found) > self._most
        if self._more:
            edge = np.partition(ages, self._most - 1)[self._most - 1]
            older, tied = found[ages < edge], found[ages == edge]
            found = np.concatenate([older, tied[: self._most - len(older)]])
            ages = steps[found]
        order = np.lexsort((found, ages))
        self._line, self._line_steps = found[order], ages[order]
        self._scanned = before_step
