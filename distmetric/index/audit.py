"""What a whole data set's embeddings say about its labels: hardest pairs, suspected errors, near-duplicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.index.class_balls import mean_squared_within
from distmetric.index.class_statistics import ClassStatistics
from distmetric.index.pruned_search import ClassBallIndex, Effort


@dataclass(frozen=True, eq=False)
class Pairs:
    """The hardest pairs of rows of different classes, hardest first.

    Attributes:
        rows: (P,) int64.
        negatives: (P,) int64 row of another class.
        ranks: (P,) int64 1 for the nearest negative of the row, 2 for the next.
        distances: (P,) float64.
    """

    rows: Tensor
    negatives: Tensor
    ranks: Tensor
    distances: Tensor


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Rows whose neighbors agree on another class, most suspicious first; see `audit`.

    Attributes:
        rows: (E,) int64.
        labels: (E,) int64 the label that the neighbors agree on.
        neighbors: (E, m) int64 those neighbors.
        distances: (E,) float64 their mean distance.
        own_distances: (E,) float64 distance of the nearest other row of the row's own class.
        scores: (E,) float64 own distance / mean distance; above 1, inf where all neighbors are copies.
    """

    rows: Tensor
    labels: Tensor
    neighbors: Tensor
    distances: Tensor
    own_distances: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of rows of different classes that are closer than members of a class usually are, closest first.

    Attributes:
        rows: (P,) int64.
        others: (P,) int64, a larger row than that in `rows`.
        distances: (P,) float64; 0 for exact copies.
        ratios: (P,) float64 euclidean distance / smaller spread of the two classes.
    """

    rows: Tensor
    others: Tensor
    distances: Tensor
    ratios: Tensor

    @classmethod
    def of(cls, rows: Tensor, others: Tensor, distances: Tensor, ratios: Tensor, size: int) -> NearDuplicates:
        """Sort pairs by ratio, ties by row, and keep each once, whichever way round it was found.

        Args:
            rows: (P,) int64.
            others: (P,) int64.
            distances: (P,) float64.
            ratios: (P,) float64.
            size: More than any row.
        """
        low, high = torch.minimum(rows, others), torch.maximum(rows, others)
        order = (low * size + high).argsort(stable=True)
        order = order[ratios[order].argsort(stable=True)]
        order = order[_first_of_pairs(low[order], high[order], size)]
        return cls(low[order], high[order], distances[order], ratios[order])


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    Attributes:
        pairs: Hardest negatives.
        positives: (N,) int64 hardest positive of every row; -1 for the only row of a class.
        positive_distances: (N,) float64; -inf there.
        errors: Suspected label errors.
        duplicates: Near-duplicates across classes.
        effort: Of the search for negatives, which is where the work is.
    """

    pairs: Pairs
    positives: Tensor
    positive_distances: Tensor
    errors: LabelErrors
    duplicates: NearDuplicates
    effort: Effort


def audit(
    index: ClassBallIndex,
    *,
    k: int,
    top: int | None = None,
    label_neighbors: int = 3,
    duplicate_fraction: float = 0.1,
    done: Callable[[int], object] | None = None,
) -> Audit:
    """Mine all rows against all others, exactly.

    - The hardest pairs are the k nearest negatives of every row, by distance, or the `top` hardest among these, each
      pair once.
    - A row is a suspected label error if its m = `label_neighbors` nearest other rows all have one same other
      label, so that also its own class's nearest row is farther away than they are. Score: distance of that own
      row / mean distance of the m. The only row of a class is not judged, and a class of fewer than m rows accuses
      nobody.
    - Two rows of different classes are near-duplicates if their distance is at most `duplicate_fraction` times the
      spread of either class, the root mean squared distance of its members, sqrt(2 n / (n - 1)) rms; that of a class
      of one row is taken to be the median of the others. Of pairs beyond a row's k nearest negatives nothing is said.

    Args:
        index: Of all rows, of at least two classes.
        k: Nearest negatives of every row that are looked at, at least 1.
        top: Hardest pairs of all rows together; None for all k of each.
        label_neighbors: m, at least 1.
        duplicate_fraction: At least 0; with 0 only exact copies are found.
        done: Called with a number of rows whenever that many more are done; 3 N in the end.

    Returns:
        The findings, worst first; ties by row.

    Cost: that of max(k, m) hardest negatives of all rows; memory a few times N max(k, m).
    """
    queries = index.members()
    mined = index.k_hardest_negatives(queries, max(k, label_neighbors), done=done)
    hardest = index.hardest_positive(queries, done=done)
    own = index.nearest_positives(queries, 1, done=done)
    rows, distances = mined.rows, mined.distances
    return Audit(
        _pairs(rows[:, :k], distances[:, :k], top),
        hardest.rows[:, 0],
        hardest.distances[:, 0],
        _label_errors(index, rows[:, :label_neighbors], distances[:, :label_neighbors], own.distances[:, 0]),
        _duplicates(index, rows[:, :k], distances[:, :k], duplicate_fraction),
        mined.effort,
    )


def _pairs(negatives: Tensor, distances: Tensor, top: int | None) -> Pairs:
    rows, places = (negatives >= 0).nonzero(as_tuple=True)
    order = distances[rows, places].argsort(stable=True)
    rows, places = rows[order], places[order]
    others = negatives[rows, places]
    if top is not None:
        first = _first_of_pairs(rows, others, len(negatives))[:top]
        rows, places, others = rows[first], places[first], others[first]
    return Pairs(rows, others, places + 1, distances[rows, places])


def _label_errors(
    index: ClassBallIndex, neighbors: Tensor, distances: Tensor, own_distances: Tensor
) -> LabelErrors:
    labels = index.labels[neighbors.clamp_min(0)]
    agree = (labels == labels[:, :1]).all(dim=1) & (neighbors >= 0).all(dim=1)
    suspected = agree & (own_distances > distances[:, -1]) & (own_distances < torch.inf)
    rows = suspected.nonzero().squeeze(1)
    mean = distances[rows].mean(dim=1)
    scores = own_distances[rows] / mean
    order = scores.argsort(descending=True, stable=True)
    rows = rows[order]
    return LabelErrors(
        rows, labels[rows, 0], neighbors[rows], mean[order], own_distances[rows], scores[order]
    )


def _duplicates(
    index: ClassBallIndex, negatives: Tensor, distances: Tensor, fraction: float
) -> NearDuplicates:
    spread = class_spreads(index.statistics)[torch.searchsorted(index.statistics.labels, index.labels)]
    apart = (2 * distances).sqrt() if index.metric == "cosine" else distances
    smaller = torch.minimum(spread[:, None], spread[negatives.clamp_min(0)])
    rows, places = ((negatives >= 0) & (apart <= fraction * smaller)).nonzero(as_tuple=True)
    others = negatives[rows, places]
    distance, ratio = distances[rows, places], apart[rows, places] / smaller[rows, places]
    ratio[distance == 0] = 0.0
    return NearDuplicates.of(rows, others, distance, ratio, len(negatives))


def class_spreads(statistics: ClassStatistics) -> Tensor:
    """(C,) float64 root mean squared distance of two members of a class; for a class of one the median of the others.

    Without any class of two members, 0.
    """
    several = statistics.counts > 1
    spread = torch.zeros_like(statistics.radius_rms)
    spread[several] = mean_squared_within(statistics.radius_rms[several], statistics.counts[several]).sqrt()
    if bool(several.any()):
        spread[~several] = spread[several].median()
    return spread


def _first_of_pairs(first: Tensor, second: Tensor, size: int) -> Tensor:
    """Which of listed pairs is the first with those two rows, in whatever order; ascending."""
    key = torch.minimum(first, second) * size + torch.maximum(first, second)
    _, group = torch.unique(key, return_inverse=True)
    places = torch.arange(len(key), device=key.device)
    found = torch.full((int(group.max()) + 1 if len(group) else 0,), len(key), device=key.device)
    return found.scatter_reduce_(0, group, places, "amin").sort().values
