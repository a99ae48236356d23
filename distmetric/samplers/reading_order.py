"""In which order the rows of each class are read."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from distmetric.errors import ConfigError
from distmetric.functional.counter_random import derived

Rows = NDArray[np.int64]

ORDER = 2
"""Number of the way in which rows are ordered; a change of it changes what a seed stands for."""

_MEMBER = (1 << 32) - 1  # where a row's number in its class stands in a key


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

    Cost: O(M log M) once, O(n log n) for a visit of a class of n rows.
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

    def places(self, classes: ArrayLike, visits: ArrayLike) -> Rows:
        """Places of the rows that classes give on their visits.

        Args:
            classes: (P,) or one.
            visits: (P,) or one, counted from 0.

        Returns:
            Those of the first class, then of the second ...; min(n, K) of each, in reading order.
        """
        classes = np.atleast_1d(np.asarray(classes, dtype=np.int64))
        counts, takes = self.counts[classes], self.gives[classes]
        cycles, slots = np.divmod(np.asarray(visits, dtype=np.int64), np.maximum(1, counts // self.per_visit))
        keys = self._keys(classes, cycles, counts)
        firsts = np.cumsum(counts) - counts
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            keys[first : first + count].sort()
        members = keys[_runs(firsts + slots * self.per_visit, takes)] & _MEMBER
        places: Rows = self._places[np.repeat(self._starts[classes], takes) + members]
        return places

    def _keys(self, classes: Rows, cycles: Rows, counts: Rows) -> Rows:
        """(sum n,) a random number for each row of each class in its upper half, and its number there in the lower."""
        streams = derived(torch.tensor(self.seed), torch.from_numpy(classes))
        streams = derived(streams, torch.from_numpy(np.broadcast_to(cycles, counts.shape).copy()))
        members = torch.from_numpy(_runs(np.zeros_like(counts), counts))
        keys = derived(streams.repeat_interleave(torch.from_numpy(counts)), members + 1)
        # Equal numbers, which are rare, are told apart by what is below: the order is the same on every machine.
        return keys.bitwise_and_(~_MEMBER).bitwise_or_(members).numpy()

    def rows(self, classes: ArrayLike, visits: ArrayLike) -> Rows:
        """Catalog rows at these places."""
        rows: Rows = self.catalog_rows[self.places(classes, visits)]
        return rows

    def classes(self) -> NDArray[np.int32]:
        """(M,) class of the row at each place."""
        classes = np.empty(len(self._places), dtype=np.int32)
        classes[self._places] = np.repeat(np.arange(self.num_classes, dtype=np.int32), self.counts)
        return classes

    def generator(self, counter: int, purpose: int = 0) -> np.random.Generator:
        """Random numbers of their own for every combination."""
        # Philox is a counter-based generator: a key and a counter give the same numbers whatever was drawn before.
        return np.random.Generator(np.random.Philox(key=[self.seed, 0], counter=[0, 0, purpose, counter]))

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


def _runs(firsts: Rows, lengths: Rows) -> Rows:
    """first, first + 1, ... first + length - 1 of each run, one run after the other."""
    return np.repeat(firsts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
