"""Distances of listed pairs of a batch, with gradient and without a row of embeddings per pair in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmetric.functional.distances import Distance, pair_chunks, paired_distances
from distmetric.functional.joint_batch import JointBatch


def listed_distances(batch: JointBatch, rows: Tensor, columns: Tensor, distance: Distance) -> Tensor:
    """Distances of pairs (anchor rows[p], column columns[p]).

    Args:
        batch: Anchors (B, D) and columns (N, D), of length one for "cosine".
        rows: (P,) int64 anchors.
        columns: (P,) int64 columns.
        distance: Which one.

    Returns:
        (P,) distances; gradient 0 where a euclidean distance is 0. Cost: P D forward, 2 P D backward; memory O(P) and
        one block of `BLOCK_BYTES`, since nothing of size P D is kept.
    """
    result: Tensor = _ListedDistances.apply(  # type: ignore[no-untyped-call]
        batch.anchors, batch.columns, rows, columns, distance
    )
    return result


class _ListedDistances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, columns: Tensor, rows: Tensor, others: Tensor, distance: Distance
    ) -> Tensor:
        result = anchors.new_empty(len(rows))
        for part in pair_chunks(len(rows), anchors):
            result[part] = paired_distances(anchors[rows[part]], columns[others[part]], distance)
        ctx.save_for_backward(anchors, columns, rows, others, result)
        ctx.distance = distance
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchors, columns, rows, others, distances = ctx.saved_tensors
        to_anchors, to_columns = torch.zeros_like(anchors), torch.zeros_like(columns)
        if ctx.distance == "euclidean":
            weights = grad / torch.where(distances > 0, distances, torch.inf)
        else:
            weights = 2 * grad if ctx.distance == "squared_euclidean" else -grad
        for part in pair_chunks(len(rows), anchors):
            row, other, weight = rows[part], others[part], weights[part, None]
            if ctx.distance in ("euclidean", "squared_euclidean"):
                pull = (anchors[row] - columns[other]).mul_(weight)
                to_anchors.index_add_(0, row, pull)
                to_columns.index_add_(0, other, pull, alpha=-1)
            else:
                to_anchors.index_add_(0, row, columns[other] * weight)
                to_columns.index_add_(0, other, anchors[row] * weight)
        return to_anchors, to_columns, None, None, None
