"""The batch as a pair loss sees it: some anchors, and all the columns they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _identity(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class JointBatch:
    """Own anchors against all columns: the shape in which every row-decomposable loss is computed.

    In one process anchors and columns are the same tensor. On W ranks the anchors are this rank's embeddings and
    the columns everybody's, in rank order, so that each rank does 1/W of the pair work.

    Args:
        anchors: (B, D) embeddings of this rank.
        labels: (B,) int64 labels of the anchors.
        columns: (N, D) embeddings that the anchors are compared with.
        column_labels: (N,) int64 labels of the columns.
        anchor_index: (B,) int64 column that holds each anchor itself, which is never its own pair; None where
            anchors and columns are different sets.
        gather_rows: Turns a (B, ...) tensor of per-anchor values into the (N, ...) tensor of all ranks' values,
            with gradient; the identity in one process.
    """

    anchors: Tensor
    labels: Tensor
    columns: Tensor
    column_labels: Tensor
    anchor_index: Tensor | None
    gather_rows: Callable[[Tensor], Tensor] = _identity
