"""The neighbors of embeddings by id, without Ray: build, search, measure, save."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.evaluation.neighbors import sum_by_halves
from distmetric.index.arrays import read_arrays, write_arrays
from distmetric.index.class_statistics import (
    ClassStatistics,
    class_statistics,
    distances_to_own,
    nearest_classes,
)
from distmetric.index.config import SearchConfig
from distmetric.index.labeled_search import LabeledSearch
from distmetric.index.search import Found, as_queries, measured_recall
from distmetric.index.torch_search import TorchSearcher

FORMAT = 1
Metric = Literal["l2", "cosine"]

_SAMPLE = 200
"""Rows that a recall is measured on."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The nearest members of an index to every query, nearest first, ties by id.

    Attributes:
        ids: (Q, k) int64, -1 where there are no more.
        distances: (Q, k) float32, Euclidean or 1 - cosine; inf at -1.
        labels: (Q, k) int64; -1 at -1.
        squares: (Q, k) float64 squared Euclidean distances (of the unit vectors, for cosine), which decide the
            order; inf at -1.
    """

    ids: Tensor
    distances: Tensor
    labels: Tensor
    squares: Tensor


class NeighborIndex:
    """Embeddings with ids and labels, and a searcher over them; made by `build` or `load`.

    Attributes:
        metric: "l2" or "cosine".
        search_config: How it searches.
        embeddings: (N, D) float32 or float64, ascending by id; of length 1 for cosine.
        labels: (N,) int64.
        ids: (N,) int64, ascending.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ids: Tensor,
        metric: Metric,
        search: SearchConfig,
        threads: int | None,
    ) -> None:
        self.embeddings, self.labels, self.ids = embeddings, labels, ids
        self.metric, self.search_config = metric, search
        self._search = LabeledSearch(embeddings, labels, search, threads=threads)
        self._searcher = self._search.searcher

    @classmethod
    def build(
        cls,
        embeddings: Array,
        labels: Array,
        ids: Array | None = None,
        *,
        metric: Metric = "l2",
        search: SearchConfig | None = None,
        threads: int | None = None,
    ) -> NeighborIndex:
        """Build an index.

        Args:
            embeddings: (N, D) real numbers, finite; half precision becomes single. N may be 0.
            labels: (N,) integers.
            ids: (N,) integers, unique, 0 or more; by default 0..N-1.
            metric: "l2": distance = |q - x|. "cosine": distance = 1 - q.x / (|q| |x|), in the same order as
                the Euclidean one of the unit vectors, by which it is searched.
            search: How to search; by default `SearchConfig()`.
            threads: CPU threads of FAISS; None leaves its own setting.

        Returns:
            The index.

        Raises:
            InputError: If shapes or types do not fit, embeddings are not finite, one has length 0 under cosine,
                or ids are not unique.
            ResourceError: If FAISS or a GPU was asked for by name and is not there.

        Cost: see `build_searcher`; and a sort of the ids.
        """
        if metric not in ("l2", "cosine"):
            raise InputError(f"metric={metric!r} is not known: choose one of l2, cosine")
        rows = as_embeddings(embeddings)
        classes = as_labels(labels, rows)
        if ids is None:
            numbers = torch.arange(len(rows), device=rows.device)
        else:
            numbers = as_labels(ids, rows, "ids")
            if bool((numbers[1:] <= numbers[:-1]).any()):
                numbers, order = numbers.sort(stable=True)
                rows, classes = rows[order], classes[order]
            _check_ids(numbers)
        if metric == "cosine":
            rows = _unit(rows, "embeddings")
        return cls(rows, classes, numbers, metric, search or SearchConfig(), threads)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        """Who searches, on which device, exact or with which recall."""
        return self._searcher.name

    @property
    def exact(self) -> bool:
        """Whether it finds what brute force finds."""
        return self._searcher.exact

    def search(
        self,
        queries: Array,
        k: int,
        *,
        exclude_ids: Array | None = None,
        exclude_labels: Array | None = None,
    ) -> Neighbors:
        """Find the k nearest members of every query.

        Args:
            queries: (Q, D) real numbers, finite.
            k: At least 1; may exceed the number of members.
            exclude_ids: (Q,) an id for each query that is not to be found, usually its own; an id that does not
                occur, such as -1, excludes nothing.
            exclude_labels: (Q,) a label for each query whose members are not to be found, for nearest negatives;
                one that does not occur excludes nothing.

        Returns:
            The neighbors, on the device of the queries. Ties go to the lower id, whoever searches where.

        Raises:
            InputError: If the arguments do not fit the index or each other.

        Cost: see `Searcher` and `LabeledSearch.search`.
        """
        wanted = as_queries(queries, self.embeddings, k)
        if self.metric == "cosine":
            wanted = _unit(wanted, "queries")
        own = None if exclude_ids is None else as_labels(exclude_ids, wanted, "exclude_ids")
        apart = None if exclude_labels is None else as_labels(exclude_labels, wanted, "exclude_labels")
        rows = None if own is None else self._rows_of(own)
        return self._neighbors(self._search.search(wanted, k, exclude_rows=rows, exclude_labels=apart))

    def _rows_of(self, ids: Tensor) -> Tensor:
        """The row of each id, -1 where there is none."""
        if not len(self):
            return torch.full_like(ids, -1)
        known = self.ids.to(ids.device)
        place = torch.searchsorted(known, ids.contiguous()).clamp_(max=len(known) - 1)
        return torch.where(known[place] == ids, place, -1)

    def _neighbors(self, found: Found) -> Neighbors:
        there = found.rows >= 0
        ids, labels = torch.full_like(found.rows, -1), torch.full_like(found.rows, -1)
        ids[there] = self.ids.to(found.rows.device)[found.rows[there]]
        labels[there] = self.labels.to(found.rows.device)[found.rows[there]]
        distances = found.distances if self.metric == "l2" else (found.squares / 2).to(torch.float32)
        return Neighbors(ids, distances, labels, found.squares)

    @cached_property
    def statistics(self) -> ClassStatistics:
        """Counts, centroids and radii of the classes (of the unit vectors, for cosine)."""
        return class_statistics(self.embeddings, self.labels)

    def nearest_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest other classes of every class, by root mean squared distance between their members.

        Args:
            k: At least 1; may exceed C - 1.

        Returns:
            (C, k) int64 labels for each of `statistics.labels`, nearest first, and (C, k) float64 distances; where
            there are no more, the label is -1 and the distance inf.

        Raises:
            InputError: If k is no count.

        Cost: a search of C points, see `class_statistics.nearest_classes`.
        """
        return labels_of_nearest(self.statistics, k, self.search_config)

    def radii(self, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        """How far members lie from given centers of their classes: the second pass of merged statistics.

        Args:
            labels: (C,) int64 ascending.
            centers: (C, D) float64.

        Returns:
            (C,) float64 largest and (C,) float64 smallest distance of a member of each class from its center;
            -inf and inf where this index has no member.

        Cost: O(N D).
        """
        largest = torch.full((len(labels),), -torch.inf, dtype=torch.float64, device=centers.device)
        smallest = torch.full_like(largest, torch.inf)
        if not len(self) or not len(labels):
            return largest, smallest
        members = self.labels.to(labels.device)
        place = torch.searchsorted(labels.contiguous(), members).clamp_(max=len(labels) - 1)
        asked = (labels[place] == members).nonzero().squeeze(1)
        rows = self.embeddings[asked.to(self.embeddings.device)].to(centers.device)
        distances = distances_to_own(rows, centers, place[asked])
        largest.scatter_reduce_(0, place[asked], distances, "amax")
        smallest.scatter_reduce_(0, place[asked], distances, "amin")
        return largest, smallest

    def recall(self, k: int, queries: Array | None = None) -> float:
        """Measure recall@k against an exact search.

        Args:
            k: At least 1.
            queries: (Q, D); by default up to 200 members, each without itself.

        Returns:
            Fraction 0..1 of the rows that were found among those to be found; see `measured_recall`.

        Raises:
            InputError: If queries do not fit, or k is no count.

        Cost: Q N D multiplications and two copies of the embeddings.
        """
        reference = TorchSearcher(self.embeddings, self.embeddings.device)
        if queries is not None:
            wanted = as_queries(queries, self.embeddings, k)
            wanted = _unit(wanted, "queries") if self.metric == "cosine" else wanted
            return measured_recall(self._searcher, reference, wanted, k)
        sample = random.Random(0).sample(range(len(self)), min(_SAMPLE, len(self)))
        own = torch.tensor(sorted(sample), dtype=torch.int64, device=self.embeddings.device)
        return measured_recall(self._searcher, reference, self.embeddings[own], k, own)

    def save(self, location: str) -> None:
        """Write embeddings, labels, ids and settings as one Arrow file; what is derived is built again by `load`.

        Args:
            location: Path or URI.

        Raises:
            ResourceError: If it cannot be written.
        """
        arrays = {name: getattr(self, name).cpu().numpy() for name in ("embeddings", "labels", "ids")}
        settings = {"metric": self.metric, "search": asdict(self.search_config)}
        write_arrays(location, arrays, {"neighbor_index": FORMAT, **settings})

    @classmethod
    def load(
        cls, location: str, *, search: SearchConfig | None = None, threads: int | None = None
    ) -> NeighborIndex:
        """Read what `save` wrote; it answers as the saved one did.

        Args:
            location: Path or URI.
            search: How to search; by default as it was built.
            threads: CPU threads of FAISS.

        Raises:
            InputError: If the file is not there, damaged, or no index of this format.
            ResourceError: If FAISS or a GPU was asked for by name and is not there.
        """
        arrays, meta = read_arrays(location)
        if meta.get("neighbor_index") != FORMAT:
            raise InputError(f"{location} is no neighbor index of format {FORMAT}: build and save it again")
        settings: dict[str, Any] = meta["search"]
        rows, labels, ids = (
            torch.from_numpy(np.array(arrays[name])) for name in ("embeddings", "labels", "ids")
        )
        return cls(rows, labels, ids, meta["metric"], search or SearchConfig(**settings), threads)


def labels_of_nearest(
    statistics: ClassStatistics, k: int, search: SearchConfig | None = None
) -> tuple[Tensor, Tensor]:
    """`class_statistics.nearest_classes` by label: (C, k) labels, -1 where the (C, k) float64 distance is inf.

    Raises:
        InputError: If k is no count.
    """
    if k < 1:
        raise InputError(f"k must be 1 or more, got {k}")
    places, distances, _ = nearest_classes(statistics, k, search)
    labels = torch.full_like(places, -1)
    labels[places >= 0] = statistics.labels[places[places >= 0]]
    return labels, distances


def _check_ids(ids: Tensor) -> None:
    """Raise InputError unless ascending ids are unique and 0 or more."""
    if len(ids) and int(ids[0]) < 0:
        raise InputError(f"ids must be 0 or more, got {int(ids[0])}")
    again = (ids[1:] == ids[:-1]).nonzero().squeeze(1)
    if len(again):
        raise InputError(f"ids must be unique, {int(ids[again[0]])} is there more than once")


def _unit(rows: Tensor, name: str) -> Tensor:
    """Rows of length 1, normalized in float64, in the dtype they came in.

    Raises:
        InputError: If one has length 0.
    """
    units = torch.empty_like(rows)
    for start in range(0, len(rows), 8192):
        part = rows[start : start + 8192].double()
        part /= part.abs().amax(dim=1, keepdim=True)  # squares of larger ones could overflow
        # Not by a library's norm, whose last bit may depend on the block.
        units[start : start + 8192] = part / sum_by_halves(part.square()).sqrt_()[:, None]
    empty = units.isnan().any(dim=1).nonzero().squeeze(1)
    if len(empty):
        raise InputError(f"{name} row {int(empty[0])} has length 0, which has no cosine; use metric=l2")
    return units
