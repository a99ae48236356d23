"""Clusters of embeddings by k-means, and how well they are the classes; streamed, the same on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.distance_grid import as_anchors, on_grid
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.evaluation.partitions import (
    adjusted_mutual_information,
    normalized_mutual_information,
    pairwise_f1,
    purity,
)
from distmetric.functional.counter_random import uniform
from distmetric.functional.segments import segment_sum


@dataclass(frozen=True)
class ClusteringMetrics:
    """How well clusters that know nothing of the labels are the classes.

    Attributes:
        nmi: normalized mutual information, arithmetic mean, 0..1.
        ami: adjusted mutual information, at most 1; 0 is chance.
        f1: of "same cluster" as an answer to "same class?", over all pairs, 0..1.
        precision: of the same answer.
        recall: of the same answer.
        purity: fraction of the rows of the most frequent class of their cluster, 0..1.
        num_clusters: clusters that have rows.
        iterations: rounds of k-means that were needed.
    """

    nmi: float
    ami: float
    f1: float
    precision: float
    recall: float
    purity: float
    num_clusters: int
    iterations: int

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats: `nmi`, `ami`, `f1`, ..."""
        return {
            "nmi": self.nmi,
            "ami": self.ami,
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "purity": self.purity,
            "num_clusters": float(self.num_clusters),
            "iterations": float(self.iterations),
        }


@dataclass(frozen=True, eq=False)
class Clusters:
    """What k-means found.

    Attributes:
        numbers: (N,) int64 cluster of each row.
        iterations: rounds until no row changed its cluster, or as many as were allowed.
    """

    numbers: Tensor
    iterations: int


def cluster(
    embeddings: Array,
    labels: Array,
    *,
    num_clusters: int | None = None,
    seed: int = 0,
    iterations: int = 100,
    block_bytes: int = BLOCK_BYTES,
) -> ClusteringMetrics:
    """Cluster embeddings by k-means and compare the clusters with the classes.

    Args:
        embeddings: (N, D) real numbers.
        labels: (N,) integer classes, two or more.
        num_clusters: K; None for as many as there are classes.
        seed: key of the first centers.
        iterations: rounds of k-means at most.
        block_bytes: memory for a block of distances, in bytes.

    Returns:
        The metrics.

    Raises:
        InputError: when embeddings are not finite or not (N, D), there is a single class, or K is not from 1 to N.

    Cost: that of `k_means`; see `adjusted_mutual_information`.
    """
    rows = as_embeddings(embeddings)
    classes = as_labels(labels, rows)
    count = len(torch.unique(classes))
    if count < 2:
        raise InputError(
            f"clusters are compared with 2 classes or more, got {count}; give rows of other classes"
        )
    found = k_means(
        rows,
        count if num_clusters is None else num_clusters,
        seed=seed,
        iterations=iterations,
        block_bytes=block_bytes,
    )
    f1, precision, recall = pairwise_f1(classes, found.numbers)
    return ClusteringMetrics(
        nmi=normalized_mutual_information(classes, found.numbers),
        ami=adjusted_mutual_information(classes, found.numbers),
        f1=f1,
        precision=precision,
        recall=recall,
        purity=purity(classes, found.numbers),
        num_clusters=len(torch.unique(found.numbers)),
        iterations=found.iterations,
    )


@torch.no_grad()
def k_means(
    embeddings: Array,
    num_clusters: int,
    *,
    seed: int = 0,
    iterations: int = 100,
    block_bytes: int = BLOCK_BYTES,
) -> Clusters:
    """Lloyd's k-means from centers drawn by k-means++.

    Rows and centers are points of a grid (see `on_grid`; a mean is rounded to it), so that all distances are exact and
    the clusters are the same for any block size, number of threads and device. Ties go to the lower cluster. A cluster
    that loses its last row begins anew at the row that is farthest from its center, several at several such rows.

    Args:
        embeddings: (N, D) real numbers.
        num_clusters: K, 1 to N.
        seed: key of the first centers.
        iterations: rounds at most, 1 or more.
        block_bytes: memory for a block of distances, in bytes.

    Returns:
        The clusters. Fewer than K have rows if there are fewer than K different rows.

    Raises:
        InputError: when embeddings are not finite or not (N, D), or a setting is out of range.

    Cost: N x K x D multiplications in float64 for the first centers, and as many in each round; `block_bytes` and
    (N + K) x (D + 2) float64 values.

    Source: Arthur and Vassilvitskii, k-means++: The advantages of careful seeding, SODA 2007.
    """
    rows = as_embeddings(embeddings)
    if not 1 <= num_clusters <= len(rows):
        raise InputError(
            f"num_clusters must be from 1 to {len(rows)}, the number of rows, got {num_clusters}"
        )
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, got {iterations}")
    points = on_grid(rows).points
    centers = points[_first_centers(points, num_clusters, seed)]
    numbers = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    for done in range(1, iterations + 1):
        nearest, squared = _assigned(points, centers, block_bytes)
        if torch.equal(nearest, numbers):
            return Clusters(numbers, done)
        numbers = nearest
        centers = _means(points, numbers, squared, num_clusters)
    return Clusters(numbers, iterations)


def _first_centers(points: Tensor, count: int, seed: int) -> Tensor:
    """(K,) rows: the first by lot, each other with a probability by its squared distance to the nearest one before."""
    # Sums of whole numbers are the same in any order; N of them are to stay below 2^63.
    shift = max(0, int(points[:, -1].max()).bit_length() + 2 + len(points).bit_length() - 62)
    lots = uniform(seed, 0, torch.zeros(1, dtype=torch.int64), count).squeeze(0).tolist()
    chosen = [int(lots[0] * len(points))]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    for lot in lots[1:]:
        torch.minimum(nearest, (points @ as_anchors(points[chosen[-1:]]).T).squeeze(1), out=nearest)
        upto = (nearest * 2.0**-shift).ceil_().long().cumsum(0)
        total = int(upto[-1])
        # Without a row that is not a center already, any will do.
        place = (
            torch.searchsorted(upto, min(int(lot * total), total - 1), right=True) if total else len(chosen)
        )
        chosen.append(int(place))
    return torch.tensor(chosen, device=points.device)


def _assigned(points: Tensor, centers: Tensor, block_bytes: int) -> tuple[Tensor, Tensor]:
    """(N,) nearest center of each point, the first of several, and (N,) its squared distance."""
    numbers = torch.empty(len(points), dtype=torch.int64, device=points.device)
    squared = torch.empty(len(points), dtype=torch.float64, device=points.device)
    size = max(1, block_bytes // (8 * len(centers) + 16 * points.shape[1]))
    for start in range(0, len(points), size):
        block = slice(start, start + size)
        distances = as_anchors(points[block]) @ centers.T
        # argmin gives the first of equal ones.
        numbers[block] = distances.argmin(dim=1)
        squared[block] = distances.gather(1, numbers[block].unsqueeze(1)).squeeze(1)
    return numbers, squared


def _means(points: Tensor, numbers: Tensor, squared: Tensor, count: int) -> Tensor:
    """(K, D + 2) points of the grid nearest to the means of the clusters; for empty ones the farthest rows."""
    sizes = torch.bincount(numbers, minlength=count)
    sums = segment_sum(points, numbers, count)
    centers = (sums / sizes.clamp_min(1).unsqueeze(1)).round_()
    empty = (sizes == 0).nonzero().squeeze(1)
    if len(empty):
        centers[empty] = points[squared.argsort(descending=True, stable=True)[: len(empty)]]
    centers[:, -2] = 1.0
    centers[:, -1] = centers[:, :-2].square().sum(dim=1)
    return centers
