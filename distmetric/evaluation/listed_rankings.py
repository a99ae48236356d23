"""Lists of neighbors that somebody else made, checked, and which of their positions count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_labels, as_tensor
from distmetric.evaluation.relevance import class_members
from distmetric.evaluation.relevant_ranks import checked_index

_POSITIONS = 2**20
"""Positions of lists that are looked at at once."""


@dataclass(frozen=True)
class ListedRankings:
    """Lists and what they should name; made by `listed_rankings`.

    Attributes:
        neighbors: (Q, k) int64 gallery indices, nearest first; -1 for none.
        classes: (Q,) int64 classes of the queries.
        gallery_classes: (G,) int64 classes of the gallery.
        own: (Q,) int64 gallery index of each query; None when queries are no gallery members.
        relevant: (Q,) int64 number R of gallery items of each query's class, the query itself not counted.
    """

    neighbors: Tensor
    classes: Tensor
    gallery_classes: Tensor
    own: Tensor | None
    relevant: Tensor

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(B,) int64 queries with R > 0, (B, k) bool whether a position is of their class, and whether it counts."""
        queries = (self.relevant > 0).nonzero().squeeze(1)
        for block in torch.split(queries, max(1, _POSITIONS // max(1, self.neighbors.shape[1]))):
            lists = self.neighbors[block]
            kept = lists >= 0
            if self.own is not None:
                kept &= lists != self.own[block, None]
            hits = (self.gallery_classes[lists.clamp(min=0)] == self.classes[block, None]) & kept
            if len(block):
                yield block, hits, kept


def listed_rankings(
    neighbors: Array, query_labels: Array, gallery_labels: Array, query_index: Array | None
) -> ListedRankings:
    """Check lists of neighbors.

    Args:
        neighbors: (Q, k) gallery indices, none twice in a list; -1 for none.
        query_labels: (Q,) integers.
        gallery_labels: (G,) integers.
        query_index: (Q,) gallery index of each query, or None.

    Raises:
        InputError: when a list names an item twice or one that is not there, or lengths differ.

    Cost: a sort of each list.
    """
    lists = as_tensor(neighbors)
    if lists.ndim != 2 or lists.is_floating_point() or lists.is_complex():
        raise InputError(
            f"neighbors must be integers of shape (Q, k), got {lists.dtype} {tuple(lists.shape)}"
        )
    lists = lists.long()
    items = as_tensor(gallery_labels)
    gallery_classes = as_labels(items, items, "gallery labels").to(lists.device)
    classes = as_labels(query_labels, lists, "query labels")
    if lists.numel() and not (int(lists.min()) >= -1 and int(lists.max()) < len(items)):
        raise InputError(f"neighbors must be gallery indices from 0 to {len(items) - 1}, or -1 for none")
    for start in range(0, len(lists), step := max(1, _POSITIONS // max(1, lists.shape[1]))):
        ordered = lists[start : start + step].sort(dim=1).values
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(dim=1)
        if bool(twice.any()):
            raise InputError(f"neighbors row {start + int(twice.nonzero()[0])} names an item twice")
    relevant = class_members(gallery_classes).count(classes) if len(items) else torch.zeros_like(classes)
    own = None if query_index is None else checked_index(query_index, lists, gallery_classes)
    if own is not None:
        relevant -= (gallery_classes[own] == classes).to(relevant.dtype)
    return ListedRankings(lists, classes, gallery_classes, own, relevant)
