"""Which gallery items a query should find, and what the ranks that it finds them at are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.evaluation.neighbors import sum_by_halves

MISSING = torch.iinfo(torch.int64).max
"""Rank of an item that is in no ranking."""


@dataclass(frozen=True)
class ClassMembers:
    """The gallery items of every class; made by `class_members`.

    Attributes:
        classes: (C,) int64, ascending.
        sizes: (C,) int64, number of items of each.
        items: (G,) int64, items by class, ascending within one.
    """

    classes: Tensor
    sizes: Tensor
    items: Tensor

    def _place(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(self.classes, labels.contiguous()).clamp_(max=len(self.classes) - 1)
        return at, torch.where(self.classes[at] == labels, self.sizes[at], 0)

    def count(self, labels: Tensor) -> Tensor:
        """(Q,) number of items of each label."""
        return self._place(labels)[1]

    def listed(self, labels: Tensor) -> Tensor:
        """(Q, S) the items of each label, ascending, then -1 to the length of the longest list."""
        at, sizes = self._place(labels)
        position = torch.arange(int(sizes.max()) if len(sizes) else 0, device=labels.device)
        first = (self.sizes.cumsum(0) - self.sizes)[at]
        found = self.items[(first[:, None] + position).clamp_(max=len(self.items) - 1)]
        return found.masked_fill_(position >= sizes[:, None], -1)


def class_members(labels: Tensor) -> ClassMembers:
    """Sort gallery items by class.

    Args:
        labels: (G,) int64, G >= 1.
    """
    classes, sizes = torch.unique(labels, return_counts=True)
    return ClassMembers(classes, sizes, labels.argsort(stable=True))


def ranks_of_hits(hits: Tensor, width: int, kept: Tensor | None = None) -> Tensor:
    """Where the relevant items of lists are.

    Args:
        hits: (B, k) bool, whether the item at a position is relevant.
        width: how many are wanted, at least as many as any row has.
        kept: (B, k) bool, the positions that count, all hits among them; None for all.

    Returns:
        (B, width) int64 ranks from 1 on, ascending, then `MISSING`.
    """
    ranks = torch.full((len(hits), width), MISSING, device=hits.device)
    row, column = hits.nonzero(as_tuple=True)
    rank = column + 1 if kept is None else kept.cumsum(dim=1)[row, column]
    ranks[row, hits.cumsum(dim=1)[row, column] - 1] = rank
    return ranks


def retrieval_values(
    ranks: Tensor, relevant: Tensor, ks: Sequence[int], *, whole_ranking: bool = False
) -> Tensor:
    """Measures of queries by the ranks of their relevant items.

    Args:
        ranks: (B, S) int64, ascending from 1 on; `MISSING` for what was not found.
        relevant: (B,) number R >= 1 of relevant items of each query, found or not.
        ks: numbers of neighbors for recall@k.
        whole_ranking: whether to add what takes the ranks of all relevant items.

    Returns:
        (B, len(ks) + 2 or + 4) float64: recall at each k, MAP@R, R-precision, then average precision and the inverse
        of the first rank. To the last bit they do not depend on S or on the other rows.
    """
    precision, number = precision_at_hits(ranks), relevant.double()
    inside = ranks <= relevant[:, None]
    first = ranks[:, :1]
    columns = [
        (first <= torch.tensor(list(ks), device=ranks.device)).double(),
        (sum_of_row(precision * inside) / number)[:, None],
        (inside.sum(dim=1) / number)[:, None],
    ]
    if whole_ranking:
        columns += [(sum_of_row(precision) / number)[:, None], precision[:, :1]]
    return torch.cat(columns, dim=1)


def precision_at_hits(ranks: Tensor) -> Tensor:
    """(B, S) float64 i / rank_i: precision where the i-th relevant item is found; 0 where it is not."""
    number = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    return (number / ranks.double()).masked_fill_(ranks == MISSING, 0.0)


def sum_of_row(terms: Tensor) -> Tensor:
    """(B,) sums of (B, S) terms in an order of additions that zeros at the end of the rows do not change."""
    width = 1 << (terms.shape[1] - 1).bit_length()
    padded = terms.new_zeros(len(terms), width)
    padded[:, : terms.shape[1]] = terms
    return sum_by_halves(padded).clone()
