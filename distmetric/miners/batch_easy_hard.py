"""One positive and one negative of every anchor, each chosen by how hard it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import Distance
from distmetric.functional.hardest import argmin
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.tuples import Tuples, all_negative_pairs, all_positive_pairs
from distmetric.miners.base import Miner

PairStrategy = Literal["hard", "semihard", "easy", "all"]
PAIR_STRATEGIES: tuple[PairStrategy, ...] = ("hard", "semihard", "easy", "all")
Range = tuple[float, float]


@dataclass(kw_only=True, frozen=True)
class BatchEasyHardMinerConfig:
    """Settings of `BatchEasyHardMiner`."""

    name: Literal["batch_easy_hard"] = "batch_easy_hard"
    pos_strategy: PairStrategy = "easy"
    """Which positive of an anchor: hard (farthest), easy (nearest), semihard (the farthest that is nearer than its
    negative), all."""
    neg_strategy: PairStrategy = "semihard"
    """Which negative of an anchor: hard (nearest), easy (farthest), semihard (the nearest that is farther than its
    positive), all."""
    allowed_pos_range: Range | None = None
    """Smallest and largest distance of positive pairs that are looked at; null for any. Without effect on all."""
    allowed_neg_range: Range | None = None
    """The same for negative pairs."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""

    def __post_init__(self) -> None:
        """Check that the strategies and ranges make sense.

        Raises:
            ValueError: If they do not.
        """
        _check(self.pos_strategy, self.neg_strategy, self.allowed_pos_range, self.allowed_neg_range)


def _check(
    pos_strategy: PairStrategy, neg_strategy: PairStrategy, pos_range: Range | None, neg_range: Range | None
) -> None:
    check_choice("pos_strategy", pos_strategy, PAIR_STRATEGIES)
    check_choice("neg_strategy", neg_strategy, PAIR_STRATEGIES)
    if {pos_strategy, neg_strategy} == {"semihard", "all"}:
        raise ValueError('"semihard" compares with the one pair of the other kind: it cannot go with "all"')
    if pos_strategy == neg_strategy == "semihard":
        raise ValueError(
            'pos_strategy and neg_strategy cannot both be "semihard": each would wait for the other'
        )
    for name, allowed in (("allowed_pos_range", pos_range), ("allowed_neg_range", neg_range)):
        if allowed is not None and not allowed[0] <= allowed[1]:
            raise ValueError(f"{name}={allowed} is wrong: give the smaller distance first")


class BatchEasyHardMiner(Miner):
    """For every anchor the hardest, easiest or semi-hard positive and negative, or all of a kind.

    Formula, over the pairs of allowed distance: positives hard max D_ap, easy min D_ap, semihard max {D_ap < D_an};
    negatives hard min D_an, easy max D_an, semihard min {D_an > D_ap}; the semi-hard one is compared with the pair
    of the other kind that its own strategy chose.

    Args:
        pos_strategy: "hard", "semihard", "easy" or "all".
        neg_strategy: "hard", "semihard", "easy" or "all".
        allowed_pos_range: (smallest, largest) distance of positive pairs; in units of D, also for "cosine", where
            pytorch-metric-learning takes similarities.
        allowed_neg_range: The same for negative pairs.
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.

    Cost: B N D; memory two blocks, and O(B) for the pairs, except for what "all" lists: B (K - 1) positive or
    B (N - K) negative pairs.

    Corner cases: without "all", an anchor for which either kind has no pair is left out; with it, each kind keeps the
    pairs it has. Ties go to one of the tied.

    Source: Xuan, Stylianou, Pless, "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020.
    """

    def __init__(
        self,
        pos_strategy: PairStrategy = "easy",
        neg_strategy: PairStrategy = "semihard",
        allowed_pos_range: Range | None = None,
        allowed_neg_range: Range | None = None,
        *,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
    ) -> None:
        super().__init__(distance, normalize_embeddings)
        _check(pos_strategy, neg_strategy, allowed_pos_range, allowed_neg_range)
        self.pos_strategy: PairStrategy = pos_strategy
        self.neg_strategy: PairStrategy = neg_strategy
        self.allowed_pos_range = allowed_pos_range
        self.allowed_neg_range = allowed_neg_range

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; pairs."""
        strategies = (self.pos_strategy, self.neg_strategy)
        positive, negative = (torch.full_like(batch.labels, -1, dtype=torch.int64) for _ in range(2))
        if strategies != ("all", "all"):
            for block in SortedPairs(batch, self.distance).blocks():
                positive[block.rows], negative[block.rows] = self._of_anchors(block)
        if "all" not in strategies:
            anchors = ((positive >= 0) & (negative >= 0)).nonzero()[:, 0]
            return Tuples.of((anchors, positive[anchors], anchors, negative[anchors]))
        positives, negatives = _kept(positive), _kept(negative)
        if self.pos_strategy == "all":
            positives = all_positive_pairs(batch.labels, batch.column_labels, batch.anchor_index)
        if self.neg_strategy == "all":
            negatives = all_negative_pairs(batch.labels, batch.column_labels)
        return Tuples.of((*positives, *negatives))

    def _of_anchors(self, block: PairBlock) -> tuple[Tensor, Tensor]:
        """Columns of the positive and of the negative of each anchor, -1 where it has none."""
        band = block.distances[:, block.band].clone()
        if self.pos_strategy == "semihard":
            nearest, negative = self._negative(block, None)
            return self._positive(block, band, nearest)[1], negative
        farthest, positive = self._positive(block, band, None)
        return positive, self._negative(block, farthest if self.neg_strategy == "semihard" else None)[1]

    def _positive(self, block: PairBlock, band: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        easy, wanted = self.pos_strategy == "easy", block.positive
        if self.allowed_pos_range is not None:
            wanted = wanted & (band >= self.allowed_pos_range[0]) & (band <= self.allowed_pos_range[1])
        if below is not None:
            wanted = wanted & (band < below[:, None])
        if not band.shape[1]:
            return band.new_full((len(band),), torch.inf), torch.full_like(block.rows, -1)
        values = band.masked_fill(~wanted, torch.inf if easy else -torch.inf)
        value, place = values.min(1) if easy else values.max(1)
        return value, block.columns[place + block.band.start].masked_fill_(value.isinf(), -1)

    def _negative(self, block: PairBlock, above: Tensor | None) -> tuple[Tensor, Tensor]:
        easy = self.neg_strategy == "easy"
        none = -torch.inf if easy else torch.inf
        values = block.fill_same_(block.distances, none)
        if self.allowed_neg_range is not None:
            low, high = self.allowed_neg_range
            values.masked_fill_((values < low) | (values > high), none)
        if above is not None:
            values.masked_fill_(values <= above[:, None], none)
        place = argmin(torch.neg(values, out=block.scratch) if easy else values)
        value = values.gather(1, place[:, None])[:, 0]
        return value, block.columns[place].masked_fill_(value.isinf(), -1)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"pos_strategy={self.pos_strategy!r}, neg_strategy={self.neg_strategy!r}"


def _kept(columns: Tensor) -> tuple[Tensor, Tensor]:
    anchors = (columns >= 0).nonzero()[:, 0]
    return anchors, columns[anchors]
