"""For every positive pair the nearest negative beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.triplet_rows import nearest_beyond
from distmetric.functional.tuples import Tuples
from distmetric.miners.base import Miner


@dataclass(kw_only=True, frozen=True)
class SemiHardMinerConfig:
    """Settings of `SemiHardMiner`."""

    name: Literal["semi_hard"] = "semi_hard"
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""


class SemiHardMiner(Miner):
    """One triplet per positive pair: the nearest negative farther than the positive, or else the farthest of all.

    Formula: n(a, p) = argmin_{n: D_an > D_ap} D_an if there is such an n, argmax_n D_an otherwise.

    Args:
        distance: D; the euclidean distance and its square choose the same.
        normalize_embeddings: Whether to compare unit vectors.

    Cost: B N D + B K N; memory two blocks, and O(B K) for the triplets. All semi-hard triplets of a margin, not only
    the nearest, are `TripletMarginMiner(margin, "semihard")`'s.

    Corner cases: an anchor without positive or without negative has no triplet; ties go to one of the tied.

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", arXiv 1503.03832, in the form of TensorFlow Addons.
    """

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; one triplet for each of the at most B (K - 1) positive pairs."""
        return Tuples.of(nearest_beyond(batch, self.distance))
