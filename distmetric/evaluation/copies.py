"""Equal rows of a gallery: only one of each is compared, and all are counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Copies:
    """Which gallery items are equal; made by `find_copies`.

    Attributes:
        members: (U,) int64, ascending: the first item of each distinct row.
        column: (N,) int64, the distinct row of each item.
        numbers: (U,) int64, items of each distinct row; None where all items differ.
        keys: (N,) int64, ascending, column * N + item; None likewise.
    """

    members: Tensor
    column: Tensor
    numbers: Tensor | None
    keys: Tensor | None

    def number(self, columns: Tensor) -> Tensor:
        """How many items are equal to distinct rows."""
        return torch.ones_like(columns) if self.numbers is None else self.numbers[columns]

    def before(self, columns: Tensor, items: Tensor) -> Tensor:
        """How many of the items equal to distinct rows have a lower index than certain items."""
        if self.numbers is None or self.keys is None:
            return (self.members[columns] < items).long()
        first = self.numbers.cumsum(0) - self.numbers
        return torch.searchsorted(self.keys, columns * len(self.column) + items) - first[columns]


def find_copies(rows: Tensor) -> Copies:
    """Find the distinct rows.

    Args:
        rows: (N, D) real numbers, N >= 1.

    Cost: one sort of N rows.
    """
    index = torch.arange(len(rows), device=rows.device)
    distinct, group, sizes = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if len(distinct) == len(rows):
        return Copies(index, index, None, None)
    first = torch.full((len(distinct),), len(rows), device=rows.device).scatter_reduce_(
        0, group, index, "amin"
    )
    members, order = first.sort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=rows.device)
    column = place[group]
    return Copies(members, column, sizes[order], (column * len(rows) + index).sort().values)
