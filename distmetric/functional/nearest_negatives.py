"""log sum exp of (margin - distance) over the negatives of each anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.fused_rows import fused_logsumexp, is_fused
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, row_values


def negative_logsumexp(batch: JointBatch, margin: float, distance: Distance = "euclidean") -> Tensor:
    """Soft count of the negatives near each anchor.

    Formula: l_i = log sum_{k: y_k != y_i} exp(margin - d(x_i, x_k)).

    Args:
        batch: Anchors (B, D) and columns (N, D) in float32 or float64, of length one for "cosine".
        margin: In units of distance.
        distance: Which one.

    Returns:
        (B,) values; -inf for an anchor without negatives (its gradient is 0). Cost: B N D forward, 3 B N D backward
        (distances are computed again rather than kept), three blocks of `BLOCK_BYTES`.
    """
    if is_fused(batch):
        return fused_logsumexp(batch, 1.0, distance, "negatives") + margin

    def anchor_rows(block: PairBlock) -> Row:
        pushes = torch.sub(margin, block.distances, out=block.scratch)
        # Shifted by the nearest negative, so that neither large nor small distances leave the range of exp.
        shift = block.fill_same_(pushes, -torch.inf).amax(1).nan_to_num_(neginf=0.0)
        sums = pushes.sub_(shift[:, None]).exp_().sum(1)
        if block.gradient is not None:
            torch.mul(pushes, torch.where(sums > 0, -1 / sums, 0)[:, None], out=block.gradient)
        return Row(sums.log().add_(shift), block.num_negatives, block.num_negatives)

    return row_values(batch, distance, anchor_rows)
