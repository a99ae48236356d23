"""Signs of collapse in the measurements of a step, for whoever reacts to them; what is not known is no sign."""

from __future__ import annotations

import math
from collections.abc import Mapping

POSITIVE, NEGATIVE = "train/positive_distance_mean", "train/nearest_negative_mean"
VARIANCE, NORM = "train/embedding_variance", "train/embedding_norm_mean"


def are_mixed(metrics: Mapping[str, float], ratio: float = 1.0) -> bool:
    """Whether positives are on the average at least `ratio` times as far as nearest negatives.

    Early in a training that is so in a healthy run, too.
    """
    return metrics.get(POSITIVE, math.nan) >= ratio * metrics.get(NEGATIVE, math.nan)


def relative_variance(metrics: Mapping[str, float]) -> float:
    """Variance of the embeddings over the square of their mean norm, NaN where unknown: near 0, all are one point.

    At most about 1 where norms are equal, whatever the scale of the embeddings.
    """
    norm = metrics.get(NORM, math.nan)
    return metrics.get(VARIANCE, math.nan) / norm**2 if norm != 0 else 0.0


class LargestVariance:
    """The largest variance of the embeddings so far, which a shrinking one is measured by."""

    def __init__(self) -> None:
        self.value = 0.0

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take a step's into account."""
        variance = metrics.get(VARIANCE, math.nan)
        if self.value < variance < math.inf:
            self.value = variance

    def is_far_below(self, metrics: Mapping[str, float], fraction: float) -> bool:
        """Whether the variance of a step is below a fraction of the largest."""
        return metrics.get(VARIANCE, math.nan) < fraction * self.value
