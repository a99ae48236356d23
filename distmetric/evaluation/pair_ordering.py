"""How often a pair of one class is nearer than a pair of two: exact, over all such pairs of pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.evaluation.pair_counts import PairCounts, bins_of

LISTED_PAIRS = 1 << 23
"""Pairs of one class that are held at a time, of 8 bytes."""

_NARROWER = 16  # a power of two, so that a narrow bin lies in one of the counted bins
_SEARCH = -1


@torch.no_grad()
def area_under_roc(counts: PairCounts, listed_pairs: int = LISTED_PAIRS) -> float:
    """Fraction of (positive, negative) that the distance orders rightly, ties counted one half.

    Formula: #{d_pos < d_neg} / (P Q) + #{d_pos = d_neg} / (2 P Q) for P positives and Q negatives, the area under the
    ROC curve. Which bin is nearer the counts say. In bins with pairs of both kinds, the positives are listed, some bins
    at a time, and every negative there is looked up.

    Args:
        counts: From `count_distances`.
        listed_pairs: Positives that are held at a time.

    Returns:
        The area, 0..1; the same on every worker.

    Cost: a pass over the pairs for every `listed_pairs` positives, and a binary search for each negative in a bin with
    positives.
    """
    positives, negatives = counts.counts
    twice = 2 * _exact_dot(negatives, positives.cumsum() - positives)
    wins = torch.zeros(2, dtype=torch.int64, device=counts.table.points.device)
    for mixed in _bin_groups(positives, negatives, listed_pairs):
        inside = np.where(mixed, positives, 0)
        twice -= 2 * _exact_dot(np.where(mixed, negatives, 0), inside.cumsum() - inside)
        chosen = torch.from_numpy(mixed).to(wins.device)
        for listed in _positives(counts, chosen, listed_pairs):
            wins += _twice_nearer(counts, chosen, listed)
    high, low = counts.add(wins).tolist()
    twice += (int(high) << 32) + int(low)
    return twice / (2 * counts.table.num_positives * counts.table.num_negatives)


def _bin_groups(
    positives: NDArray[np.int64], negatives: NDArray[np.int64], listed_pairs: int
) -> Iterator[NDArray[np.bool_]]:
    """Masks of the bins with pairs of both kinds, in ascending groups of about `listed_pairs` positives or one bin."""
    bins = np.flatnonzero((positives > 0) & (negatives > 0))
    upto = positives[bins].cumsum()
    start = 0
    while start < len(bins):
        before = int(upto[start] - positives[bins[start]])
        end = max(start + 1, int(np.searchsorted(upto, before + listed_pairs, side="right")))
        mask = np.zeros(len(positives), dtype=np.bool_)
        mask[bins[start:end]] = True
        yield mask
        start = end


def _positives(counts: PairCounts, chosen: Tensor, listed_pairs: int) -> Iterator[Tensor]:
    """The squared distances of all pairs of one class in some bins, sorted; more than fit in one list in several."""
    pieces: list[Tensor] = []
    held = 0
    for block in counts.table.blocks(None, counts.block_bytes, only_same=True):
        if block.same is None:
            continue
        squared = block.squared[block.same]
        pieces.append(squared[chosen[bins_of(squared, counts.rate)]])
        held += len(pieces[-1])
        if held > listed_pairs:
            yield torch.cat(pieces).sort().values
            pieces, held = [], 0
    if held:
        yield torch.cat(pieces).sort().values


def _twice_nearer(counts: PairCounts, chosen: Tensor, listed: Tensor) -> Tensor:
    """Twice the positives nearer than each of this worker's negatives and once those as near, in high and low 32 bits.

    A binary search for every negative would take most of the time: in still narrower bins that no listed pair is in,
    all distances have the same answer.
    """
    pairs = counts.table.num_positives + counts.table.num_negatives
    narrower = _NARROWER if pairs > _NARROWER * len(chosen) else 1
    rate = counts.rate * narrower
    inside = torch.bincount(bins_of(listed, rate), minlength=len(chosen) * narrower)
    answers = inside.cumsum(0).mul_(2).to(torch.int32)
    answers[inside > 0] = _SEARCH
    answers[~chosen.repeat_interleave(narrower)] = 0
    total = torch.zeros(2, dtype=torch.int64, device=listed.device)
    for block in counts.table.blocks(counts.own, counts.block_bytes):
        squared = block.squared.flatten()
        answer = answers.index_select(0, bins_of(squared, rate))
        if block.same is not None:
            answer.masked_fill_(block.same.flatten(), 0)
        searched = squared[answer == _SEARCH]
        upto = torch.searchsorted(listed, searched, right=True)
        tied = (upto > 0) & (listed[(upto - 1).clamp_min_(0)] == searched)
        twice = answer.clamp_min_(0).sum() + 2 * upto.sum()
        twice += torch.searchsorted(listed, searched[tied]).sum() - upto[tied].sum()
        total += torch.stack([twice >> 32, twice & 0xFFFFFFFF])
    return total


def _exact_dot(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Sum of products of counts, which may go beyond 64 bits."""
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True) if a and b)
