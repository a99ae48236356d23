"""Suspected label errors and near-duplicates from neighbors that are known already, without another search.

Rows are suspected for the reasons that `index.audit` gives, which searches a whole data set for them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.index.audit import LabelErrors, NearDuplicates, class_spreads
from distmetric.index.batch import rounded_roots, squared_distances
from distmetric.index.class_statistics import class_statistics
from distmetric.index.snapshot import NeighborSnapshot


def neighbor_distances(rows: Tensor, neighbors: Tensor) -> Tensor:
    """Distances of rows to neighbors of theirs.

    Args:
        rows: (N, D).
        neighbors: (N, m) int64 rows.

    Returns:
        (N, m) float64 euclidean distances. Cost: N m D.
    """
    return torch.stack([_apart(rows, rows[column]) for column in neighbors.T], dim=1)


def suspected_label_errors(rows: Tensor, labels: Tensor, neighbors: Tensor, distances: Tensor) -> LabelErrors:
    """Rows whose m nearest other rows all have one same other label; see `audit`, which says the same of them.

    Args:
        rows: (N, D).
        labels: (N,) int64.
        neighbors: (N, m) int64 the m nearest other rows of every row, nearest first.
        distances: (N, m) float64 their distances.

    Returns:
        The suspects, most suspicious first, ties by row; a row alone in its class is none.

    Cost: D for every member of a suspect's class.
    """
    said = labels[neighbors]
    suspects = ((said == said[:, :1]).all(dim=1) & (said[:, 0] != labels)).nonzero().squeeze(1)
    own = torch.stack([_nearest_own(rows, labels, int(row)) for row in suspects]) if len(suspects) else None
    if own is None:
        nothing = distances.new_empty(0)
        return LabelErrors(suspects, said[suspects, 0], neighbors[suspects], nothing, nothing, nothing)
    judged = (own > distances[suspects, -1]) & own.isfinite()
    suspects, own = suspects[judged], own[judged]
    mean = distances[suspects].mean(dim=1)
    scores = own / mean
    order = scores.argsort(descending=True, stable=True)
    suspects = suspects[order]
    return LabelErrors(
        suspects, said[suspects, 0], neighbors[suspects], mean[order], own[order], scores[order]
    )


def near_duplicates(
    rows: Tensor, labels: Tensor, neighbors: Tensor, distances: Tensor, fraction: float = 0.1
) -> NearDuplicates:
    """Pairs of rows of different classes, one a listed neighbor of the other, that are closer than classes are wide.

    d <= fraction * spread of either class, the root mean squared distance of its members; see `audit`.

    Args:
        rows: (N, D).
        labels: (N,) int64.
        neighbors: (N, m) int64 nearest other rows of every row.
        distances: (N, m) float64 their distances.
        fraction: At least 0; with 0 only exact copies are found.

    Returns:
        The pairs, closest in terms of that spread first, each once.
    """
    statistics = class_statistics(rows, labels)
    spread = class_spreads(statistics)[torch.searchsorted(statistics.labels, labels)]
    smaller = torch.minimum(spread[:, None], spread[neighbors])
    found, places = ((labels[neighbors] != labels[:, None]) & (distances <= fraction * smaller)).nonzero(
        as_tuple=True
    )
    others, distance = neighbors[found, places], distances[found, places]
    ratio = distance / smaller[found, places]
    ratio[distance == 0] = 0.0
    return NearDuplicates.of(found, others, distance, ratio, len(rows))


def coinciding_classes(snapshot: NeighborSnapshot, guard: float) -> NearDuplicates:
    """Classes of a snapshot whose centers all but coincide: one class under two labels, perhaps.

    |mu_a - mu_b| < guard (rms_a + rms_b) / 2, as where a sampler of hard neighbors keeps classes apart.

    Args:
        snapshot: Of the training set.
        guard: In radii.

    Returns:
        Numbers of classes in the place of rows, distances of centers, and these in mean radii.
    """
    radius, spread = snapshot.radius_rms.astype(np.float64), snapshot.spreads()
    first, place = np.nonzero(snapshot.class_neighbors >= 0)
    second = snapshot.class_neighbors[first, place].astype(np.int64)
    apart = (
        snapshot.class_distances[first, place].astype(np.float64) ** 2
        - radius[first] ** 2
        - radius[second] ** 2
    )
    distance, width = np.sqrt(np.maximum(apart, 0)), (spread[first] + spread[second]) / 2
    close = distance < guard * width
    return _listed(first[close], second[close], distance[close], width[close], snapshot.num_classes)


def coinciding_rows(snapshot: NeighborSnapshot, classes: NDArray[np.integer], guard: float) -> NearDuplicates:
    """Rows of a snapshot that all but coincide with a row of another class.

    d < guard * rms of the row's class, as where a sampler of hard neighbors keeps classes apart.

    Args:
        snapshot: Of the training set.
        classes: (M,) class of every row, as the snapshot numbers them.
        guard: In radii.

    Returns:
        Places of rows in the training split; none where the snapshot lists no rows.
    """
    if not snapshot.has_rows:
        nothing = np.empty(0, np.int64)
        return _listed(nothing, nothing, nothing, nothing, 0)
    width = snapshot.spreads()[classes]
    distances = snapshot.row_negative_distances
    first, place = np.nonzero((snapshot.row_negatives >= 0) & (distances < guard * width[:, None]))
    second = snapshot.row_negatives[first, place].astype(np.int64)
    return _listed(first, second, distances[first, place], width[first], len(classes))


def _apart(first: Tensor, second: Tensor) -> Tensor:
    return rounded_roots(squared_distances(first, second))


def _nearest_own(rows: Tensor, labels: Tensor, row: int) -> Tensor:
    """Distance of the nearest other row of the row's class; inf without any."""
    members = (labels == labels[row]).nonzero().squeeze(1)
    members = members[members != row]
    if not len(members):
        return torch.tensor(torch.inf, dtype=torch.float64, device=rows.device)
    return _apart(rows[row].expand(len(members), -1), rows[members]).min()


def _listed(first: object, second: object, distance: object, width: object, size: int) -> NearDuplicates:
    rows, others = (torch.as_tensor(each, dtype=torch.int64) for each in (first, second))
    apart, widths = (torch.as_tensor(each, dtype=torch.float64) for each in (distance, width))
    ratio = torch.where(apart > 0, apart / widths, 0.0)
    return NearDuplicates.of(rows, others, apart, ratio, size)
