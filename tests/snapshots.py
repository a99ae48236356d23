"""Snapshots for tests, made by hand: from centers of classes, from embeddings of rows, from lists of neighbors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmetric.index.snapshot import NeighborSnapshot


def snapshot_of(
    centers: NDArray[np.float64], version: int = 1, step: int = 0, k: int | None = None, rms: float = 0.1
) -> NeighborSnapshot:
    """A snapshot of classes at these centers, all of the same size and radius, without neighbors of rows.

    Args:
        centers: (C, D).
        version: Its version.
        step: Its step.
        k: Neighbors listed; all others by default.
        rms: Radius of every class.
    """
    classes = len(centers)
    k = classes - 1 if k is None else k
    gaps = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    distances = np.sqrt(gaps**2 + 2 * rms**2)
    np.fill_diagonal(distances, np.inf)
    neighbors = np.argsort(distances, axis=1, kind="stable")[:, :k]
    radii = np.full(classes, rms, dtype=np.float32)
    return _snapshot(
        version=version,
        step=step,
        class_counts=np.full(classes, 4, dtype=np.int32),
        centroids=centers.astype(np.float32),
        radius_max=radii,
        radius_min=radii.copy(),
        radius_rms=radii.copy(),
        class_neighbors=neighbors.astype(np.int32),
        class_distances=np.take_along_axis(distances, neighbors, axis=1).astype(np.float32),
    )


def random_snapshot(classes: int, version: int, step: int = 0) -> NeighborSnapshot:
    """A snapshot of classes at random places, others for every version."""
    return snapshot_of(np.random.default_rng(version).normal(size=(classes, 3)), version, step)


def snapshot_of_rows(
    embeddings: NDArray,
    labels: NDArray,
    *,
    k: int,
    positives: int = 0,
    version: int = 1,
    known: NDArray | None = None,
) -> NeighborSnapshot:
    """What an exact index would publish; with `positives` also the lists of rows, `known` says which rows it has."""
    x, known = embeddings.astype(np.float64), np.ones(len(labels), bool) if known is None else known
    count = int(labels.max()) + 1
    members = [np.flatnonzero((labels == label) & known) for label in range(count)]
    centroids = np.array([x[rows].mean(0) if len(rows) else np.zeros(x.shape[1]) for rows in members])
    radii = [np.linalg.norm(x[rows] - centroids[label], axis=1) for label, rows in enumerate(members)]
    rms = np.array([np.sqrt((radius**2).mean()) if len(radius) else 0.0 for radius in radii])
    neighbors, distances = np.full((count, k), -1, np.int32), np.full((count, k), np.inf, np.float32)
    for label in range(count):
        others = [
            other for other in range(count) if other != label and len(members[other]) and len(members[label])
        ]
        away = {
            other: np.sqrt(
                ((centroids[label] - centroids[other]) ** 2).sum() + rms[label] ** 2 + rms[other] ** 2
            )
            for other in others
        }
        nearest = sorted(others, key=lambda other: (away[other], other))[:k]
        neighbors[label, : len(nearest)] = nearest
        distances[label, : len(nearest)] = [away[other] for other in nearest]
    return _snapshot(
        version=version,
        coverage=float(known.mean()),
        class_counts=np.array([len(rows) for rows in members], np.int32),
        centroids=centroids.astype(np.float32),
        radius_max=np.array([radius.max(initial=0) for radius in radii], np.float32),
        radius_min=np.array([radius.min() if len(radius) else 0 for radius in radii], np.float32),
        radius_rms=rms.astype(np.float32),
        class_neighbors=neighbors,
        class_distances=distances,
        **(_row_lists(x, labels, known, k, positives) if positives else {}),
    )


def _row_lists(x: NDArray, labels: NDArray, known: NDArray, k: int, positives: int) -> dict[str, NDArray]:
    negative, positive = np.full((len(x), k), -1, np.int32), np.full((len(x), positives), -1, np.int32)
    negative_distance = np.full((len(x), k), np.inf, np.float32)
    positive_distance = np.full((len(x), positives), -np.inf, np.float32)
    for row in np.flatnonzero(known):
        away = np.linalg.norm(x - x[row], axis=1)
        near = [
            other
            for other in np.argsort(away, kind="stable")
            if known[other] and labels[other] != labels[row]
        ]
        far = [
            other
            for other in np.argsort(-away, kind="stable")
            if known[other] and labels[other] == labels[row] and other != row
        ]
        for rows, distance, found in (
            (negative, negative_distance, near),
            (positive, positive_distance, far),
        ):
            found = found[: rows.shape[1]]
            rows[row, : len(found)], distance[row, : len(found)] = found, away[found]
    return {
        "row_negatives": negative,
        "row_negative_distances": negative_distance,
        "row_positives": positive,
        "row_positive_distances": positive_distance,
    }


def only_neighbors(class_neighbors: NDArray, *, version: int = 1) -> NeighborSnapshot:
    """One that has these lists of classes, and centers so far apart that no guard minds."""
    count = len(class_neighbors)
    radii = np.ones(count, np.float32)
    return _snapshot(
        version=version,
        class_counts=np.full(count, 2, np.int32),
        centroids=np.zeros((count, 0), np.float32),
        radius_max=radii,
        radius_min=radii.copy(),
        radius_rms=radii.copy(),
        class_neighbors=class_neighbors.astype(np.int32),
        class_distances=np.where(class_neighbors >= 0, 100.0, np.inf).astype(np.float32),
    )


def _snapshot(**given: Any) -> NeighborSnapshot:
    """A fresh and complete one but for what is given."""
    return NeighborSnapshot(
        **{
            "step": 0,
            "seconds": 0.0,
            "coverage": 1.0,
            "staleness": np.zeros(4),
            "backend": "made by hand",
            **given,
        }
    )
