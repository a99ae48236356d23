"""Columns drawn at random for the anchors of a block, by weight, by rank of distance, or any negative.

What is drawn depends on the numbers given and on the distances, not on the order in which a block has its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distmetric.functional.hardest import argmin
from distmetric.functional.pair_blocks import PairBlock

# Weights as integers: their sums are exact, so that they do not depend on the device and never let a column of weight
# 0 be drawn. Columns below 2^-40 of the largest weight are not drawn; there is room for 2^22 columns.
_WEIGHT_SCALE = 2.0**40
# Its exponential is 0 among such integers; that of an infinity takes ten times as long.
_LOG_OF_NOTHING = -64.0
# Up to this rank a partial sort is faster than a quick select.
_SMALL_RANK = 256


class WeightedDraws:
    """Draws columns with probability proportional to their weights, for one block of a batch after the other.

    Formula: the first column c, in the caller's order, with sum_{c' <= c} w_c' > u sum w.

    Cost: a few passes over (b, N) int64, in one buffer that all blocks share.
    """

    def __init__(self) -> None:
        self._sums = torch.empty(0, dtype=torch.int64)

    def draw(
        self, log_weights: Tensor, block: PairBlock, numbers: Tensor, spare: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw for the anchors of a block.

        Args:
            log_weights: (b, N) logarithms of weights w of the block's columns: 0 for the largest of an anchor, -inf for
                columns that it must not get; used up.
            block: The block they belong to.
            numbers: (b, J) float64 in [0, 1), a number u for every draw.
            spare: (b, N) buffer of the type of the weights.

        Returns:
            (b, J) int64 columns of the batch, and (b,) bool, whether the anchor has a column of some weight at all
            (what is drawn for it otherwise means nothing).
        """
        place = torch.empty_like(block.columns)
        place[block.columns] = torch.arange(len(place), device=place.device)
        weights = log_weights.clamp_min_(_LOG_OF_NOTHING).exp_()
        in_order = torch.index_select(weights, 1, place, out=spare).mul_(_WEIGHT_SCALE)
        if self._sums.numel() < in_order.numel():
            self._sums = torch.empty(in_order.numel(), dtype=torch.int64, device=in_order.device)
        sums = self._sums[: in_order.numel()].view(in_order.shape).copy_(in_order)
        torch.cumsum(sums, 1, out=sums)
        total = sums[:, -1:]
        target = (numbers * total).to(torch.int64)
        # The product may be rounded up to the total itself.
        columns = torch.searchsorted(sums, torch.minimum(target, total - 1), right=True)
        return columns, total[:, 0] > 0


def draw_negatives(block: PairBlock, numbers: Tensor) -> Tensor:
    """Draw negatives, each with the same probability.

    Formula: the floor(u n)-th of the anchor's n negatives, in the caller's order.

    Args:
        block: Anchors and columns.
        numbers: (b, J) float64 in [0, 1), a number u for every draw.

    Returns:
        (b, J) int64 columns of the batch; meaningless for an anchor without negatives. Cost: b (K + J log K).
    """
    count = block.num_negatives[:, None]
    drawn = torch.minimum((numbers * count).to(torch.int64), count - 1).clamp_min_(0)
    # The i-th column of the anchor's label, if it is column c of the batch, has c - i negatives before it.
    place, exists = block.same_places()
    number = torch.arange(place.shape[1], device=place.device)
    before = torch.where(exists, block.columns[place + block.band.start] - number, len(block.columns))
    return drawn + torch.searchsorted(before, drawn, right=True)


def at_rank(values: Tensor, ranks: Tensor) -> Tensor:
    """Where the value of a given rank is in its row.

    Args:
        values: (b, N) values; infinite ones rank last.
        ranks: (b, J) int64, 0 for the smallest value, below N.

    Returns:
        (b, J) int64 columns. Cost: a pass for rank 0; a partial sort for small ranks and for several ranks a row;
        else a quick select. Which of tied values has which rank is left open.
    """
    different = torch.unique(ranks).tolist()
    if different == [0]:
        return argmin(values)[:, None].expand(ranks.shape)
    if ranks.shape[1] > 1 or different[-1] < _SMALL_RANK:
        return values.topk(different[-1] + 1, largest=False).indices.gather(1, ranks)
    found = torch.empty_like(ranks)
    for rank in different:
        row = (ranks[:, 0] == rank).nonzero()[:, 0]
        found[row, 0] = values[row].kthvalue(rank + 1).indices
    return found
