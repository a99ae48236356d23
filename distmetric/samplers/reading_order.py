"""In which order the rows of each class are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distmetric.errors import ConfigError

Rows = NDArray[np.int64]


class ClassRows:
    """The rows of every class, read K at a time, as a pure function of (seed, class, visit).

    A class of n rows is read in a random order, K at a visit, and shuffled again once fewer than K are left: every row
    is seen before any is seen again, up to the remainder n % K. A class with fewer than K rows gives all of them, once
    each, so that no row is its own positive at distance 0.

    Classes are numbered 0..C-1 by ascending label, rows by their place in what is handed in.

    Args:
        rows: (M,) int64 catalog rows, each once.
        labels: (M,) int64 label of each of them.
        per_visit: K.
        seed: Key of the orders.

    Cost: O(M log M) once, O(n) for a visit.
    """

    def __init__(self, rows: Rows, labels: Rows, per_visit: int, seed: int) -> None:
        self.per_visit, self.seed = per_visit, seed
        self.catalog_rows = np.asarray(rows, dtype=np.int64)
        self._places = np.lexsort((rows, labels))
        _, self._starts, self.counts = np.unique(labels[self._places], return_index=True, return_counts=True)
        self.gives: Rows = np.minimum(self.counts, per_visit)
        """(C,) rows of each class in one visit, min(n, K)."""

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)

    def places(self, label: int, visit: int) -> Rows:
        """Places of the rows that a class gives on a visit, counted from 0; min(n, K) of them, in reading order."""
        count, take = int(self.counts[label]), self.per_visit
        cycle, slot = divmod(visit, max(1, count // take))
        order = self.generator(1 + label, cycle).permutation(count)[slot * take : (slot + 1) * take]
        places: Rows = self._places[self._starts[label] + order]
        return places

    def rows(self, label: int, visit: int) -> Rows:
        """Catalog rows at these places."""
        rows: Rows = self.catalog_rows[self.places(label, visit)]
        return rows

    def classes(self) -> NDArray[np.int32]:
        """(M,) class of the row at each place."""
        classes = np.empty(len(self._places), dtype=np.int32)
        classes[self._places] = np.repeat(np.arange(self.num_classes, dtype=np.int32), self.counts)
        return classes

    def generator(self, stream: int, counter: int, purpose: int = 0) -> np.random.Generator:
        """Random numbers of their own for every combination; stream 0 is free, 1 + c is class c's."""
        # Philox is a counter-based generator: a key and a counter give the same numbers whatever was drawn before.
        return np.random.Generator(
            np.random.Philox(key=[self.seed, stream], counter=[0, 0, purpose, counter])
        )

    def check_batch(self, classes_per_batch: int) -> None:
        """Check that batches of P classes x K rows can be formed.

        Raises:
            ConfigError: If not, naming the setting to change.
        """
        p, k, classes = classes_per_batch, self.per_visit, self.num_classes
        if k < 2:
            raise ConfigError(f"sampler.samples_per_class={k} leaves no positives: set it to 2 or more")
        if p < 2:
            raise ConfigError(f"sampler.classes_per_batch={p} leaves no negatives: set it to 2 or more")
        if p > classes:
            raise ConfigError(
                f"sampler.classes_per_batch={p} but the training split has {classes} classes: "
                f"set sampler.classes_per_batch={classes} or less"
            )
        if k > self.counts.max():
            raise ConfigError(
                f"sampler.samples_per_class={k} but the largest training class has {self.counts.max()} rows: "
                f"set sampler.samples_per_class={self.counts.max()} or less"
            )
        available = int(self.gives.sum())
        if available < p * k:
            raise ConfigError(
                f"sampler.classes_per_batch={p} x sampler.samples_per_class={k} needs {p * k} rows but "
                f"the training classes can give {available}: set sampler.classes_per_batch={available // k} or less"
            )
