"""Class-balanced batches: P classes with K rows each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distmetric.samplers.batch_sampler import Rows, check_same_settings
from distmetric.samplers.reading_order import ORDER, ClassRows


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
    - Of a class, each pass reads the next K rows, as `ClassRows` orders them: every row is seen before any is seen
      again, up to the remainder n % K.
    - A class with fewer than K rows gives all of them, once each; the classes next in the pass's order fill the
      batch up to P K rows (the last of them may be cut short). A class of one row can be a negative only.

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
        self.classes_per_batch = classes_per_batch
        self._classes = ClassRows(rows, labels, samples_per_class, seed)
        self._classes.check_batch(classes_per_batch)
        self._pass: tuple[int, Rows] = (-1, np.empty(0, dtype=np.int64))

    @property
    def samples_per_class(self) -> int:
        """K."""
        return self._classes.per_visit

    @property
    def batch_size(self) -> int:
        """Rows of a global batch, P K."""
        return self.classes_per_batch * self.samples_per_class

    def is_planned(self, step: int) -> bool:  # noqa: ARG002
        """See `BatchSampler.is_planned`: all of them are."""
        return True

    def batch(self, step: int) -> Rows:
        """Catalog rows of the global batch of a step, grouped by class; equal on all ranks."""
        visit, position = divmod(step, self._classes.num_classes // self.classes_per_batch)
        order = np.roll(self._class_order(visit), -position * self.classes_per_batch)
        full = int(np.searchsorted(np.cumsum(self._classes.gives[order]), self.batch_size)) + 1
        return self._classes.rows(order[:full], visit)[: self.batch_size]

    def state_dict(self, step: int) -> dict[str, Any]:  # noqa: ARG002
        """What the plan depends on beside the data; it is the same for all steps."""
        return {**self._settings(), "seed": self._classes.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue another sampler's plan.

        Raises:
            ConfigError: If that plan had other batches than this sampler's settings ask for.
        """
        check_same_settings(self._settings(), state)
        self._classes.seed = int(state["seed"])
        self._pass = (-1, np.empty(0, dtype=np.int64))

    def _settings(self) -> dict[str, Any]:
        return {
            "name": "pk",
            "order": ORDER,
            "classes_per_batch": self.classes_per_batch,
            "samples_per_class": self.samples_per_class,
        }

    def _class_order(self, visit: int) -> Rows:
        if self._pass[0] != visit:
            order = self._classes.generator(visit).permutation(self._classes.num_classes)
            self._pass = (visit, order)
        return self._pass[1]
