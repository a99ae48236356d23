"""What is known of a class without looking at its members again: how many, around which point, how far from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.functional.distances import block_bytes as block_bytes_of
from distmetric.functional.segments import segment_extreme, segment_sum
from distmetric.index.config import SearchConfig
from distmetric.index.labeled_search import LabeledSearch


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


class NearestClasses(NamedTuple):
    """The nearest other classes of each of C classes.

    Attributes:
        places: (C, k) int64 places in the statistics, nearest first, ties by place, -1 where there are no more.
        distances: (C, k) float64; inf at -1.
        searched_by: The name of the searcher; empty where there was nothing to search.
    """

    places: Tensor
    distances: Tensor
    searched_by: str


def nearest_classes(
    statistics: ClassStatistics,
    k: int,
    search: SearchConfig | None = None,
    *,
    threads: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> NearestClasses:
    """The k nearest other classes of every class, by root mean squared distance between their members.

    distance(a, b) = sqrt(mean_{x in a, y in b} |x - y|^2) = sqrt(|mu_a - mu_b|^2 + rms_a^2 + rms_b^2), exactly

    Args:
        statistics: Of C classes.
        k: At least 1; may exceed C - 1.
        search: How to search; None for the defaults, which are exact up to 200,000 classes.
        threads: CPU threads of FAISS; None leaves its own setting.
        block_bytes: Memory for one block of classes.

    Returns:
        What was found.

    Cost: a search of C queries among C points of D + 1 dimensions, see `build_searcher`; memory `block_bytes` and a
    few copies of the centroids.

    Source: the class distance of the hierarchical triplet loss (Ge et al., ECCV 2018), which needs N * N * D there.
    """
    assert k >= 1, k
    centroids, rms = statistics.centroids, statistics.radius_rms
    size = len(statistics)
    places = torch.full((size, k), -1, dtype=torch.int64, device=centroids.device)
    distances = torch.full((size, k), torch.inf, dtype=torch.float64, device=centroids.device)
    if size < 2:
        return NearestClasses(places, distances, "")
    # One more coordinate, rms_b in the rows and 0 in the queries, makes the order a euclidean one.
    points, own = torch.cat([centroids, rms[:, None]], dim=1), torch.arange(size, device=centroids.device)
    nearest = LabeledSearch(points, own, search, threads=threads, block_bytes=block_bytes)
    for block in torch.split(own, max(1, block_bytes // (100 * k))):
        queries = torch.nn.functional.pad(centroids[block], (0, 1))
        found = nearest.search(queries, k, exclude_rows=block)
        places[block] = found.rows
        distances[block] = (found.squares + rms[block, None].square()).sqrt_()
    return NearestClasses(places, distances, nearest.searcher.name)


def _rows_per_block(rows: Tensor) -> int:
    """How many rows fill a block in float64, with their differences beside them."""
    return max(1, block_bytes_of(rows.device) // (16 * max(1, rows.shape[1])))
