"""What counts of pairs by ascending distance say: ROC curve, equal error rate, best threshold.

Counts are (2, n) numbers of pairs, first of one class (P positives in all), then of two (Q negatives).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.pair_counts import Counts, Query

_POINTS = 200


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Some hundred points of a ROC curve, each exact.

    Attributes:
        thresholds: (n,) float64 distances, ascending; -inf for the first point, where nothing is accepted.
        far: (n,) float64 false accept rates, from 0 to 1.
        tar: (n,) float64 true accept rates, from 0 to 1.
    """

    thresholds: Tensor
    far: Tensor
    tar: Tensor


def check_far(far: float, name: str) -> None:
    """Refuse what is no false accept rate.

    Raises:
        InputError: unless 0 < far < 1.
    """
    if not 0.0 < far < 1.0:
        raise InputError(f"{name} must be a fraction between 0 and 1, got {far}")


def allowed_accepts(far: float, negatives: int) -> int:
    """How many of some negatives a false accept rate allows to be accepted, the rate read as the decimal it is."""
    return int(Fraction(str(far)) * negatives)


def rate_name(rate: float) -> str:
    """A rate as it stands in the name of a metric: 0.001 is `1e-3`, 0.025 is `2.5e-2`."""
    digits, exponent = f"{rate:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def roc_places(counts: Counts) -> NDArray[np.intp]:
    """Places on the axis of the counts that draw the curve: evenly spaced in TAR, and in the logarithm of FAR."""
    P, Q = counts.sum(axis=1)
    tar, far = counts.cumsum(axis=1) / np.array([[P], [Q]])
    by_far = np.searchsorted(far, np.geomspace(1 / Q, 1, _POINTS).clip(max=1))
    by_tar = np.searchsorted(tar, np.linspace(1 / P, 1, _POINTS).clip(max=1))
    last = int(np.flatnonzero(counts.sum(axis=0))[-1])
    return np.unique([*by_far, *by_tar, last])


def roc_curve(counts: Counts, places: NDArray[np.intp], thresholds: list[float]) -> RocCurve:
    """The points of the curve at some places, with the distances there, after the one where nothing is accepted."""
    P, Q = counts.sum(axis=1)
    tar, far = counts.cumsum(axis=1)[:, places] / np.array([[P], [Q]])
    return RocCurve(
        torch.tensor([-torch.inf, *thresholds], dtype=torch.float64),
        torch.from_numpy(np.append(0.0, far)),
        torch.from_numpy(np.append(0.0, tar)),
    )


def errors_cross(P: int, Q: int) -> Query:
    """The query for the distance from which on there are at least as many false accepts as false rejects, as rates."""
    return lambda upto: upto[1] / Q >= 1.0 - upto[0] / P


def equal_error_rate(below: tuple[int, int], upto: tuple[int, int], P: int, Q: int) -> float:
    """Where a line meets FAR = FRR: from the rates of the pairs below some distance to those of the pairs up to it."""
    far, frr = below[1] / Q, 1.0 - below[0] / P
    gap = frr - far
    closed = gap - (1.0 - upto[0] / P - upto[1] / Q)
    return far + gap / closed * (upto[1] / Q - far) if gap > 0 else far


def best_cut(counts: Counts) -> int:
    """How many of the n smallest distances are best accepted: at the largest TAR - FAR.

    Of neighbors that are equally good the middle one, of several groups of these that of the smallest distances.
    """
    P, Q = counts.sum(axis=1)
    upto = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
    gain = upto[0] / P - upto[1] / Q
    first = int(gain.argmax())
    worse = np.flatnonzero(gain[first:] < gain[first])
    return first + ((int(worse[0]) if len(worse) else len(gain) - first) - 1) // 2


def balanced_accuracy(counts: Counts, accepted: int) -> float:
    """(TAR + 1 - FAR) / 2 where so many of the smallest distances are accepted."""
    P, Q = counts.sum(axis=1)
    positives, negatives = counts[:, :accepted].sum(axis=1)
    return float((positives / P + 1.0 - negatives / Q) / 2)
