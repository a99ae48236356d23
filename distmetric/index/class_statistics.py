"""What is known of a class without looking at its members again: how many, around which point, how far from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.neighbors import queries_per_block, ranked
from distmetric.functional.distances import BLOCK_BYTES
from distmetric.functional.segments import segment_extreme, segment_sum


@dataclass(frozen=True)
class ClassStatistics:
    """Counts, centroids and radii of the classes that occur, ascending by label.

    rho_y = |y - mu_c| for each member y of class c, mu_c the mean of its members.

    Args:
        labels: (C,) int64 label of each class.
        counts: (C,) int64 members.
        centroids: (C, D) float64 mu.
        radius_max: (C,) float64 largest rho.
        radius_min: (C,) float64 smallest rho.
        radius_rms: (C,) float64 root of the mean of rho^2; 0 for one member, as the others.
    """

    labels: Tensor
    counts: Tensor
    centroids: Tensor
    radius_max: Tensor
    radius_min: Tensor
    radius_rms: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def class_statistics(embeddings: Tensor, labels: Tensor) -> ClassStatistics:
    """Count, center and measure every class.

    mu_c = mean_y y; rms_c^2 = mean_y |y - mu_c|^2; by direct differences in float64, so that a class of equal
    single-precision rows has radius 0 exactly.

    Args:
        embeddings: (N, D) floating-point rows, finite.
        labels: (N,) integers, any values; on the same device.

    Returns:
        Statistics of the C labels that occur, on the device of the embeddings; C = 0 for no rows.

    Cost: O(N D) and a sort of the labels; memory C D and one block.
    """
    assert labels.shape == embeddings.shape[:1], (embeddings.shape, labels.shape)
    occurring, places, counts = torch.unique(labels.long(), return_inverse=True, return_counts=True)
    rows_per_block = _rows_per_block(embeddings)
    centroids = torch.zeros(
        len(occurring), embeddings.shape[1], dtype=torch.float64, device=embeddings.device
    )
    for start in range(0, len(embeddings), rows_per_block):
        block = slice(start, start + rows_per_block)
        centroids.index_add_(0, places[block], embeddings[block].double())
    centroids /= counts[:, None]
    radii = distances_to_own(embeddings, centroids, places)
    size = len(occurring)
    return ClassStatistics(
        occurring,
        counts,
        centroids,
        segment_extreme(radii, places, size, largest=True),
        segment_extreme(radii, places, size, largest=False),
        (segment_sum(radii.square(), places, size) / counts).sqrt_(),
    )


def distances_to_own(embeddings: Tensor, points: Tensor, places: Tensor) -> Tensor:
    """Distance of every row to the point listed for it, by direct differences.

    Args:
        embeddings: (N, D).
        points: (P, D) float64.
        places: (N,) int64, 0 <= place < P.

    Returns:
        (N,) float64. Cost: O(N D), one block of memory.
    """
    found = torch.empty(len(embeddings), dtype=torch.float64, device=embeddings.device)
    rows_per_block = _rows_per_block(embeddings)
    for start in range(0, len(embeddings), rows_per_block):
        block = slice(start, start + rows_per_block)
        found[block] = (embeddings[block].double() - points[places[block]]).norm(dim=1)
    return found


def nearest_classes(
    statistics: ClassStatistics, k: int, block_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest other classes of every class, by root mean squared distance between their members.

    distance(a, b) = sqrt(mean_{x in a, y in b} |x - y|^2) = sqrt(|mu_a - mu_b|^2 + rms_a^2 + rms_b^2), exactly

    Args:
        statistics: Of C classes.
        k: At least 1; may exceed C - 1.
        block_bytes: Memory for one block of classes; by default what suits the device.

    Returns:
        (C, k) int64 places in `statistics.labels`, nearest first, ties by place, -1 where there are no more; and
        (C, k) float64 distances, inf at -1.

    Cost: C * C * D multiplications; memory `block_bytes` and two copies of the centroids.

    Source: the class distance of the hierarchical triplet loss (Ge et al., ECCV 2018), which needs N * N * D there.
    """
    assert k >= 1, k
    centroids, rms = statistics.centroids, statistics.radius_rms
    size, found = len(statistics), min(k, len(statistics) - 1)
    places = torch.full((size, k), -1, dtype=torch.int64, device=centroids.device)
    distances = torch.full((size, k), torch.inf, dtype=torch.float64, device=centroids.device)
    if found < 1:
        return places, distances
    # One more coordinate, rms_b in the gallery and 0 in the query, makes the order a euclidean one.
    points = torch.cat([centroids, rms[:, None]], dim=1)
    gallery = build_gallery(points, found)
    budget = block_bytes or 4 * BLOCK_BYTES.get(points.device.type, BLOCK_BYTES["cpu"])
    step = queries_per_block(gallery, found, budget)
    for start in range(0, size, step):
        block = slice(start, min(start + step, size))
        own = torch.arange(block.start, block.stop, device=points.device)
        queries = torch.nn.functional.pad(centroids[block], (0, 1))
        places[block, :found] = ranked(gallery, queries, own, found, budget)
    rows_per_block = _rows_per_block(points, found)
    for start in range(0, size, rows_per_block):
        block = slice(start, start + rows_per_block)
        there = places[block, :found]
        apart = (centroids[block, None] - centroids[there]).square().sum(dim=2)
        distances[block, :found] = (apart + rms[there].square() + rms[block, None].square()).sqrt_()
    # Library sums may round a tie apart the wrong way; the order is that of sums in one fixed order.
    distances[:, :found] = distances[:, :found].cummax(dim=1).values
    return places, distances


def _rows_per_block(rows: Tensor, times: int = 1) -> int:
    """How many rows, `times` over, fill a block in float64, with their differences beside them."""
    budget = BLOCK_BYTES.get(rows.device.type, BLOCK_BYTES["cpu"])
    return max(1, budget // (16 * times * max(1, rows.shape[1])))
