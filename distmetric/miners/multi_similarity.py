"""Pairs that are informative beside the hardest pair of the other kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.index_lists import collected
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.tuples import Tuples
from distmetric.miners.base import Miner


@dataclass(kw_only=True, frozen=True)
class MultiSimilarityMinerConfig:
    """Settings of `MultiSimilarityMiner`."""

    name: Literal["multi_similarity"] = "multi_similarity"
    epsilon: float = 0.1
    """How much easier than the hardest pair of the other kind a pair may be, in units of distance."""
    distance: Distance = "cosine"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""


class MultiSimilarityMiner(Miner):
    """Positives farther than the nearest negative, and negatives nearer than the farthest positive, up to epsilon.

    Formula: keep the pair (a, p) if D_ap > min_n D_an - epsilon, and (a, n) if D_an < max_p D_ap + epsilon.

    Args:
        epsilon: In units of distance, which for "cosine" are those of the similarity.
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.

    Cost: B N D and one search through every block; memory two blocks, and as much for the pairs as there are of them:
    few in a trained state, up to B N negative ones when positives lie as far as negatives.

    Corner cases: an anchor without positive or without negative has no pair.

    Source: Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting for Deep Metric
    Learning", CVPR 2019.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        *,
        distance: Distance = "cosine",
        normalize_embeddings: bool = True,
    ) -> None:
        super().__init__(distance, normalize_embeddings)
        self.epsilon = epsilon

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; pairs."""
        blocks = SortedPairs(batch, self.distance).blocks()
        return Tuples.of(collected(map(self._pairs, blocks), 4, batch.labels))

    def _pairs(self, block: PairBlock) -> tuple[Tensor, ...]:
        positives = block.positives_of(block.distances, -torch.inf)
        farthest = _row_maximum(positives)
        negatives = block.fill_same_(block.distances, torch.inf)
        # No positive is a farthest one at -inf, and no negative a nearest one at inf: either keeps nothing.
        row, place = (positives > negatives.amin(1, keepdim=True) - self.epsilon).nonzero().unbind(1)
        other, column = (negatives < farthest + self.epsilon).nonzero().unbind(1)
        positive = block.columns[place + block.band.start]
        return block.rows[row], positive, block.rows[other], block.columns[column]

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"epsilon={self.epsilon}"


def _row_maximum(values: Tensor) -> Tensor:
    """(b, 1); -inf where there is no column."""
    return values.amax(1, keepdim=True) if values.shape[1] else values.new_full((len(values), 1), -torch.inf)
