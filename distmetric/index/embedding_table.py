"""The newest embedding of every training row, and how far rows have moved since the index was built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.stale_rows import StaleRows

BLOCK_BYTES = 4 * 2**20
"""Embeddings that are copied or compared while others wait, in bytes: about a millisecond's work."""
MEASURED_SHARE = 0.1
"""Share of the classes of a snapshot whose drift has to be known before it can ask for a rebuild."""

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class TableView:
    """A copy of an embedding table, for a build in another thread; nobody writes to it.

    Attributes:
        labels: (M,) int32 class of each row.
        num_classes: C; not every class needs to have rows here.
        embeddings: (M, D) float32 or float16; meaningless where nothing was embedded.
        steps: (M,) int64 steps that the weights of each embedding had done; -1 where nothing was embedded.
    """

    labels: NDArray[np.int32]
    num_classes: int
    embeddings: Floats
    steps: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes of its own arrays; the labels belong to the table."""
        return self.embeddings.nbytes + self.steps.nbytes


@dataclass(frozen=True, eq=False)
class Drift:
    """How far the rows of each class have moved since the index was built.

    Args:
        per_class: (C,) float32, delta_c = the largest |new - built| that was seen of any row of class c since
            then; NaN where no row was embedded again.
    """

    per_class: NDArray[np.float32]

    def ratio(self, snapshot: NeighborSnapshot) -> float:
        """Drift in the median class, relative to how far away the nearest class is.

        ratio = median over c of 2 delta_c / (d_c - rms_c)

        d_c is the root mean squared distance of class c to its nearest class and rms_c its own radius, so that
        the denominator says how much nearer own rows are than those of the nearest class; two rows that each
        move by delta_c come 2 delta_c nearer at most. The median is taken over the classes which the snapshot
        knows and whose drift was measured.

        Returns:
            The ratio; 0 as long as less than a tenth of the snapshot's classes was measured.

        Cost: O(C). Where classes coincide (d_c = rms_c) any movement counts as infinite.
        """
        gap = snapshot.class_distances[:, 0].astype(np.float64) - snapshot.radius_rms
        known = np.isfinite(gap)
        measured = known & ~np.isnan(self.per_class)
        if not measured.any() or measured.sum() < MEASURED_SHARE * known.sum():
            return 0.0
        moved, gap = 2.0 * self.per_class[measured].astype(np.float64), np.maximum(gap[measured], 0)
        relative = np.divide(moved, gap, out=np.where(moved > 0, np.inf, 0.0), where=gap > 0)
        return float(np.median(relative))

    def wants_rebuild(self, snapshot: NeighborSnapshot, fraction: float) -> bool:
        """Whether `ratio` is above `fraction`."""
        return self.ratio(snapshot) > fraction


class EmbeddingTable:
    """The newest embedding of every row with the step it was made at; safe to use from several threads.

    Args:
        labels: (M,) class of each row, 0..C-1.
        num_classes: C; a table that holds a share of the classes counts all of them.
        dim: D.
        storage: Numbers that embeddings are kept in.

    Memory: a row takes D s + 12 bytes (s = 4 for float32, 2 for float16: embedding, step and label), and as much
    less 4 in each view that is alive: the one last marked as built, and during a build the one it works on. Who
    never marks a view as built has no drift, and keeps no copy between builds.
    """

    def __init__(
        self, labels: Integers, num_classes: int, dim: int, storage: Literal["float32", "float16"] = "float32"
    ) -> None:
        assert labels.ndim == 1, f"labels must be (M,), not {labels.shape}"
        assert len(labels) == 0 or (labels.min() >= 0 and labels.max() < num_classes), "labels must be 0..C-1"
        self.labels = labels.astype(np.int32)
        self.num_classes, self.dim = num_classes, dim
        self.num_rejected = 0
        """Embeddings dropped because they were not finite, or beyond the numbers of `storage`."""
        self._embeddings = np.zeros((len(labels), dim), dtype=storage)
        self._steps = np.full(len(labels), -1, dtype=np.int64)
        self.num_present = len(np.unique(self.labels))
        """Classes that have rows here."""
        self._embedded = np.zeros(num_classes, dtype=np.int64)
        self._newest = -1
        self._stale = StaleRows(len(labels))
        self._built: TableView | None = None
        self._drift = np.full(num_classes, np.nan, dtype=np.float32)
        self._lock = Lock()

    def put(self, rows: Integers, embeddings: Floats, step: int) -> None:
        """Keep fresh embeddings; of two for the same row the newer step wins, at equal steps the later one.

        Args:
            rows: (B,) rows 0..M-1; of a repeated row the last counts.
            embeddings: (B, D); rows with a number that is not finite are dropped and counted.
            step: Optimizer steps that the weights had done, 0 or more.

        Cost: O(B (D + log B)). Putting the same again changes nothing.
        """
        assert rows.ndim == 1, f"rows must be (B,), not {rows.shape}"
        assert embeddings.shape == (len(rows), self.dim), (
            f"embeddings must be ({len(rows)}, {self.dim}), not {embeddings.shape}"
        )
        assert step >= 0, f"step must be 0 or more, not {step}"
        if len(rows) == 0:
            return
        assert 0 <= rows.min() <= rows.max() < len(self.labels), f"rows must be 0..{len(self.labels) - 1}"
        with np.errstate(over="ignore"):
            stored = embeddings.astype(self._embeddings.dtype)
        finite = np.isfinite(stored).all(axis=1)
        kept = np.flatnonzero(finite)
        wanted, last = np.unique(rows[kept][::-1].astype(np.int64), return_index=True)
        stored = stored[kept[::-1][last]]
        with self._lock:
            self.num_rejected += int(len(rows) - finite.sum())
            newer = self._steps[wanted] <= step
            if newer.any():
                self._write(wanted[newer], stored[newer], step)

    def stale_rows(self, count: int, before_step: int, *, retry_steps: int = 100) -> NDArray[np.int64]:
        """Rows to embed again: never embedded ones first, then by age, ties by row.

        Args:
            count: Most rows to give.
            before_step: Rows embedded before this step are stale; those never embedded count from step 0 on.
            retry_steps: A row is given once; when it has not been embedded by the time `before_step` has grown
                by this much, the request counts as lost and the row may be given again.

        Returns:
            (n,) int64, n <= count.

        Cost: O(count), and now and then O(M): see `StaleRows`.
        """
        with self._lock:
            return self._stale.take(self._steps, count, before_step, retry_steps)

    def view(self) -> TableView:
        """A copy of the table as it is now.

        Every row is as it was at one moment of the call, its step with it; rows that are put during the call are
        in the copy or not. Nobody waits longer than it takes to copy a few MiB.

        Cost: O(M D), and as much memory.
        """
        embeddings, steps = np.empty_like(self._embeddings), np.empty_like(self._steps)
        for part in self._blocks():
            with self._lock:
                embeddings[part], steps[part] = self._embeddings[part], self._steps[part]
        return TableView(self.labels, self.num_classes, embeddings, steps)

    def mark_built(self, view: TableView) -> None:
        """Say that an index over `view` is in use: from now on drift is measured against it.

        Cost: O(M D), for what was put since the view was taken.
        """
        with self._lock:
            self._built = view
            self._drift = np.full(self.num_classes, np.nan, dtype=np.float32)
        for part in self._blocks():
            with self._lock:
                if self._built is not view:
                    return
                rows = np.arange(part.start, part.stop)
                self._measure(rows, self._embeddings[part], self._steps[part])

    def drift(self) -> Drift:
        """How far rows have moved since the view that was last marked as built; all NaN before the first.

        Distances are between embeddings as they are stored.
        """
        with self._lock:
            return Drift(self._drift.copy())

    def coverage(self) -> float:
        """Share of the classes that have rows here which have an embedded one."""
        return self.num_covered / max(self.num_present, 1)

    @property
    def num_covered(self) -> int:
        """Classes with an embedded row."""
        return int(np.count_nonzero(self._embedded))

    @property
    def num_embedded(self) -> int:
        """Rows that were ever embedded."""
        return int(self._embedded.sum())

    @property
    def newest_step(self) -> int:
        """The newest step of any embedding put so far; -1 before the first."""
        return self._newest

    @property
    def nbytes(self) -> int:
        """Bytes of the table, and of the view marked as built."""
        own = self._embeddings.nbytes + self._steps.nbytes + self.labels.nbytes
        built = self._built
        return own + (0 if built is None else built.nbytes)

    def _write(self, rows: NDArray[np.int64], embeddings: Floats, step: int) -> None:
        first = rows[self._steps[rows] < 0]
        np.add.at(self._embedded, self.labels[first], 1)
        self._embeddings[rows] = embeddings
        self._steps[rows] = step
        self._newest = max(self._newest, step)
        self._measure(rows, embeddings, np.full(len(rows), step))

    def _measure(self, rows: NDArray[np.int64], embeddings: Floats, steps: NDArray[np.int64]) -> None:
        """Take the way from the built view into account; what was put twice is no new measurement."""
        if self._built is None:
            return
        was = self._built.steps[rows]
        known = was >= 0
        rows, steps, was = rows[known], steps[known], was[known]
        moved = embeddings[known].astype(np.float64) - self._built.embeddings[rows]
        moved = np.sqrt(np.square(moved).sum(axis=1))
        counted = (steps > was) | (moved > 0)
        np.fmax.at(self._drift, self.labels[rows[counted]], moved[counted].astype(np.float32))

    def _blocks(self) -> Iterator[slice]:
        size = max(1, BLOCK_BYTES // max(1, self._embeddings.itemsize * self.dim))
        for start in range(0, len(self.labels), size):
            yield slice(start, min(start + size, len(self.labels)))
