"""log sum exp of (margin - distance) over the negatives of each anchor: no B x N matrix is kept for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distmetric.functional.distances import at_least_float32, row_blocks, squared_distance_block
from distmetric.functional.label_index import LabelIndex, SameLabel


class _NegativeLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, columns: Tensor, labels: Tensor, column_labels: Tensor, margin: float
    ) -> Tensor:
        same = LabelIndex(column_labels).columns_of(labels)
        column_squares = columns.square().sum(1)
        result = anchors.new_empty(len(anchors))
        for rows in row_blocks(len(anchors), len(columns), anchors):
            distances = _to_negatives(anchors[rows], columns, column_squares, same[rows])
            # Shifted by the nearest negative, so that neither large nor small distances leave the range of exp.
            nearest = distances.amin(1).nan_to_num_(posinf=0.0)
            sums = torch.sub(nearest[:, None], distances, out=distances).exp_().sum(1)
            result[rows] = sums.log_().sub_(nearest).add_(margin)
        ctx.save_for_backward(anchors, columns, result)
        ctx.same, ctx.margin = same, margin
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        anchors, columns, result = ctx.saved_tensors
        column_squares = columns.square().sum(1)
        grad_anchors, grad_columns = torch.empty_like(anchors), torch.zeros_like(columns)
        column_weight = columns.new_zeros(len(columns))
        # An anchor without negatives has the value -inf; its softmax weights are 0, not exp(-inf + inf).
        offset = ctx.margin - result.masked_fill(result == -torch.inf, 0.0)
        for rows in row_blocks(len(anchors), len(columns), anchors):
            distances = _to_negatives(anchors[rows], columns, column_squares, ctx.same[rows])
            weights = (offset[rows, None] - distances).exp_()
            # d|a - c| / da = (a - c) / |a - c|, taken as 0 where the two coincide.
            weights.div_(torch.threshold_(distances, 0.0, torch.inf)).mul_(-grad[rows, None])
            grad_anchors[rows] = torch.addmm(anchors[rows] * weights.sum(1, True), weights, columns, alpha=-1)
            grad_columns.addmm_(weights.T, anchors[rows], alpha=-1)
            column_weight += weights.sum(0)
        return grad_anchors, grad_columns.add_(columns * column_weight[:, None]), None, None, None


def _to_negatives(anchors: Tensor, columns: Tensor, column_squares: Tensor, same: SameLabel) -> Tensor:
    """(b, N) distances, infinite to columns of the anchor's label."""
    distances = squared_distance_block(anchors, columns, column_squares).sqrt_()
    return same.fill_(distances, torch.inf)


def negative_logsumexp(
    anchors: Tensor, columns: Tensor, labels: Tensor, column_labels: Tensor, margin: float
) -> Tensor:
    """Soft count of the negatives near each anchor.

    Formula: l_i = log sum_{k: y_k != y_i} exp(margin - |x_i - x_k|).

    Args:
        anchors: (B, D) embeddings.
        columns: (N, D) embeddings; may be the same tensor.
        labels: (B,) int64.
        column_labels: (N,) int64.
        margin: In units of distance.

    Returns:
        (B,) float32 or wider; -inf for an anchor without negatives (its gradient is 0). Cost: B N D forward,
        3 B N D backward (distances are computed again rather than kept), one block of `BLOCK_BYTES`.
    """
    result: Tensor = _NegativeLogSumExp.apply(  # type: ignore[no-untyped-call]
        at_least_float32(anchors), at_least_float32(columns), labels, column_labels, margin
    )
    return result
