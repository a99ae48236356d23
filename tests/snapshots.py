"""Snapshots for tests: made by hand, from centers of classes, with plain sorting."""

from __future__ import annotations

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
    return NeighborSnapshot(
        version=version,
        step=step,
        seconds=0.0,
        coverage=1.0,
        staleness=np.zeros(4),
        backend="made by hand",
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
