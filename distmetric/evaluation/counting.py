"""Counting the values of rows that lie below thresholds: a few passes over the rows and no sort."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.evaluation.gallery import FOLD
from distmetric.evaluation.neighbors import listed_groups

_LANES = 8
"""Flags that are added at once: bytes of a 64-bit word."""
_FLAGS = {"cpu": 2**22, "cuda": 2**28}
"""Flags that are held at once: what stays in the cache, or fills a GPU."""
_NEAR = 1 / 8
"""Share of the groups of columns up to which copying those that count is better than reading all."""


@dataclass(frozen=True)
class Counts:
    """What lies below and between thresholds.

    Attributes:
        below: (B, S) int64, what the values below the lower threshold count for.
        row: (T,) int64, row of each value between two thresholds, both ends included.
        slot: (T,) int64, between which two.
        column: (T,) int64, which value.
        too_many: (B,) bool, rows with more than were allowed between their thresholds; not all of these are listed.
    """

    below: Tensor
    row: Tensor
    slot: Tensor
    column: Tensor
    too_many: Tensor


def count(values: Tensor, low: Tensor, high: Tensor, weights: Tensor | None, most: int) -> Counts:
    """Count values below some thresholds, and list those between two.

    Args:
        values: (B, C) contiguous, B >= 1, C a multiple of `FOLD`.
        low: (B, S) thresholds of the same type; -inf with a `high` of -inf where there is none.
        high: (B, S), at least as large.
        weights: (C,) float64 whole numbers that values count for; None for 1 each.
        most: how many a row may have between its thresholds, all of them together.

    Returns:
        The counts.

    Cost: one pass for the minima of groups of columns. Then, of the rows in which few groups reach down to the
    highest threshold, 2 S comparisons for each value of these groups; of the others 2 S for every value. At most a copy
    of the values, 2 bytes and with weights 9 more for each.
    """
    minima = values.view(len(values), -1, FOLD).amin(dim=2)
    reached = (minima <= high.amax(dim=1, keepdim=True)).sum(dim=1)
    is_near = reached <= _NEAR * minima.shape[1]
    near, far = is_near.nonzero().squeeze(1), (~is_near).nonzero().squeeze(1)
    if len(near) < len(far):  # too few to be worth a copy of the others
        return _count_all(values, low, high, weights, most)
    groups = minima[near].topk(max(1, int(reached[near].max())), dim=1, largest=False, sorted=False).indices
    parts = [_count_groups(values, near, groups, low, high, weights, most)]
    if len(far):
        parts.append(_at_rows(far, _count_all(values[far], low[far], high[far], weights, most)))
    below, too_many = (
        torch.empty(low.shape, dtype=torch.int64, device=values.device),
        torch.empty_like(is_near),
    )
    for rows, part in zip((near, far), parts, strict=False):
        below[rows], too_many[rows] = part.below, part.too_many
    row, slot, column = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("row", "slot", "column")
    )
    return Counts(below, row, slot, column, too_many)


def _count_groups(
    values: Tensor,
    rows: Tensor,
    groups: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Tensor | None,
    most: int,
) -> Counts:
    """Count in some groups (b, w) of the columns of some rows (b,)."""
    listed = listed_groups(values.view(len(values), -1, FOLD), groups, rows)
    weights = None if weights is None else weights.view(-1, FOLD)[groups].flatten(1)
    found = _count_all(listed, low[rows], high[rows], weights, most)
    column = groups[found.row, found.column // FOLD] * FOLD + found.column % FOLD
    return _at_rows(rows, Counts(found.below, found.row, found.slot, column, found.too_many))


def _at_rows(rows: Tensor, part: Counts) -> Counts:
    return Counts(part.below, rows[part.row], part.slot, part.column, part.too_many)


def _count_all(values: Tensor, low: Tensor, high: Tensor, weights: Tensor | None, most: int) -> Counts:
    """Count in all columns; weights are (C,) or (B, C)."""
    below = torch.empty(low.shape, dtype=torch.int64, device=values.device)
    between = below.new_zeros(len(values))
    size = min(len(values), max(1, _FLAGS.get(values.device.type, _FLAGS["cuda"]) // values.shape[1]))
    masks = torch.empty(2, size, values.shape[1], dtype=torch.bool, device=values.device)
    listed = [low.new_empty(0, 3, dtype=torch.int64)]
    for start in range(0, len(values), size):
        some = slice(start, start + size)
        under, until = masks[:, : len(low[some])]
        words = until.view(torch.int64)
        weight = weights if weights is None or weights.ndim == 1 else weights[some]
        for slot in range(low.shape[1]):
            torch.lt(values[some], low[some, slot, None], out=under)
            below[some, slot] = _flags_set(under) if weight is None else (under * weight).sum(dim=1).long()
            torch.le(values[some], high[some, slot, None], out=until)
            words.bitwise_xor_(under.view(torch.int64))
            between[some] += _flags_set(until)
            full = between[some] > most
            if bool(full.any()):
                words[full] = 0
            row, word = words.nonzero(as_tuple=True)
            place, byte = words[row, word].view(torch.uint8).view(len(row), _LANES).nonzero(as_tuple=True)
            column = word[place] * _LANES + byte
            listed.append(torch.stack([row[place] + start, torch.full_like(place, slot), column], dim=1))
    row, slots, column = torch.cat(listed).T
    return Counts(below, row, slots, column, between > most)


def _flags_set(flags: Tensor) -> Tensor:
    """(B,) how many of (B, C) flags are set: bytes are added eight at a time, and 255 of them before one overflows."""
    words = flags.view(torch.int64)
    whole = words.shape[1] // 255
    runs = words[:, : whole * 255].view(len(words), whole, 255)
    lanes = [runs.sum(dim=2), words[:, whole * 255 :].sum(dim=1, keepdim=True)]
    return torch.cat(lanes, dim=1).view(torch.uint8).sum(dim=1, dtype=torch.int64)
