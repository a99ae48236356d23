"""The distance up to which two embeddings are called the same class, and how far apart all pairs lie; exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.evaluation.pair_counts import (
    Add,
    Found,
    PairCounts,
    Query,
    at_least,
    count_distances,
    identity,
)
from distmetric.evaluation.pair_distances import PairTable, pair_table
from distmetric.evaluation.roc import allowed_accepts, check_far

FINE_BINS = 1 << 16
"""Bins that distances are counted in first, over [0, 2] for rows of length one."""


@dataclass(frozen=True)
class Calibration:
    """A distance threshold: two embeddings are of the same class if their distance is at most this.

    Attributes:
        threshold: euclidean distance. Negative where even a distance of 0 accepts too many.
        target_far: the fraction of pairs of different classes that were allowed to be called the same, 0..1.
        far: the fraction that is (false accept rate), at most `target_far`.
        tar: the fraction of pairs of the same class that is called the same (true accept rate), 0..1.
        positives: pairs of the same class it was measured on.
        negatives: pairs of different classes.
    """

    threshold: float
    target_far: float
    far: float
    tar: float
    positives: int
    negatives: int

    def to_dict(self) -> dict[str, float | int]:
        """The attributes by name, as they are stored with a model."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` gave."""
        return cls(
            threshold=float(values["threshold"]),
            target_far=float(values["target_far"]),
            far=float(values["far"]),
            tar=float(values["tar"]),
            positives=int(values["positives"]),
            negatives=int(values["negatives"]),
        )


@dataclass(frozen=True, eq=False)
class DistanceHistogram:
    """How many pairs there are by distance.

    Attributes:
        edges: (bins + 1,) float64, ascending, of equal distance. A bin holds the distances from its lower edge to below
            its upper edge; the last bin holds all from its lower edge.
        positive: (bins,) int64 pairs of the same class.
        negative: (bins,) int64 pairs of different classes.
    """

    edges: Tensor
    positive: Tensor
    negative: Tensor

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """Plain lists by name."""
        return {
            "edges": self.edges.tolist(),
            "positive": self.positive.tolist(),
            "negative": self.negative.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistanceHistogram:
        """The histogram that `to_dict` gave."""
        return cls(
            torch.tensor(values["edges"], dtype=torch.float64),
            torch.tensor(values["positive"], dtype=torch.int64),
            torch.tensor(values["negative"], dtype=torch.int64),
        )


@dataclass(frozen=True, eq=False)
class PairSurvey:
    """What the distances of all pairs say.

    Attributes:
        calibration: the threshold for the wanted false accept rate.
        histogram: pairs by distance.
    """

    calibration: Calibration
    histogram: DistanceHistogram


@torch.no_grad()
def survey_pairs(
    embeddings: Array,
    labels: Array,
    *,
    target_far: float = 1e-3,
    bins: int = 64,
    own: slice | None = None,
    add: Add = identity,
    block_bytes: int | None = None,
) -> PairSurvey:
    """Calibrate a distance threshold on all pairs i < j, and count the pairs by distance.

    threshold = max { d : d the distance of some pair, #{negatives with distance <= d} <= target_far * #negatives }

    Args:
        embeddings: (N, D) real numbers, all of them on every worker.
        labels: (N,) integer classes.
        target_far: allowed fraction of pairs of different classes at most this far apart, between 0 and 1.
        bins: bins of the histogram, 1 to 65,536: over [0, 2] for rows of length one, else over the distances there are.
        own: the anchors this worker takes, a slice of 0..N (each anchor has N / 2 of the pairs); None for all.
        add: sums an int64 tensor over all workers; each worker calls it equally often.
        block_bytes: memory for a block of distances, in bytes; None for what suits the device.

    Returns:
        Calibration and histogram, the same to the last bit for any block size, number of threads, order of the rows and
        division of the anchors among workers.

    Raises:
        InputError: when embeddings are not finite or not (N, D), no class has two rows, or only one class is there, or
            a setting is out of range.

    Cost: twice N^2 / 2 x D multiplications in float64 (up to four times where many thousands of pairs have one
    distance); N x (D + 2) float64 values, blocks, and at most 64 MiB of pairs near the threshold.

    Pairs at equal distance are accepted together or not at all. Where no pair may be accepted, be it that the nearest
    is a negative or that too many are equally near, the threshold is the next float64 below the smallest distance.
    Distances are those of rows rounded by `on_grid`, within about 1e-7 of the largest those of the rows themselves.
    """
    rows = as_embeddings(embeddings)
    table = pair_table(rows, as_labels(labels, rows))
    check_far(target_far, "target_far")
    if not 1 <= bins <= FINE_BINS:
        raise InputError(f"bins must be from 1 to {FINE_BINS}, got {bins}")
    rate, fine = fine_rate(table, bins)
    counts = count_distances(table, rate, own=own, add=add, block_bytes=block_bytes)
    return PairSurvey(calibrate(counts, [target_far])[0], _histogram(counts, bins, fine))


def fine_rate(table: PairTable, bins: int, fine_bins: int = FINE_BINS) -> tuple[float, int]:
    """Bins for each unit of the table, and how many of these bins make one of `bins` over [0, 2] (unit rows)."""
    fine = -(-fine_bins // bins)
    if table.grid.are_unit_rows:
        return bins * fine / 2.0 * table.grid.unit, fine
    return bins * fine / (math.sqrt(table.grid.farthest) + 1.0), fine


def calibrate(counts: PairCounts, fars: Sequence[float], others: Sequence[Query] = ()) -> list[Calibration]:
    """The thresholds for some false accept rates, see `survey_pairs`; `others` will be asked for next, too."""
    positives, negatives = counts.table.num_positives, counts.table.num_negatives
    allowed = [allowed_accepts(far, negatives) for far in fars]
    beyond = [at_least(number + 1, same=False) for number in allowed]
    # The nearest pair before a bin is often the answer; asking at once saves another pass over the pairs.
    hints = [at_least(number) for query in beyond if (number := counts.pairs_before_bin_of(query)) > 0]
    cuts = counts.find([*beyond, *hints, *others])[: len(fars)]
    last = iter(counts.find([at_least(sum(cut.below)) for cut in cuts if sum(cut.below) > 0]))
    return [
        Calibration(
            threshold=_threshold(counts.table, cut, next(last) if sum(cut.below) > 0 else None),
            target_far=far,
            far=cut.below[1] / negatives,
            tar=cut.below[0] / positives,
            positives=positives,
            negatives=negatives,
        )
        for far, cut in zip(fars, cuts, strict=True)
    ]


def _threshold(table: PairTable, cut: Found, last: Found | None) -> float:
    if last is None:
        return math.nextafter(table.grid.distance(cut.squared), -math.inf)
    return table.grid.distance(last.squared)


def _histogram(counts: PairCounts, bins: int, fine: int) -> DistanceHistogram:
    """Join the fine bins; beyond [0, 2] of unit rows lies what rounding makes of opposite ones."""
    used = int(np.flatnonzero(counts.counts.sum(axis=0))[-1]) + 1
    if not counts.table.grid.are_unit_rows:
        fine = -(-used // bins)
    joined = np.zeros((2, bins * fine), dtype=np.int64)
    inside = min(used, bins * fine)
    joined[:, :inside] = counts.counts[:, :inside]
    joined[:, -1] += counts.counts[:, inside:].sum(axis=1)
    positive, negative = torch.from_numpy(joined.reshape(2, bins, fine).sum(axis=2))
    edges = torch.arange(bins + 1, dtype=torch.float64) * (fine * counts.table.grid.unit / counts.rate)
    return DistanceHistogram(edges, positive, negative)
