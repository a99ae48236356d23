"""What a snapshot offers a seed: windows, unknown neighbors, and the guard against duplicates and wrong labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.samplers.neighborhoods import ClassNeighborhood, RowNeighborhood
from distmetric.samplers.reading_order import ClassRows
from snapshots import only_neighbors, snapshot_of_rows


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_window_of_classes_ends_with_the_list() -> None:
    lists = np.array([[1, 2, 3, -1], [0, 2, 3, -1], [-1] * 4, [0, 1, 2, -1]])
    near = ClassNeighborhood(only_neighbors(lists), guard=0.0)
    assert near.neighbors(0, 0, 1, 2).classes.tolist() == [2, 3]
    assert near.neighbors(0, 0, 1, 2).ranks.tolist() == [1, 2]
    assert near.neighbors(0, 0, 2, 100).classes.tolist() == [3]
    for seed, skip in ((0, 3), (0, 4), (0, 100), (2, 0)):
        found = near.neighbors(seed, 0, skip, 2)
        assert (found.classes.size, found.ranks.size, found.guarded) == (0, 0, 0)
    assert near.neighbors(0, 0, 0, 1).places is None
    assert near.first_rows(0, 0).size == 0


@given(
    counts=st.lists(st.integers(0, 4), min_size=2, max_size=8).filter(any),
    guard=st.floats(0, 3),
    skip=st.integers(0, 3),
    width=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_classes_with_centers_nearer_than_the_guard_are_dropped_and_counted(
    counts, guard, skip, width, seed
) -> None:
    counts = [*counts, 2]
    labels = np.repeat(np.arange(len(counts)), counts)
    x = np.random.default_rng(seed).normal(size=(len(labels), 3))
    snapshot = snapshot_of_rows(x, labels, k=6)
    near = ClassNeighborhood(snapshot, guard)
    several = [snapshot.radius_rms[label] for label, count in enumerate(counts) if count > 1]
    spread = [
        snapshot.radius_rms[label] if count > 1 else np.median(several) for label, count in enumerate(counts)
    ]
    for label in range(len(counts)):
        listed = [other for other in snapshot.class_neighbors[label, skip : skip + width] if other >= 0]
        away = [np.linalg.norm(snapshot.centroids[label] - snapshot.centroids[other]) for other in listed]
        limits = [guard * (spread[label] + spread[other]) / 2 for other in listed]
        kept = [other for other, d, limit in zip(listed, away, limits, strict=True) if d >= limit]
        found = near.neighbors(label, 0, skip, width)
        assert found.classes.tolist() == kept
        assert snapshot.class_neighbors[label, found.ranks].tolist() == kept
        assert found.guarded == len(listed) - len(kept)


def test_classes_of_a_single_row_count_with_the_median_radius(rng) -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 3])
    snapshot = snapshot_of_rows(rng.normal(size=(8, 2)), labels, k=3)
    known = snapshot.radius_rms[:3]
    np.testing.assert_allclose(snapshot.spreads(), [*known, np.median(known)])
    assert snapshot_of_rows(rng.normal(size=(3, 2)), np.arange(3), k=2).spreads().tolist() == [0, 0, 0]


def test_a_collapsed_model_makes_no_duplicates() -> None:
    snapshot = snapshot_of_rows(np.ones((6, 2)), np.repeat(np.arange(3), 2), k=2, positives=1)
    rows = ClassRows(np.arange(6), np.repeat(np.arange(3), 2), 2, 0)
    assert ClassNeighborhood(snapshot, 1.0).neighbors(0, 0, 0, 2).classes.tolist() == [1, 2]
    assert RowNeighborhood(snapshot, 1.0, rows, rows.classes()).neighbors(0, 0, 0, 2).guarded == 0


@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=7),
    guard=st.floats(0, 2),
    skip=st.integers(0, 4),
    width=st.integers(1, 12),
    k=st.integers(1, 4),
    visit=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_rows_of_classes_with_one_nearer_than_the_guard_are_dropped(
    counts, guard, skip, width, k, visit, seed
) -> None:
    counts = [*counts, 2]
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(seed)
    known = rng.random(len(labels)) < 0.8
    known[-2:] = True
    snapshot = snapshot_of_rows(rng.normal(size=(len(labels), 3)), labels, k=10, positives=3, known=known)
    rows = ClassRows(np.arange(len(labels)) + 50, labels, k, seed)
    near = RowNeighborhood(snapshot, guard, rows, rows.classes())
    for label in range(len(counts)):
        row = int(rows.places(label, visit)[0])
        assert labels[row] == label
        limit = guard * snapshot.spreads()[label]
        listed = [
            (int(place), float(distance))
            for place, distance in zip(
                snapshot.row_negatives[row], snapshot.row_negative_distances[row], strict=True
            )
            if place >= 0
        ]
        suspect = {labels[place] for place, distance in listed if distance < limit}
        window = [place for place, _ in listed[skip : skip + width]]
        kept = [place for place in window if labels[place] not in suspect]
        found = near.neighbors(label, visit, skip, width)
        assert found.places is not None
        assert found.places.tolist() == kept
        assert found.classes.tolist() == labels[kept].tolist()
        assert snapshot.row_negatives[row, found.ranks].tolist() == kept
        assert found.guarded == len(window) - len(kept)
        farthest = [place for place in snapshot.row_positives[row].tolist() if place >= 0]
        assert near.first_rows(label, visit).tolist() == [row, *farthest][:k]
