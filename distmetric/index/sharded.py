"""Several indexes that answer as one: merged neighbors and merged class statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array
from distmetric.index.class_statistics import ClassStatistics
from distmetric.index.neighbor_index import Neighbors, labels_of_nearest
from distmetric.index.torch_search import nearest_first_order


class IndexShard(Protocol):
    """What is asked of a slice of the rows; `NeighborIndex` is one."""

    def __len__(self) -> int:
        """Members."""

    @property
    def statistics(self) -> ClassStatistics:
        """Statistics of its members alone."""

    def search(
        self,
        queries: Array,
        k: int,
        *,
        exclude_ids: Array | None = None,
        exclude_labels: Array | None = None,
    ) -> Neighbors:
        """Its k nearest members; see `NeighborIndex.search`."""

    def radii(self, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Largest and smallest distance of its members from given centers; see `NeighborIndex.radii`."""


class ShardedIndex:
    """Shards that hold disjoint rows, of one metric and with ids unique over all of them, searched as one index.

    Args:
        shards: One or more, some may be empty. Whole classes or any other slices of the rows.

    Cost of a search: that of each shard, and a sort of S k candidates per query. Exact if all shards are.
    """

    def __init__(self, shards: Sequence[IndexShard]) -> None:
        if not shards:
            raise InputError("a sharded index needs one shard or more")
        self.shards = list(shards)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def search(
        self,
        queries: Array,
        k: int,
        *,
        exclude_ids: Array | None = None,
        exclude_labels: Array | None = None,
    ) -> Neighbors:
        """Find the k nearest members of all shards; arguments, result and ties are those of `NeighborIndex`.

        Any of the k nearest of all is one of the k nearest of its shard; squared distances come from each
        shard unrounded, so that the merged order is the order of one index.
        """
        found = [
            shard.search(queries, k, exclude_ids=exclude_ids, exclude_labels=exclude_labels)
            for shard in self.shards
        ]
        ids, squares = (
            torch.cat([getattr(one, name) for one in found], dim=1) for name in ("ids", "squares")
        )
        labels = torch.cat([one.labels for one in found], dim=1)
        distances = torch.cat([one.distances for one in found], dim=1)
        order = nearest_first_order(ids, squares)[:, :k]
        return Neighbors(*(column.gather(1, order) for column in (ids, distances, labels, squares)))

    @cached_property
    def statistics(self) -> ClassStatistics:
        """Counts, centroids and radii over all shards; a class that lies in one of them keeps what that one says.

        mu = sum_s n_s mu_s / n
        rms^2 = sum_s n_s (rms_s^2 + |mu_s - mu|^2) / n

        Largest and smallest radius follow from no such sum: classes spread over shards are measured again there,
        O(N D) at most.
        """
        parts = [shard.statistics for shard in self.shards]
        occurring = torch.cat([part.labels for part in parts])
        labels, place, spread = torch.unique(occurring, return_inverse=True, return_counts=True)
        counts = torch.cat([part.counts for part in parts])
        means = torch.cat([part.centroids for part in parts])
        total = counts.new_zeros(len(labels)).index_add_(0, place, counts)
        share = (counts / total[place])[:, None]
        centroids = means.new_zeros(len(labels), means.shape[1]).index_add_(0, place, share * means)
        rms = torch.cat([part.radius_rms for part in parts])
        moments = rms.square() + (means - centroids[place]).square().sum(dim=1)
        merged_rms = rms.new_zeros(len(labels)).index_add_(0, place, share[:, 0] * moments).sqrt_()
        largest, smallest = torch.empty_like(merged_rms), torch.empty_like(merged_rms)
        whole = spread[place] == 1
        for target, column in (
            (centroids, means),
            (merged_rms, rms),
            (largest, torch.cat([part.radius_max for part in parts])),
            (smallest, torch.cat([part.radius_min for part in parts])),
        ):
            target[place[whole]] = column[whole]
        split = (spread > 1).nonzero().squeeze(1)
        if len(split):
            radii = [shard.radii(labels[split], centroids[split]) for shard in self.shards]
            largest[split] = torch.stack([far for far, _ in radii]).amax(dim=0)
            smallest[split] = torch.stack([near for _, near in radii]).amin(dim=0)
        return ClassStatistics(labels, total, centroids, largest, smallest, merged_rms)

    def nearest_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest other classes of every class over all shards; see `NeighborIndex.nearest_classes`."""
        return labels_of_nearest(self.statistics, k)
