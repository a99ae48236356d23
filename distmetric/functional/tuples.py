"""Pairs and triplets as index tensors: what miners return and losses take, as in pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.functional.distances import row_blocks
from distmetric.functional.distinct_pairs import distinct_pairs
from distmetric.functional.index_lists import collected
from distmetric.functional.label_bands import expanded_ranges, label_ranges, positive_columns


@dataclass(frozen=True)
class Tuples:
    """Chosen pairs: anchor rows with positive columns, and anchor rows with negative columns.

    Args:
        anchors_of_positives: (P,) int64 rows of anchors.
        positives: (P,) int64 columns.
        anchors_of_negatives: (Q,) int64 rows of anchors.
        negatives: (Q,) int64 columns.
        triplets: Whether entry t of all four belongs to triplet t (then P = Q, and both anchors are equal).
    """

    anchors_of_positives: Tensor
    positives: Tensor
    anchors_of_negatives: Tensor
    negatives: Tensor
    triplets: bool

    @classmethod
    def of(cls, indices: Sequence[Tensor]) -> Tuples:
        """From (anchors, positives, negatives) or (anchors, positives, anchors, negatives).

        Raises:
            ValueError: If it is neither.
        """
        if len(indices) == 3 and len({len(part) for part in indices}) == 1:
            anchors, positives, negatives = indices
            return cls(anchors, positives, anchors, negatives, triplets=True)
        if len(indices) == 4:
            first, positives, second, negatives = indices
            if len(first) == len(positives) and len(second) == len(negatives):
                return cls(first, positives, second, negatives, triplets=False)
        raise ValueError(
            "indices_tuple must be (anchors, positives, negatives) or (anchors, positives, anchors, negatives) "
            f"of equally long index tensors, not {[tuple(part.shape) for part in indices]}"
        )

    def indices(self) -> tuple[Tensor, ...]:
        """What `of` takes: (anchors, positives, negatives), or of pairs (anchors, positives, anchors, negatives)."""
        if self.triplets:
            return self.anchors_of_positives, self.positives, self.negatives
        return self.anchors_of_positives, self.positives, self.anchors_of_negatives, self.negatives

    def of_anchors(self, first: int, number: int) -> Tuples:
        """Those of anchors `first` .. `first + number - 1`, which are numbered from 0 in the result."""

        def own(anchors: Tensor) -> Tensor:
            return (anchors >= first) & (anchors < first + number)

        positive, negative = own(self.anchors_of_positives), own(self.anchors_of_negatives)
        return Tuples(
            self.anchors_of_positives[positive] - first,
            self.positives[positive],
            self.anchors_of_negatives[negative] - first,
            self.negatives[negative],
            self.triplets,
        )

    def distinct(self, num_columns: int) -> Tuples:
        """Each pair once, for losses that sum over sets of columns; `num_columns` is above every column."""
        return Tuples(
            *distinct_pairs(self.anchors_of_positives, self.positives, num_columns),
            *distinct_pairs(self.anchors_of_negatives, self.negatives, num_columns),
            triplets=False,
        )

    def fingerprint(self) -> Tensor:
        """A whole number below 10^6, float64, that other tuples hardly have too."""
        number = torch.zeros((), dtype=torch.int64, device=self.positives.device)
        for part in (self.anchors_of_positives, self.positives, self.anchors_of_negatives, self.negatives):
            place = torch.arange(1, len(part) + 1, device=part.device) % 9973
            number = (number * 31 + ((part + 1) * place % 999_983).sum()) % 999_983
        return number.double()

    def as_triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        """(T,) anchors, positives, negatives; of pairs, every positive with every negative of the same anchor."""
        if self.triplets:
            return self.anchors_of_positives, self.positives, self.negatives
        # For each positive pair, the run of its anchor's negatives in a list sorted by anchor.
        order = torch.argsort(self.anchors_of_negatives, stable=True)
        sorted_anchors = self.anchors_of_negatives[order]
        pair, places = expanded_ranges(*label_ranges(self.anchors_of_positives, sorted_anchors))
        return self.anchors_of_positives[pair], self.positives[pair], self.negatives[order[places]]


def all_positive_pairs(
    labels: Tensor, column_labels: Tensor, anchor_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """List all (anchor, column) pairs of equal label, without the pairs of an anchor with itself.

    Args:
        labels: (B,) int64 labels of the anchors.
        column_labels: (N,) int64 labels of the columns.
        anchor_index: (B,) column of each anchor itself, or None for disjoint sets.

    Returns:
        Two (P,) int64 tensors, rows of anchors (ascending) and of columns. P is B (K - 1) for K rows a class.
        Cost: N log N + P. An anchor that is alone with its label has no pair.
    """
    anchors, columns = positive_columns(labels, column_labels)
    if anchor_index is None:
        return anchors, columns
    other = columns != anchor_index[anchors]
    return anchors[other], columns[other]


def all_negative_pairs(labels: Tensor, column_labels: Tensor) -> tuple[Tensor, Tensor]:
    """List all (anchor, column) pairs of different label.

    Args:
        labels: (B,) int64 labels of the anchors.
        column_labels: (N,) int64 labels of the columns.

    Returns:
        Two (Q,) int64 tensors, rows of anchors (ascending) and of columns. Q is B (N - K) for K rows a class, which
        is what the list costs; masks come and go in blocks.
    """

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in row_blocks(len(labels), len(column_labels), labels):
            row, column = (labels[rows, None] != column_labels).nonzero().unbind(1)
            yield row + rows.start, column

    anchors, columns = collected(blocks(), 2, labels)
    return anchors, columns
