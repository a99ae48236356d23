"""What the index knew at one moment: immutable, versioned, small enough to hand around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmetric.errors import InputError
from distmetric.index.arrays import read_arrays, write_arrays

FORMAT = 1
STALENESS = (0.0, 0.5, 0.9, 1.0)
"""Quantiles of the rows' ages that a snapshot tells."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


def _no_rows() -> Integers:
    return np.empty((0, 0), dtype=np.int32)


def _no_distances() -> Floats:
    return np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighborSnapshot:
    """Neighbors of classes, and of rows where asked for, as of one version of the index.

    Classes are numbered 0..C-1 as in training, rows 0..M-1 by their place in the training split.

    Args:
        version: 1 for the first snapshot of a run, one more for each that follows.
        step: Steps that the newest of the weights had done which its embeddings come from.
        seconds: Time to build it.
        coverage: Share of the rows that were embedded, 0..1.
        staleness: (4,) float64 ages of the embedded rows in steps before `step`, quantiles 0, 0.5, 0.9 and 1.
        backend: Who searched, on which device, exact or with which recall; for the log.
        class_counts: (C,) int32 embedded rows of each class; 0: nothing is known of it.
        centroids: (C, D) float32 mean embedding of each class.
        radius_max: (C,) float32 largest distance of a member from the centroid.
        radius_min: (C,) float32 smallest.
        radius_rms: (C,) float32 root mean square.
        class_neighbors: (C, k) int32 nearest other classes by root mean squared distance between their members,
            nearest first, ties by number; -1 where there are no more.
        class_distances: (C, k) float32 those distances, sqrt(|mu_a - mu_b|^2 + rms_a^2 + rms_b^2); inf at -1.
        row_negatives: (M, k) int32 nearest rows of other classes; -1 where none; (0, 0) without row neighbors.
        row_negative_distances: (M, k) float32.
        row_positives: (M, p) int32 farthest rows of the same class, farthest first; -1 where none.
        row_positive_distances: (M, p) float32; -inf at -1.
    """

    version: int
    step: int
    seconds: float
    coverage: float
    staleness: NDArray[np.float64]
    backend: str
    class_counts: Integers
    centroids: Floats
    radius_max: Floats
    radius_min: Floats
    radius_rms: Floats
    class_neighbors: Integers
    class_distances: Floats
    row_negatives: Integers = field(default_factory=_no_rows)
    row_negative_distances: Floats = field(default_factory=_no_distances)
    row_positives: Integers = field(default_factory=_no_rows)
    row_positive_distances: Floats = field(default_factory=_no_distances)

    def __post_init__(self) -> None:
        """Make the arrays read-only."""
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_counts)

    @property
    def has_rows(self) -> bool:
        """Whether it lists neighbors of rows."""
        return len(self.row_negatives) > 0

    def spreads(self) -> NDArray[np.float64]:
        """(C,) root mean square radius of each class, and the median of the others where it has a single row."""
        spread = self.radius_rms.astype(np.float64)
        several = self.class_counts > 1
        spread[~several] = np.median(spread[several]) if several.any() else 0.0
        return spread

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def save(self, location: str) -> None:
        """Write it as one Arrow file.

        Raises:
            ResourceError: If the file cannot be written.
        """
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        meta = {name: value for name, value in vars(self).items() if name not in arrays}
        write_arrays(location, arrays, {"format": FORMAT, **meta})

    @classmethod
    def load(cls, location: str) -> NeighborSnapshot:
        """Read what `save` wrote.

        Raises:
            InputError: If the file is not there, incomplete, or of another format.
        """
        arrays, meta = read_arrays(location)
        values: Mapping[str, Any] = {**meta, **arrays}
        names = {one.name for one in fields(cls)}
        if meta.get("format") != FORMAT or names - set(values):
            raise InputError(f"{location} is no snapshot of format {FORMAT}: use the version that wrote it")
        return cls(**{name: values[name] for name in names})
