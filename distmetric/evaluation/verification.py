"""1:1 verification: of one class or not, by a threshold on the distance; exact, of all pairs or of a list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.calibration import FINE_BINS, calibrate, fine_rate
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels, as_tensor
from distmetric.evaluation.pair_counts import Add, Counts, PairCounts, count_distances, identity
from distmetric.evaluation.pair_distances import pair_table
from distmetric.evaluation.pair_ordering import area_under_roc
from distmetric.evaluation.roc import (
    RocCurve,
    allowed_accepts,
    balanced_accuracy,
    best_cut,
    check_far,
    equal_error_rate,
    errors_cross,
    rate_name,
    roc_curve,
    roc_places,
)

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, eq=False)
class VerificationMetrics:
    """How well a threshold on the distance tells pairs of one class from pairs of two.

    Attributes:
        tar_at_far: true accept rate by false accept rate; without rates finer than one pair.
        thresholds: the distance up to which pairs are accepted, by false accept rate.
        equal_error_rate: where the rate of false accepts equals that of false rejects, 0..1.
        roc_auc: probability that a positive is nearer than a negative, ties one half.
        accuracy: mean over folds of (TAR + 1 - FAR) / 2 at the threshold that is best on the other folds; None where
            some fold lacks pairs of either kind.
        accuracy_std: standard deviation over folds (of the population).
        roc: points to draw.
        num_positives: pairs of the same class.
        num_negatives: pairs of different classes.
    """

    tar_at_far: dict[float, float]
    thresholds: dict[float, float]
    equal_error_rate: float
    roc_auc: float
    accuracy: float | None
    accuracy_std: float | None
    roc: RocCurve
    num_positives: int
    num_negatives: int

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats: `tar_at_far_1e-3`, `threshold_at_far_1e-3`, `equal_error_rate`, `roc_auc`, ..."""
        folds = {"accuracy": self.accuracy, "accuracy_std": self.accuracy_std}
        return {
            **{f"tar_at_far_{rate_name(far)}": tar for far, tar in self.tar_at_far.items()},
            **{f"threshold_at_far_{rate_name(far)}": value for far, value in self.thresholds.items()},
            "equal_error_rate": self.equal_error_rate,
            "roc_auc": self.roc_auc,
            **{name: value for name, value in folds.items() if value is not None},
            "num_positive_pairs": float(self.num_positives),
            "num_negative_pairs": float(self.num_negatives),
        }


@torch.no_grad()
def verify(
    embeddings: Array,
    labels: Array,
    *,
    fars: Sequence[float] = FARS,
    folds: int = 10,
    seed: int = 0,
    own: slice | None = None,
    add: Add = identity,
    block_bytes: int | None = None,
) -> VerificationMetrics:
    """Verify all pairs i < j of a set.

    A pair is accepted if its distance is at most the threshold d: FAR(d) = #{negatives <= d} / #negatives,
    TAR(d) = #{positives <= d} / #positives.

    - TAR at a FAR of f: at the largest distance d of any pair with FAR(d) <= f. Pairs at equal distance are accepted
      together, so that ties can only lower the TAR, never raise the FAR.
    - Equal error rate: where the line through the points (FAR(d), 1 - TAR(d)) of all distances d meets the diagonal.
    - Accuracy: classes are divided into folds by `seed`. For each fold the threshold is sought, among evenly spaced
      ones (2 / 65,536 apart for unit rows; of equally good neighbors the middle), that is best on the pairs of classes
      of other folds, and judged on the pairs within the fold: it never saw their classes. As there are far more
      negatives than positives, the rates of both count one half: (TAR + 1 - FAR) / 2.

    Args:
        embeddings: (N, D) real numbers, all of them on every worker.
        labels: (N,) integer classes.
        fars: false accept rates, each between 0 and 1; those finer than 1 / #negatives are left out.
        folds: at least 2, or 0 for no accuracy.
        seed: key of the division into folds.
        own: the anchors this worker takes, a slice of 0..N; None for all.
        add: sums an int64 tensor over all workers; each worker calls it equally often.
        block_bytes: memory for a block of distances, in bytes; None for what suits the device.

    Returns:
        The metrics, the same to the last bit for any block size, number of threads and division among workers.

    Raises:
        InputError: when embeddings are not finite or not (N, D), no class has two rows, only one class is there, or a
            setting is out of range.

    Cost: three passes of N^2 / 2 x D multiplications in float64 and one more for every 8 million positives; N x (D + 2)
    float64 values and at most about 250 MiB.

    Distances are those of rows rounded by `on_grid`, within about 1e-7 of the largest those of the rows themselves.
    Reference for the folds: Huang et al., Labeled Faces in the Wild, 2007 (view 2), where no class is in two folds.
    """
    wanted = _checked_fars(fars)
    _check_folds(folds)
    rows = as_embeddings(embeddings)
    classes = as_labels(labels, rows)
    table = pair_table(rows, classes, _class_folds(classes, folds, seed))
    rate, _ = fine_rate(table, FINE_BINS)
    counts = count_distances(table, rate, own=own, add=add, block_bytes=block_bytes)
    P, Q = table.num_positives, table.num_negatives
    found = calibrate(counts, [far for far in wanted if allowed_accepts(far, Q) > 0], [errors_cross(P, Q)])
    crossing = counts.find([errors_cross(P, Q)])[0]
    places = roc_places(counts.counts)
    accuracies = _fold_accuracies(counts)
    return VerificationMetrics(
        tar_at_far={one.target_far: one.tar for one in found},
        thresholds={one.target_far: one.threshold for one in found},
        equal_error_rate=equal_error_rate(crossing.below, crossing.upto, P, Q),
        roc_auc=area_under_roc(counts),
        accuracy=float(np.mean(accuracies)) if accuracies else None,
        accuracy_std=float(np.std(accuracies)) if accuracies else None,
        roc=roc_curve(counts.counts, places, counts.last_of_bins(places)),
        num_positives=P,
        num_negatives=Q,
    )


def verify_pairs(
    distances: Array, same: Array, *, fars: Sequence[float] = FARS, folds: int | Array = 10
) -> VerificationMetrics:
    """Verify a list of pairs, as Labeled Faces in the Wild has it.

    The measures are those of `verify`, but for the accuracy: its thresholds are midway between neighboring distances of
    the other folds.

    Args:
        distances: (P,) real numbers, the smaller, the more alike.
        same: (P,) booleans, or 0 and 1: are the two of one class?
        fars: false accept rates, each between 0 and 1; those finer than 1 / #negatives are left out.
        folds: (P,) integers, the fold of each pair; or how many, 2 or more, in which case the first fold is the first
            part of the positives and the first part of the negatives, in the order of the list (in lists of
            consecutive folds with as many of either kind these are theirs); 0 for no accuracy.

    Returns:
        The metrics.

    Raises:
        InputError: when a distance is not finite, lengths differ, there are no pairs of one class or none of two, or a
            setting is out of range.

    Cost: one sort of the distances, and one pass for each fold.
    """
    wanted = _checked_fars(fars)
    values, positive = _checked_pairs(distances, same)
    accuracies = _listed_accuracies(values, positive, _listed_folds(folds, positive))
    distinct, place = np.unique(values, return_inverse=True)
    counts = _counts_at(place, positive, len(distinct))
    P, Q = (int(count) for count in counts.sum(axis=1))
    upto = counts.cumsum(axis=1)
    accepted = {
        far: int((upto[1] <= allowed).sum()) for far in wanted if (allowed := allowed_accepts(far, Q)) > 0
    }
    crossing = int(errors_cross(P, Q)(upto).argmax())
    below, at = upto[:, crossing] - counts[:, crossing], upto[:, crossing]
    nearer = float(((2 * upto[0] - counts[0]) / 2 * counts[1]).sum())
    places = roc_places(counts)
    return VerificationMetrics(
        tar_at_far={far: float(counts[0, :number].sum() / P) for far, number in accepted.items()},
        thresholds={
            far: float(distinct[number - 1]) if number else math.nextafter(float(distinct[0]), -math.inf)
            for far, number in accepted.items()
        },
        equal_error_rate=equal_error_rate((int(below[0]), int(below[1])), (int(at[0]), int(at[1])), P, Q),
        roc_auc=nearer / (P * Q),
        accuracy=float(np.mean(accuracies)) if accuracies else None,
        accuracy_std=float(np.std(accuracies)) if accuracies else None,
        roc=roc_curve(counts, places, distinct[places].tolist()),
        num_positives=P,
        num_negatives=Q,
    )


def _checked_fars(fars: Sequence[float]) -> list[float]:
    for far in fars:
        check_far(far, "each of fars")
    return list(fars)


def _class_folds(classes: Tensor, folds: int, seed: int) -> Tensor | None:
    """(N,) fold of each row, or None where some fold could not have pairs of either kind.

    Classes are shuffled and dealt out in turn, those with two rows or more first.
    """
    _, numbers, sizes = torch.unique(classes, return_inverse=True, return_counts=True)
    several = (sizes > 1).cpu()
    if folds == 0 or int(several.sum()) < folds or len(sizes) < 2 * folds:
        return None
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    order = torch.cat([order[several[order]], order[~several[order]]])
    dealt = torch.empty(len(sizes), dtype=torch.int64)
    dealt[order] = torch.arange(len(sizes)) % folds
    return dealt.to(classes.device)[numbers]


def _fold_accuracies(counts: PairCounts) -> list[float]:
    accuracies = []
    for inside, across in zip(counts.inside_folds, counts.across_folds, strict=True):
        accepted = best_cut(counts.counts - inside - across)
        accuracies.append(balanced_accuracy(inside, accepted))
    return accuracies


def _checked_pairs(distances: Array, same: Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, flags = as_tensor(distances), as_tensor(same)
    if values.ndim != 1 or values.is_complex():
        raise InputError(f"distances must be real numbers of shape (P,), got {tuple(values.shape)}")
    if flags.shape != values.shape:
        raise InputError(
            f"same must have shape {tuple(values.shape)}, one for each distance, got {tuple(flags.shape)}"
        )
    if not bool(values.isfinite().all()):
        first = int((~values.isfinite()).nonzero()[0])
        raise InputError(f"distance {first} is not finite; check the embeddings of that pair")
    if flags.is_floating_point() or not bool(((flags == 0) | (flags == 1)).all()):
        raise InputError(f"same must be booleans or 0 and 1, got {flags.dtype}")
    positive = flags.bool().cpu().numpy()
    if positive.all() or not positive.any():
        raise InputError(
            f"{int(positive.sum())} of {len(positive)} pairs are of one class; give pairs of both kinds"
        )
    return values.double().cpu().numpy(), positive


def _listed_folds(folds: int | Array, positive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(P,) fold numbers."""
    if not isinstance(folds, int):
        parts = as_tensor(folds)
        if parts.shape != positive.shape or parts.is_floating_point():
            raise InputError(f"folds must be one integer for each of {len(positive)} pairs, or their number")
        return parts.cpu().numpy().astype(np.int64)
    _check_folds(folds)
    parts_of = np.zeros(len(positive), dtype=np.int64)
    for kind in (positive, ~positive):
        number = int(kind.sum())
        parts_of[kind] = np.arange(number) * max(folds, 1) // number
    return parts_of


def _check_folds(folds: int) -> None:
    if folds < 0 or folds == 1:
        raise InputError(f"folds must be at least 2, or 0 for no accuracy, got {folds}")


def _listed_accuracies(
    values: NDArray[np.float64], positive: NDArray[np.bool_], parts: NDArray[np.int64]
) -> list[float]:
    """The accuracy on each fold; none at all where some fold, or all others, lack pairs of either kind."""
    numbers = np.unique(parts)
    for kind in (positive, ~positive):
        if len(numbers) < 2 or len(np.unique(parts[kind])) < len(numbers):
            return []
    accuracies = []
    for number in numbers:
        test = parts == number
        distances, place = np.unique(values[~test], return_inverse=True)
        accepted = best_cut(_counts_at(place, positive[~test], len(distances)))
        ends = np.concatenate([[-np.inf], distances, [np.inf]])
        nearer = values[test] <= (ends[accepted] + ends[accepted + 1]) / 2
        tar, far = nearer[positive[test]].mean(), nearer[~positive[test]].mean()
        accuracies.append(float((tar + 1.0 - far) / 2))
    return accuracies


def _counts_at(place: NDArray[np.intp], positive: NDArray[np.bool_], size: int) -> Counts:
    return np.stack([np.bincount(place[kind], minlength=size) for kind in (positive, ~positive)])
