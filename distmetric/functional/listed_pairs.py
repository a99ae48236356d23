"""Distances of listed pairs of a batch, with gradient and without a row of embeddings per pair in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmetric.functional.distances import Distance, pair_chunks, paired_distances
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_bands import expanded_ranges, inverse, label_ranges
from distmetric.functional.pair_blocks import host_ranges

# Up to here a list of positive pairs takes less memory than two blocks of distances.
MOST_PER_ROW = 64


class PositivePairs(NamedTuple):
    """All positive pairs of a batch, ascending, and what they leave.

    Attributes:
        anchors: (P,) int64.
        columns: (P,) int64.
        num_negatives: (B,) int64 columns of other labels, of every anchor.
    """

    anchors: Tensor
    columns: Tensor
    num_negatives: Tensor


def few_positive_pairs(batch: JointBatch) -> PositivePairs | None:
    """What `all_positive_pairs` lists, unless that is more than MOST_PER_ROW for each row, anchors or columns.

    No GPU is waited for where the batch's labels are known on the host.
    """
    known_first, known_last = host_ranges(batch)
    own = 0 if batch.anchor_index is None else 1
    total = int((known_last - known_first).sum()) - own * len(known_first)
    if total > MOST_PER_ROW * max(len(batch.anchors), len(batch.columns)):
        return None
    sorted_labels, order = torch.sort(batch.column_labels, stable=True)
    first, last = label_ranges(batch.labels, sorted_labels)
    anchors, places = expanded_ranges(first, last - own, total)
    if batch.anchor_index is not None:
        # The anchor itself, which lies among its like, is stepped over.
        places += places >= inverse(order)[batch.anchor_index][anchors]
    return PositivePairs(anchors, order[places], len(order) - (last - first))


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
