"""What every pair loss is: sums over own anchors, so that W ranks can add theirs up to the joint batch's loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from distmetric.functional.joint_batch import JointBatch


class LossParts(NamedTuple):
    """One rank's share of a loss, before the division by the number of terms of the joint batch.

    Attributes:
        total: Scalar with gradient, the sum of the terms of this rank's anchors.
        num_terms: Scalar without gradient, how many terms that were.
        num_active: Scalar without gradient, how many of the terms still push (above 1e-5).
    """

    total: Tensor
    num_terms: Tensor
    num_active: Tensor


ACTIVE_ABOVE = 1e-5  # below this a term is over, also for soft margins that never reach 0


class PairLoss(nn.Module):
    """A loss that is a mean over terms, each of which belongs to one anchor."""

    def parts(self, batch: JointBatch) -> LossParts:
        """Sum the terms of the batch's anchors.

        Args:
            batch: Anchors (B, D) and columns (N, D).

        Returns:
            Sum, number of terms, number of active terms. With no term at all the sum is 0 and has a live graph.
        """
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of one process's batch.

        Args:
            embeddings: (B, D) embeddings.
            labels: (B,) integer labels.
            ref_emb: (N, D) embeddings to take positives and negatives from instead of the batch itself.
            ref_labels: (N,) labels of `ref_emb`.

        Returns:
            Scalar; 0 with a live graph where the batch has no valid term.

        Raises:
            ValueError: If shapes do not fit together.
        """
        check_batch(embeddings, labels, "embeddings", "labels")
        if (ref_emb is None) != (ref_labels is None):
            raise ValueError("ref_emb and ref_labels belong together: give both or neither")
        if ref_emb is None or ref_labels is None:
            index = torch.arange(len(labels), device=labels.device)
            batch = JointBatch(embeddings, labels, embeddings, labels, index)
        else:
            check_batch(ref_emb, ref_labels, "ref_emb", "ref_labels")
            batch = JointBatch(embeddings, labels, ref_emb, ref_labels, None)
        total, num_terms, _ = self.parts(batch)
        return total / num_terms.clamp_min(1)


def check_batch(embeddings: Tensor, labels: Tensor, embeddings_name: str, labels_name: str) -> None:
    """Raise ValueError unless embeddings are (B, D) and labels (B,)."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{embeddings_name} must be (B, D) and {labels_name} (B,), "
            f"not {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
