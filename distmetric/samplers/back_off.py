"""Less hardness when training shows that it is too much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distmetric.functional.checks import check_at_least
from distmetric.samplers.collapse_signs import NEGATIVE, POSITIVE, VARIANCE, LargestVariance, are_mixed


@dataclass(kw_only=True, frozen=True)
class BackOffConfig:
    """Settings of `BackOff`."""

    enabled: bool = True
    """Whether hardness is reduced when training shows signs of collapse."""
    distance_ratio: float = 1.0
    """Sign one: the mean positive distance is at least this many times the mean nearest negative distance."""
    variance_fraction: float = 0.2
    """Sign two: the variance of the embeddings is below this fraction of the largest so far; 0 looks away."""
    patience: int = 20
    """Steps in a row with sign one before hardness is reduced, and steps at least between two reductions."""
    factor: float = 0.5
    """What hardness is multiplied by."""
    lowest: float = 0.05
    """Hardness is never reduced below this."""
    recovery_steps: int = 400
    """Steps without any sign that it takes from no hardness to all of it, in equal parts."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        if not 0 < self.distance_ratio < math.inf:
            raise ValueError(f"distance_ratio={self.distance_ratio} is wrong: give a number above 0")
        if not 0 <= self.variance_fraction < 1:
            raise ValueError(
                f"variance_fraction={self.variance_fraction} is wrong: 0 <= variance_fraction < 1"
            )
        for key in ("factor", "lowest"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"{key}={getattr(self, key)} is wrong: 0 < {key} <= 1")
        check_at_least(1, patience=self.patience, recovery_steps=self.recovery_steps)


class BackOff:
    """A level in (0, 1] that hardness is multiplied by: it falls with signs of collapse and rises without.

    Signs, after the warm-up: positives on the average as far as nearest negatives, for `patience` steps in a row; or
    embeddings whose variance has fallen below a fraction of its maximum. With either, level <- max(lowest, factor
    level), once in `patience` steps. In a step without either, level <- min(1, level + 1 / recovery_steps). What was
    not measured in a step is no sign.

    Args:
        config: The numbers.
        warmup_steps: Steps in which nothing is reduced: the batches are random, and so are the embeddings at first.

    Source: the plateau signals of Hermans, Beyer, Leibe, arXiv 1703.07737; the rule is our own.
    """

    READS = (POSITIVE, NEGATIVE, VARIANCE)
    """The measurements that it looks at."""

    def __init__(self, config: BackOffConfig, warmup_steps: int = 0) -> None:
        self.config, self.warmup_steps = config, warmup_steps
        self.level = 1.0
        self._streak = 0
        self._next_reduction = 0
        self._largest_variance = LargestVariance()

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at the measurements of a step; steps come in order, every one once.

        Args:
            step: Counted from 0.
            metrics: Those of `READS` that are known.
        """
        if not self.config.enabled:
            return
        self._largest_variance.observe(metrics)
        if step < self.warmup_steps:
            return
        mixed = are_mixed(metrics, self.config.distance_ratio)
        shrunk = self._largest_variance.is_far_below(metrics, self.config.variance_fraction)
        self._streak = self._streak + 1 if mixed else 0
        if (shrunk or self._streak >= self.config.patience) and step >= self._next_reduction:
            self.level = max(min(self.level, self.config.lowest), self.level * self.config.factor)
            self._next_reduction = step + self.config.patience
        elif not (mixed or shrunk):
            self.level = min(1.0, self.level + 1 / self.config.recovery_steps)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain numbers."""
        return {
            "level": self.level,
            "streak": self._streak,
            "next_reduction": self._next_reduction,
            "largest_variance": self._largest_variance.value,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stood."""
        self.level = float(state["level"]) if self.config.enabled else 1.0
        self._streak = int(state["streak"])
        self._next_reduction = int(state["next_reduction"])
        self._largest_variance.value = float(state["largest_variance"])
