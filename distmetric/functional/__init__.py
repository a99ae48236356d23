"""Pure tensor mathematics of pairs: distances, blocked reductions over columns; no state, no process group."""

from distmetric.functional.distances import paired_distances, squared_distance_block
from distmetric.functional.hardest import HardestPairs, hardest_pairs
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.logsumexp import negative_logsumexp
from distmetric.functional.positives import positive_pairs

__all__ = [
    "HardestPairs",
    "JointBatch",
    "hardest_pairs",
    "negative_logsumexp",
    "paired_distances",
    "positive_pairs",
    "squared_distance_block",
]
