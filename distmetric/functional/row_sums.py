"""Sums over rows of the distance matrix, differentiable, without the matrix: blocks come and go.

`sum_rows` differentiates in the pass that computes the value: three matrix multiplications in all. `row_values` gives
every anchor's value separately and computes distances again in backward: four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs


class Row(NamedTuple):
    """What a row function says about a block of b anchors.

    Attributes:
        values: (b,) value of each anchor.
        num_terms: (b,) how many terms that sums up, 0 or more.
        num_active: (b,) how many of them push or pull.
    """

    values: Tensor
    num_terms: Tensor
    num_active: Tensor


class RowSums(NamedTuple):
    """Sums over all anchors: `total` with gradient, the two counts as scalars without."""

    total: Tensor
    num_terms: Tensor
    num_active: Tensor


RowFunction = Callable[[PairBlock], Row]
"""Turns a block into values and, where `block.gradient` is a buffer, fills all of it with the derivative of every
anchor's value by its distances: 0 or finite, also where a distance is infinite (an anchor to itself)."""


def sum_rows(batch: JointBatch, distance: Distance, row_function: RowFunction) -> RowSums:
    """Sum a function of every anchor's row of distances over all anchors.

    Formula: S = sum_i f(d_i1, ..., d_iN), with dS/da_i = sum_k f'_ik dd_ik/da_i and the same for the columns.

    Args:
        batch: Anchors (B, D) and columns (N, D) in float32 or float64, of length one for "cosine".
        distance: Which one.
        row_function: f with its derivative.

    Returns:
        The sum, and how many terms it has. Cost: 3 B N D (2 if columns are constants, 1 without gradient); memory
        O((B + N) D) and three blocks.
    """
    wanted = torch.is_grad_enabled() and (batch.anchors.requires_grad or batch.columns.requires_grad)
    total, num_terms, num_active = _SumRows.apply(  # type: ignore[no-untyped-call]
        batch.anchors, batch.columns, batch, distance, row_function, wanted
    )
    return RowSums(total, num_terms, num_active)


def row_values(batch: JointBatch, distance: Distance, row_function: RowFunction) -> Tensor:
    """A function of every anchor's row of distances, (B,), each with its own gradient.

    Args:
        batch: Anchors (B, D) and columns (N, D) in float32 or float64, of length one for "cosine".
        distance: Which one.
        row_function: f with its derivative.

    Returns:
        (B,) values. Cost: 1 B N D forward, 3 backward (2 if columns are constants); memory O((B + N) D) and three
        blocks.
    """
    result: Tensor = _RowValues.apply(  # type: ignore[no-untyped-call]
        batch.anchors, batch.columns, batch, distance, row_function
    )
    return result


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _anchors: Tensor,
        _columns: Tensor,
        batch: JointBatch,
        distance: Distance,
        row_function: RowFunction,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs = SortedPairs(batch, distance)
        chain = _Chain(pairs, ctx.needs_input_grad[1]) if wanted else None
        sums = torch.zeros(3, dtype=torch.float64, device=batch.columns.device)
        for block in pairs.blocks(with_gradient=wanted):
            row = row_function(block)
            sums += torch.stack([part.sum(dtype=torch.float64) for part in row])
            if chain is not None:
                chain.add(block, None)
        if chain is not None:
            ctx.save_for_backward(*chain.gradients())
        total, num_terms, num_active = sums.unbind()
        ctx.mark_non_differentiable(num_terms, num_active)
        return total.to(batch.columns.dtype), num_terms, num_active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        to_anchors, to_columns = ctx.saved_tensors
        return to_anchors * grad, None if to_columns is None else to_columns * grad, None, None, None, None


class _RowValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        _columns: Tensor,
        batch: JointBatch,
        distance: Distance,
        row_function: RowFunction,
    ) -> Tensor:
        ctx.pairs, ctx.row_function = SortedPairs(batch, distance), row_function
        values = anchors.new_empty(len(anchors))
        for block in ctx.pairs.blocks():
            values[block.rows] = row_function(block).values
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        chain = _Chain(ctx.pairs, ctx.needs_input_grad[1])
        for block in ctx.pairs.blocks(with_gradient=True):
            ctx.row_function(block)
            chain.add(block, grad[block.rows])
        return *chain.gradients(), None, None, None


class _Chain:
    """From derivatives by distances to gradients of anchors and columns."""

    def __init__(self, pairs: SortedPairs, needs_columns: bool) -> None:
        self._pairs = pairs
        self._to_anchors = torch.empty_like(pairs.anchors)
        self._to_columns = torch.zeros_like(pairs.columns) if needs_columns else None
        self._column_weights = pairs.columns.new_zeros(len(pairs.columns))

    def add(self, block: PairBlock, row_weights: Tensor | None) -> None:
        """Add what a block's gradient, each row times its weight, says; the block's distances are used up."""
        pairs, weights = self._pairs, block.gradient
        assert weights is not None, "a chain needs blocks with a gradient"
        anchors, to_anchors = pairs.anchors[block.place], self._to_anchors[block.place]
        near: Tensor | None = None
        with torch.autocast(weights.device.type, enabled=False):
            if row_weights is not None:
                weights.mul_(row_weights[:, None])
            if pairs.distance == "euclidean":
                # d|a - c| / da = (a - c) / |a - c|, taken as 0 where the two coincide.
                weights.div_(F.threshold(block.distances, 0.0, torch.inf, inplace=True))
                near = self._pull_of_near(block, weights)
            elif pairs.distance == "squared_euclidean":
                weights.mul_(2.0)
            torch.mm(weights, pairs.columns, out=to_anchors)
            if pairs.is_euclidean:
                to_anchors.sub_(anchors * weights.sum(1, keepdim=True))
            to_anchors.neg_()
            if near is not None:
                to_anchors += near
            if self._to_columns is not None:
                self._to_columns.addmm_(weights.T, anchors, alpha=-1)
                if pairs.is_euclidean:
                    self._column_weights += weights.sum(0)

    def _pull_of_near(self, block: PairBlock, weights: Tensor) -> Tensor | None:
        """The part of the near pairs, whose large weights no product of matrices would cancel; takes it out of them."""
        if block.near is None:
            return None
        where = block.near.anchors, block.near.columns
        of_near = weights[where]
        weights[where] = 0.0
        to_anchors = torch.zeros_like(self._to_anchors[block.place])
        for part, difference in self._pairs.near_differences(block):
            pull = difference.mul_(of_near[part, None])
            to_anchors.index_add_(0, block.near.anchors[part], pull)
            if self._to_columns is not None:
                self._to_columns.index_add_(0, block.near.columns[part], pull, alpha=-1)
        return to_anchors

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Gradients of the anchors and, where they need one, of the columns, in the caller's order."""
        pairs = self._pairs
        to_anchors = torch.empty_like(self._to_anchors)
        to_anchors[pairs.anchor_order] = self._to_anchors
        if self._to_columns is None:
            return to_anchors, None
        if pairs.is_euclidean:
            self._to_columns.addcmul_(pairs.columns, self._column_weights[:, None])
        to_columns = torch.empty_like(self._to_columns)
        to_columns[pairs.order] = self._to_columns
        return to_anchors, to_columns
