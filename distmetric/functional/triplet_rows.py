"""Sums over all triplets of every anchor, for any number of positives, without a list of triplets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.functional.distances import Distance
from distmetric.functional.index_lists import collected
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.row_sums import Row, RowFunction

# From so many positives on, ranking the negatives once is faster than a pass over them for every positive.
_RANK_FROM = 24


def triplet_rows(margin: float | Literal["soft"], semi_hard: bool, active_above: float) -> RowFunction:
    """Every positive of an anchor against every negative of it.

    Formula: f(a) = sum_p sum_n phi(d_ap - d_an), phi(z) = max(0, m + z) or ln(1 + e^z); if `semi_hard`, only over
    triplets with d_ap < d_an < d_ap + m.

    Args:
        margin: m, or "soft".
        semi_hard: Whether to count semi-hard triplets only, which needs a margin.
        active_above: Value from which on a triplet counts as active.

    Returns:
        The row function. Cost beyond distances: B K N, or B N log K for a hinge over all triplets once K is large;
        memory two blocks, then four.
    """
    ranked = margin != "soft" and not semi_hard
    shift = 0.0 if margin == "soft" else float(margin)

    def anchor_rows(block: PairBlock) -> Row:
        band = block.distances[:, block.band]
        kept = band.clone()
        # A distance that no threshold reaches, and that may be multiplied by 0.
        block.fill_same_(block.distances, torch.finfo(kept.dtype).max)
        thresholds = (kept + shift).masked_fill_(~block.positive, -torch.inf)
        if ranked and int(block.num_same.max()) >= _RANK_FROM:
            values, num_active, pull = _all_at_once(block, thresholds)
        else:
            nearest = kept if semi_hard else None
            values, num_active, pull = _one_by_one(block, thresholds, margin, nearest, active_above)
        band.copy_(kept)
        if block.gradient is not None:
            block.gradient[:, block.band] += pull
        num_terms = num_active if semi_hard else block.num_positives.clamp_min(0) * block.num_negatives
        return Row(values, num_terms, num_active)

    return anchor_rows


def _one_by_one(
    block: PairBlock,
    thresholds: Tensor,
    margin: float | Literal["soft"],
    only_beyond: Tensor | None,
    active_above: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, numbers of active triplets, and derivatives by positives: a pass over the negatives for each positive."""
    values, pull = thresholds.new_zeros(len(thresholds)), torch.zeros_like(thresholds)
    num_active = torch.zeros_like(values)
    if block.gradient is not None:
        block.gradient.zero_()
    spare = torch.empty_like(block.scratch if margin == "soft" else values)
    zero = values.new_zeros(())
    for place, is_positive in each_positive(block):
        threshold = thresholds.gather(1, place).masked_fill_(~is_positive, -torch.inf)
        excess = torch.sub(threshold, block.distances, out=block.scratch)
        if margin == "soft":
            terms = torch.logaddexp(excess, zero, out=spare)
            num_active += (terms > active_above).sum(1)
            slopes = excess.sigmoid_()
            values += terms.sum(1)
        else:
            if only_beyond is not None:
                excess.masked_fill_(block.distances <= only_beyond.gather(1, place), 0.0)
            values += excess.relu_().sum(1)
            slopes = excess.sign_()
            num_active += slopes.sum(1)
        if block.gradient is not None:
            block.gradient.sub_(slopes)
            pull.scatter_add_(1, place, slopes.sum(1, keepdim=True))
    return values, num_active, pull


def _all_at_once(block: PairBlock, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for hinges, by how many of the anchor's thresholds lie above each negative."""
    largest, place = thresholds.sort(1, descending=True)
    num_thresholds = thresholds.shape[1]
    above = num_thresholds - torch.searchsorted(largest.flip(1), block.distances, right=True)
    # Entry c: the sum of the c largest thresholds, of which an active one is never -inf.
    sums = F.pad(largest.masked_fill(largest == -torch.inf, 0.0).cumsum(1), (1, 0))
    counts = block.scratch.copy_(above)
    if block.gradient is not None:
        torch.neg(counts, out=block.gradient)
    num_active = counts.sum(1)
    values = sums.gather(1, above).sum(1) - counts.mul_(block.distances).sum(1)
    # A threshold of rank r, counted from the top, is above as many negatives as have r thresholds or more above them.
    with_exactly = sums.new_zeros(sums.shape).scatter_add_(1, above, torch.ones_like(block.distances))
    at_least = with_exactly.flip(1).cumsum(1).flip(1)[:, 1:]
    return values, num_active, torch.zeros_like(thresholds).scatter_(1, place, at_least)


@torch.no_grad()
def nearest_beyond(batch: JointBatch, distance: Distance) -> tuple[Tensor, Tensor, Tensor]:
    """For every positive pair the nearest negative that is farther than the positive, or else the farthest negative.

    Args:
        batch: Anchors (B, D) and columns (N, D) in float32 or float64, of length one for "cosine".
        distance: Which one.

    Returns:
        (T,) int64 anchors, positives and negatives, one triplet for every positive pair of an anchor that has a
        negative. Cost: B N D multiplications and B K N comparisons.
    """

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for block in SortedPairs(batch, distance).blocks():
            band = block.distances[:, block.band].clone()
            farthest = block.fill_same_(block.distances, -torch.inf).argmax(1)
            block.fill_same_(block.distances, torch.inf)
            for place, is_positive in each_positive(block):
                beyond = block.scratch.copy_(block.distances)
                beyond.masked_fill_(beyond <= band.gather(1, place), torch.inf)
                distances, nearest = beyond.min(1)
                negative = torch.where(distances < torch.inf, nearest, farthest)
                valid = is_positive[:, 0] & (block.num_negatives > 0)
                positive = block.columns[place[:, 0] + block.band.start]
                yield block.rows[valid], positive[valid], block.columns[negative[valid]]

    anchors, positives, negatives = collected(parts(), 3, batch.labels)
    return anchors, positives, negatives


def each_positive(block: PairBlock) -> Iterator[tuple[Tensor, Tensor]]:
    """The j-th column of each anchor's label, for j = 0, 1, ... in the caller's order.

    Yields:
        Its place in the band, (b, 1) int64, and whether it is positive, (b, 1) bool.
    """
    width = block.positive.shape[1]
    for j in range(block.most_same):
        place = (block.first + j).clamp_max_(width - 1)[:, None]
        yield place, (j < block.num_same)[:, None] & block.positive.gather(1, place)


def check_margin(margin: float | Literal["soft"]) -> None:
    """Raise ValueError unless the margin is "soft" or a finite number that is at least 0."""
    if margin != "soft" and not 0 <= float(margin) < math.inf:
        raise ValueError(f'margin={margin!r} is wrong: give a number from 0 on, or "soft"')
