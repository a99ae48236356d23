"""Which columns share a label, found by sorting once instead of comparing every pair."""

from __future__ import annotations

import torch
from torch import Tensor


class LabelIndex:
    """The columns of each label.

    Args:
        column_labels: (N,) int64 labels.

    Cost: N log N once.
    """

    def __init__(self, column_labels: Tensor) -> None:
        self._labels, self._order = torch.sort(column_labels, stable=True)

    def __len__(self) -> int:
        return len(self._order)

    def columns_of(self, labels: Tensor) -> SameLabel:
        """The columns that share the label of each anchor, the anchor's own column among them.

        Args:
            labels: (B,) int64 labels of anchors.

        Returns:
            The columns, padded to the largest number K of them. Cost: B (K + log N).
        """
        first = torch.searchsorted(self._labels, labels)
        counts = torch.searchsorted(self._labels, labels, right=True) - first
        widest = max(1, int(counts.max())) if len(counts) else 1
        within = torch.arange(widest, device=labels.device)
        positions = first[:, None] + torch.minimum(within, (counts - 1).clamp_min(0)[:, None])
        columns = self._order[positions.clamp_max(max(0, len(self) - 1))]
        return SameLabel(columns, within < counts[:, None], counts)


class SameLabel:
    """For each of B anchors the columns of its label.

    Attributes:
        columns: (B, K) int64; padding repeats a column of the same anchor.
        valid: (B, K) bool, False for padding.
        counts: (B,) int64, how many columns that are.
    """

    def __init__(self, columns: Tensor, valid: Tensor, counts: Tensor) -> None:
        self.columns, self.valid, self.counts = columns, valid, counts

    def __getitem__(self, rows: slice) -> SameLabel:
        return SameLabel(self.columns[rows], self.valid[rows], self.counts[rows])

    def positives(self, own: Tensor | None) -> Tensor:
        """(B, K) bool: the valid columns that are not the anchor's own, `own` being (B,) or None."""
        return self.valid if own is None else self.valid & (self.columns != own[:, None])

    def fill_(self, block: Tensor, value: float) -> Tensor:
        """Set the entries of a (B, N) block at the columns of the anchor's label, in place."""
        # An anchor whose label no column has is padded with a column of another label, which stays as it was.
        there = block.gather(1, self.columns)
        return block.scatter_(1, self.columns, there.masked_fill_(self.counts[:, None] > 0, value))
