"""Pure tensor mathematics of pairs: distances, blocked sums over columns, mining; no state, no process group."""

from distmetric.functional.distances import Distance, paired_distances, unit_length
from distmetric.functional.hardest import HardestPairs, hardest_pairs
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.nearest_negatives import negative_logsumexp
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.row_sums import Row, RowSums, row_values, sum_rows
from distmetric.functional.tuples import Tuples, all_positive_pairs
from distmetric.functional.within_identity import identity_extremes

__all__ = [
    "Distance",
    "HardestPairs",
    "JointBatch",
    "PairBlock",
    "Row",
    "RowSums",
    "SortedPairs",
    "Tuples",
    "all_positive_pairs",
    "hardest_pairs",
    "identity_extremes",
    "listed_distances",
    "negative_logsumexp",
    "paired_distances",
    "row_values",
    "sum_rows",
    "unit_length",
]
