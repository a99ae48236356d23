"""Neighbors in the whole data set: search, class balls, exact pruned mining, and snapshots of what an index knew."""

from distmetric.index.class_statistics import ClassStatistics, class_statistics, nearest_classes
from distmetric.index.config import SearchConfig
from distmetric.index.neighbor_index import NeighborIndex, Neighbors
from distmetric.index.pruned_search import ClassBallIndex
from distmetric.index.sharded import ShardedIndex
from distmetric.index.snapshot import NeighborSnapshot

__all__ = [
    "ClassBallIndex",
    "ClassStatistics",
    "NeighborIndex",
    "NeighborSnapshot",
    "Neighbors",
    "SearchConfig",
    "ShardedIndex",
    "class_statistics",
    "nearest_classes",
]
