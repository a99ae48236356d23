"""What every miner is: it chooses pairs or triplets of a joint batch, without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distmetric.functional.checks import check_choice
from distmetric.functional.counter_random import uniform
from distmetric.functional.distances import DISTANCES, Distance
from distmetric.functional.joint_batch import JointBatch, single_batch
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.tuples import Tuples

# Keeps what miners draw apart from what augmentation draws under the same seed and step.
_STREAM = int.from_bytes(b"miner", "big")


class Miner(nn.Module):
    """Chooses pairs or triplets of own anchors and joint columns.

    Each rank chooses for its own anchors among the columns of all, so that W ranks together choose what one process
    with the whole batch would. A miner of your own overrides `choose`.

    Args:
        distance: What makes two embeddings near.
        normalize_embeddings: Whether embeddings are scaled to length one first, as pytorch-metric-learning does by
            default. "cosine" always does.

    Raises:
        ValueError: If the distance is not known.
    """

    def __init__(self, distance: Distance = "euclidean", normalize_embeddings: bool = True) -> None:
        super().__init__()
        check_choice("distance", distance, DISTANCES)
        self.distance: Distance = distance
        self.normalize_embeddings = normalize_embeddings
        self.step = 0

    def mine(self, batch: JointBatch) -> Tuples:
        """The pairs or triplets of the batch's anchors that a loss should look at.

        Args:
            batch: Anchors (B, D) and columns (N, D).

        Returns:
            Indices of anchors and of columns; empty where the batch has nothing of the kind.
        """
        with torch.no_grad():
            return self.choose(batch.prepared(self.normalize_embeddings or self.distance == "cosine"))

    def choose(self, batch: JointBatch) -> Tuples:
        """See `mine`; the embeddings of `batch` are in float32 or wider, and of length one where asked."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Mine one process's batch: what a loss takes as `indices_tuple`, ours or pytorch-metric-learning's.

        Args:
            embeddings: (B, D) embeddings.
            labels: (B,) integer labels.
            ref_emb: (N, D) embeddings to take positives and negatives from instead of the batch itself.
            ref_labels: (N,) labels of `ref_emb`.

        Returns:
            (anchors, positives, negatives) of miners of triplets, (anchors, positives, anchors, negatives) of miners
            of pairs; int64 indices of `embeddings` and, except for anchors, of `ref_emb` where it is given.

        Raises:
            ValueError: If shapes do not fit together.
        """
        return self.mine(single_batch(embeddings, labels, ref_emb, ref_labels)).indices()

    def set_step(self, step: int) -> None:
        """Tell the miner which step of the training comes next; those that draw, draw anew for each."""
        self.step = step


class RandomMiner(Miner):
    """A miner that draws, as a function of (seed, step, column of the anchor in the joint batch) and nothing else.

    The choice then does not depend on the number of ranks, on block sizes, or on what was drawn before. Mining without
    a trainer, call `set_step` before each batch: the same step draws the same numbers.

    Args:
        distance: What makes two embeddings near.
        normalize_embeddings: Whether embeddings are scaled to length one first.
        seed: Key of all that is drawn.
    """

    def __init__(
        self, distance: Distance = "euclidean", normalize_embeddings: bool = True, seed: int = 0
    ) -> None:
        super().__init__(distance, normalize_embeddings)
        self.seed = seed

    def numbers(self, batch: JointBatch, block: PairBlock, count: int) -> Tensor:
        """Random numbers for the anchors of a block, (b, count) float64 in [0, 1)."""
        ids = block.rows if batch.anchor_index is None else batch.anchor_index[block.rows]
        return uniform(self.seed ^ _STREAM, self.step, ids, count)
