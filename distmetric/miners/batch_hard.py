"""The hardest triplet of every anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmetric.functional.distances import Distance
from distmetric.functional.hardest import hardest_pairs
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.tuples import Tuples
from distmetric.miners.base import Miner


@dataclass(kw_only=True, frozen=True)
class BatchHardMinerConfig:
    """Settings of `BatchHardMiner`."""

    name: Literal["batch_hard"] = "batch_hard"
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""


class BatchHardMiner(Miner):
    """One triplet per anchor: its farthest positive and its nearest negative.

    Formula: p(a) = argmax_{y_c = y_a, c != a} D_ac, n(a) = argmin_{y_c != y_a} D_ac.

    Args:
        distance: D; the euclidean distance and its square choose the same.
        normalize_embeddings: Whether to compare unit vectors.

    Cost: B N D; memory two blocks, and O(B) for the triplets.

    Corner cases: an anchor without positive or without negative has no triplet; ties go to one of the tied.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737.
    """

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; at most B triplets, by ascending anchor."""
        positive, negative, valid = hardest_pairs(batch, self.distance)
        anchors = valid.nonzero()[:, 0]
        return Tuples.of((anchors, positive[anchors], negative[anchors]))
