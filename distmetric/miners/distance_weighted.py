"""Negatives drawn evenly over distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.column_draws import WeightedDraws
from distmetric.functional.index_lists import collected
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.tuples import Tuples
from distmetric.miners.base import RandomMiner


@dataclass(kw_only=True, frozen=True)
class DistanceWeightedMinerConfig:
    """Settings of `DistanceWeightedMiner`."""

    name: Literal["distance_weighted"] = "distance_weighted"
    cutoff: float = 0.5
    """Distance below which negatives are drawn as if they were this far: the nearest would always win."""
    nonzero_loss_cutoff: float = 1.4
    """Distance from which on negatives are not drawn: they would hardly push."""

    def __post_init__(self) -> None:
        """Check the distances.

        Raises:
            ValueError: If they are out of range or order.
        """
        _check(self.cutoff, self.nonzero_loss_cutoff)


def _check(cutoff: float, nonzero_loss_cutoff: float) -> None:
    if not 0 < cutoff < nonzero_loss_cutoff < math.inf:
        raise ValueError(
            f"cutoff={cutoff} and nonzero_loss_cutoff={nonzero_loss_cutoff} are wrong: "
            "give distances above 0, the smaller one first"
        )


class DistanceWeightedMiner(RandomMiner):
    """For every positive pair a negative, drawn so that all distances are about equally likely.

    Formula: P(n | a) ~ 1 / q(max(D_an, cutoff)) where D_an < nonzero_loss_cutoff, else 0; D is the distance of unit
    vectors, and q(d) ~ d^(D-2) (1 - d^2/4)^((D-3)/2) how often two random ones are d apart in D dimensions.

    Args:
        cutoff: Below it the probability no longer rises.
        nonzero_loss_cutoff: From it on it is 0.
        seed: Key of the draws.

    Cost: B N D, two logarithms and an exponential for each pair, and passes over int64; memory five blocks, and O(B K)
    for the triplets.

    Corner cases: embeddings are always compared at length one. An anchor without positive, or without negative nearer
    than nonzero_loss_cutoff, has no triplet. Two negatives whose probabilities differ by more than 2^40 are not both
    drawn. pytorch-metric-learning's class of this name draws positives too, as many as there are, with replacement.

    Source: Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", arXiv 1706.07567.
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, *, seed: int = 0) -> None:
        super().__init__("squared_euclidean", normalize_embeddings=True, seed=seed)
        _check(cutoff, nonzero_loss_cutoff)
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; triplets, at most one for each of the B (K - 1) positive pairs."""
        blocks, draws = SortedPairs(batch, self.distance).blocks(with_gradient=True), WeightedDraws()
        return Tuples.of(
            collected((self._triplets(batch, block, draws) for block in blocks), 3, batch.labels)
        )

    def _triplets(self, batch: JointBatch, block: PairBlock, draws: WeightedDraws) -> tuple[Tensor, ...]:
        place, exists = block.same_places()
        numbers = self.numbers(batch, block, place.shape[1])
        log_weights = self._log_weights(block, batch.anchors.shape[1])
        negatives, has_negative = draws.draw(log_weights, block, numbers, block.distances)
        is_wanted = exists & block.positive.gather(1, place) & has_negative[:, None]
        row, draw = is_wanted.nonzero().unbind(1)
        return block.rows[row], block.columns[place[row, draw] + block.band.start], negatives[row, draw]

    def _log_weights(self, block: PairBlock, dim: int) -> Tensor:
        """(b, N) logarithms of the probabilities of negatives, up to a constant: 0 for the largest of each anchor."""
        squares, limit = block.distances, min(self.nonzero_loss_cutoff, 2.0) ** 2
        # 0, or -inf from the limit on: arithmetic, because filling by a mask takes longer than a logarithm.
        too_far = torch.threshold_(torch.neg(squares, out=block.gradient), -limit, -torch.inf).add_(squares)
        squares.clamp_(self.cutoff**2, limit * (1 - torch.finfo(squares.dtype).eps))
        result = log_density(squares, dim, out=block.scratch).neg_().add_(too_far)
        block.fill_same_(result, -torch.inf)
        return result.sub_(result.amax(1, keepdim=True).nan_to_num_(neginf=0.0))

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"cutoff={self.cutoff}, nonzero_loss_cutoff={self.nonzero_loss_cutoff}"


def log_density(squares: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    """How often two random unit vectors lie that far apart, as a logarithm up to a constant.

    Formula: log q(d) = (D - 2) log d + (D - 3) / 2 log(1 - d^2 / 4).

    Args:
        squares: Squared distances d^2 in (0, 4); used up.
        dim: D.
        out: Where to put the result; by default a new tensor.

    Returns:
        The logarithms, in the shape of `squares`.
    """
    result = torch.mul(squares, -0.25, out=out).log1p_().mul_((dim - 3) / 2)
    return result.add_(squares.log_(), alpha=(dim - 2) / 2)
