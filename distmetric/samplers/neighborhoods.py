"""Which classes a snapshot offers as batch mates of a seed, and which of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distmetric.index.snapshot import NeighborSnapshot
from distmetric.samplers.reading_order import ClassRows

Numbers = NDArray[np.int32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbors:
    """What a window of a seed's list holds, without what the guard dropped.

    Args:
        classes: (n,) a class may occur once for each of its rows.
        ranks: (n,) ascending places in the list; 0 is the nearest.
        guarded: How many neighbors of the window the guard dropped.
        places: (n,) the rows, as their places in the training split; None where the list is one of classes.
    """

    classes: Numbers
    ranks: Places
    guarded: int
    places: Numbers | None = None


class Neighborhood(Protocol):
    """Neighbors of seeds."""

    def neighbors(self, seed: int, visit: int, skip: int, width: int) -> Neighbors:
        """Ranks skip .. skip + width - 1 of the list of a class on its visit."""

    def first_rows(self, seed: int, visit: int) -> Places:
        """Places of the rows that a hard seed's class has to give; fewer than K, or none."""


class ClassNeighborhood:
    """The classes nearest to a class.

    Guard: class b does not join a when |mu_a - mu_b| < guard (rms_a + rms_b) / 2, where the snapshot's class distance
    d_ab gives |mu_a - mu_b|^2 = d_ab^2 - rms_a^2 - rms_b^2. Two classes of the same images under two labels are about
    sqrt(1/n_a + 1/n_b) radii apart.

    Args:
        snapshot: Whose class lists are used.
        guard: In radii; 0 drops nothing.
    """

    def __init__(self, snapshot: NeighborSnapshot, guard: float) -> None:
        self._snapshot, self._guard = snapshot, guard
        self._radius, self._spread = snapshot.radius_rms, snapshot.spreads()

    def neighbors(self, seed: int, visit: int, skip: int, width: int) -> Neighbors:  # noqa: ARG002
        """Ranks skip .. skip + width - 1 of the list of a class; O(width)."""
        classes = self._snapshot.class_neighbors[seed, skip : skip + width]
        distances = self._snapshot.class_distances[seed, skip : skip + width].astype(np.float64)
        known = classes >= 0
        radii = self._radius[classes].astype(np.float64)
        squared = distances**2 - float(self._radius[seed]) ** 2 - radii**2
        limit = self._guard * (self._spread[seed] + self._spread[classes]) / 2
        close = known & (np.maximum(squared, 0) < limit**2)
        keep = np.flatnonzero(known & ~close)
        return Neighbors(classes[keep], skip + keep, int(close.sum()))

    def first_rows(self, seed: int, visit: int) -> Places:  # noqa: ARG002
        """None: all rows of a class are as good."""
        return np.empty(0, dtype=np.int64)


class RowNeighborhood:
    """The classes of the rows nearest to a row: the first one that a class gives on its visit.

    Guard: a class with a row nearer to the seed than guard x rms of the seed's class does not join it at all, since
    one of the two labels may be wrong; the list is looked at from its beginning for that, whatever `skip` is.

    Args:
        snapshot: Whose row lists are used.
        guard: In radii; 0 drops nothing.
        rows: Which row is read on which visit.
        classes: (M,) class of each row.
    """

    def __init__(self, snapshot: NeighborSnapshot, guard: float, rows: ClassRows, classes: Numbers) -> None:
        self._snapshot, self._rows, self._classes = snapshot, rows, classes
        self._limit = guard * snapshot.spreads()

    def neighbors(self, seed: int, visit: int, skip: int, width: int) -> Neighbors:
        """Ranks skip .. skip + width - 1 of the list of the seed's row; O(k + n) for a list of k, a class of n."""
        row = self._rows.places(seed, visit)[0]
        places = self._snapshot.row_negatives[row]
        classes = self._classes[places]
        close = (places >= 0) & (self._snapshot.row_negative_distances[row] < self._limit[seed])
        guarded = np.isin(classes, classes[close])
        window = np.arange(skip, min(skip + width, len(places)))
        window = window[places[window] >= 0]
        keep = window[~guarded[window]]
        return Neighbors(classes[keep], keep, len(window) - len(keep), places[keep])

    def first_rows(self, seed: int, visit: int) -> Places:
        """The seed's row and its farthest positives, K in all where so many are listed."""
        row = self._rows.places(seed, visit)[:1]
        positives = self._snapshot.row_positives[row[0]]
        return np.concatenate([row, positives[positives >= 0]])[: self._rows.per_visit]
