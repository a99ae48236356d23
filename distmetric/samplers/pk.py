"""Class-balanced batches: P classes with K rows each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distmetric.errors import ConfigError

Rows = NDArray[np.int64]


@dataclass(kw_only=True, frozen=True)
class PKSamplerConfig:
    """Settings of `PKSampler`."""

    name: Literal["pk"] = "pk"
    classes_per_batch: int = 64
    """P: how many classes meet in one global batch."""
    samples_per_class: int = 4
    """K: how many rows of each class; at least 2, so that there are positives."""


class PKSampler:
    """Plan global batches of P classes x K rows, as a pure function of (seed, step).

    The plan does not depend on the number of ranks, needs no history, and so resumes at any step in O(1).

    - Classes come in passes. A pass is a fresh random order of all C classes, cut into C // P batches, so every
      class is met once a pass (the C % P last ones of a pass wait for the next, in another order).
    - A class of n rows is read in a fresh random order, K at a time, and shuffled again once fewer than K are
      left: every row is seen before any is seen again, up to the remainder n % K.
    - A class with fewer than K rows gives all of them, once each, so that no row is its own positive at distance
      0; the classes next in the pass's order fill the batch up to P K rows (the last of them may be cut short). A
      class of one row can be a negative only.

    Args:
        rows: (M,) int64 catalog rows to draw from.
        labels: (M,) int64 label of each of them.
        classes_per_batch: P.
        samples_per_class: K.
        seed: Key of the plan.

    Raises:
        ConfigError: If no batch of P K rows can be formed, naming the setting to change.

    Cost: a batch takes O(P n log n) for classes of n rows, and a pass O(C log C) once.
    """

    def __init__(
        self, rows: Rows, labels: Rows, classes_per_batch: int, samples_per_class: int, seed: int
    ) -> None:
        self.classes_per_batch, self.samples_per_class, self.seed = classes_per_batch, samples_per_class, seed
        order = np.lexsort((rows, labels))
        self._rows = np.asarray(rows, dtype=np.int64)[order]
        _, self._starts, self._counts = np.unique(labels[order], return_index=True, return_counts=True)
        self._check()
        self._pass: tuple[int, Rows] = (-1, np.empty(0, dtype=np.int64))

    @property
    def batch_size(self) -> int:
        """Rows of a global batch, P K."""
        return self.classes_per_batch * self.samples_per_class

    def batch(self, step: int) -> Rows:
        """Catalog rows of the global batch of a step, grouped by class; equal on all ranks."""
        visit, position = divmod(step, len(self._counts) // self.classes_per_batch)
        order = np.roll(self._class_order(visit), -position * self.classes_per_batch)
        gives = np.minimum(self._counts[order], self.samples_per_class)
        full = int(np.searchsorted(np.cumsum(gives), self.batch_size)) + 1
        chosen = [self._class_rows(int(c), visit) for c in order[:full]]
        return np.concatenate(chosen)[: self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """What the plan depends on beside the data; there is no position, a step is all it takes."""
        return {
            "seed": self.seed,
            "classes_per_batch": self.classes_per_batch,
            "samples_per_class": self.samples_per_class,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue another sampler's plan.

        Raises:
            ConfigError: If that plan had other batches than this sampler's settings ask for.
        """
        for key in ("classes_per_batch", "samples_per_class"):
            if state[key] != getattr(self, key):
                raise ConfigError(
                    f"sampler.{key}={getattr(self, key)} differs from the checkpoint's {state[key]}: "
                    f"set sampler.{key}={state[key]} or start a new run"
                )
        self.seed = int(state["seed"])
        self._pass = (-1, np.empty(0, dtype=np.int64))

    def _class_order(self, visit: int) -> Rows:
        if self._pass[0] != visit:
            self._pass = (visit, self._generator(0, visit).permutation(len(self._counts)))
        return self._pass[1]

    def _class_rows(self, label: int, visit: int) -> Rows:
        count, take = int(self._counts[label]), self.samples_per_class
        cycle, slot = divmod(visit, max(1, count // take))
        order = self._generator(1 + label, cycle).permutation(count)[slot * take : (slot + 1) * take]
        rows: Rows = self._rows[self._starts[label] + order]
        return rows

    def _generator(self, stream: int, counter: int) -> np.random.Generator:
        # Philox is a counter-based generator: a key and a counter give the same numbers whatever was drawn before.
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, counter]))

    def _check(self) -> None:
        p, k, classes = self.classes_per_batch, self.samples_per_class, len(self._counts)
        if k < 2:
            raise ConfigError(f"sampler.samples_per_class={k} leaves no positives: set it to 2 or more")
        if p < 2:
            raise ConfigError(f"sampler.classes_per_batch={p} leaves no negatives: set it to 2 or more")
        if p > classes:
            raise ConfigError(
                f"sampler.classes_per_batch={p} but the training split has {classes} classes: "
                f"set sampler.classes_per_batch={classes} or less"
            )
        if k > self._counts.max():
            raise ConfigError(
                f"sampler.samples_per_class={k} but the largest training class has {self._counts.max()} rows: "
                f"set sampler.samples_per_class={self._counts.max()} or less"
            )
        available = int(np.minimum(self._counts, k).sum())
        if available < self.batch_size:
            raise ConfigError(
                f"sampler.classes_per_batch={p} x sampler.samples_per_class={k} needs {self.batch_size} rows but "
                f"the training classes can give {available}: set sampler.classes_per_batch={available // k} or less"
            )
