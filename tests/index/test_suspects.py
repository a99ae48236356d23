"""What known neighbors make suspicious is what the search of a whole data set finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.evaluation.neighbors import nearest
from distmetric.index.audit import audit
from distmetric.index.pruned_search import ClassBallIndex
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.suspects import (
    coinciding_classes,
    coinciding_rows,
    near_duplicates,
    neighbor_distances,
    suspected_label_errors,
)


def mislabeled(seed: int, classes: int, each: int, grid: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters of which some rows have another label and some are copies; on a coarse grid there are many ties."""
    random = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(each)
    rows = 3 * random.standard_normal((classes, 4))[labels] + 0.5 * random.standard_normal((len(labels), 4))
    if grid:
        rows = rows.round()
    wrong = random.random(len(labels)) < 0.15
    labels = np.where(wrong, random.integers(0, classes, len(labels)), labels)
    copied = np.flatnonzero(random.random(len(labels)) < 0.1)
    rows[copied] = rows[random.integers(0, len(rows), len(copied))]
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 9), st.booleans(), st.integers(1, 4))
def test_they_are_those_of_the_audit(seed: int, classes: int, each: int, grid: bool, m: int) -> None:
    rows, labels = mislabeled(seed, classes, each, grid)
    if len(labels.unique()) < 2 or m >= len(rows):
        return
    everyone = nearest(rows, torch.arange(len(rows)), len(rows) - 1)
    distances = neighbor_distances(rows, everyone)
    found = audit(ClassBallIndex.build(rows, labels), k=len(rows), label_neighbors=m, duplicate_fraction=0.3)
    errors = suspected_label_errors(rows, labels, everyone[:, :m], distances[:, :m])
    for name, value in vars(found.errors).items():
        torch.testing.assert_close(getattr(errors, name), value, rtol=0, atol=0)
    pairs = near_duplicates(rows, labels, everyone, distances, 0.3)
    for name, value in vars(found.duplicates).items():
        torch.testing.assert_close(getattr(pairs, name), value, rtol=0, atol=0)


def test_a_row_alone_in_its_class_is_no_suspect_and_nothing_is_nothing() -> None:
    rows = torch.tensor([[0.0], [0.1], [0.2], [0.3]])
    neighbors = nearest(rows, torch.arange(4), 2)
    distances = neighbor_distances(rows, neighbors)
    alone = suspected_label_errors(rows, torch.tensor([0, 0, 0, 1]), neighbors, distances)
    agreed = suspected_label_errors(rows, torch.zeros(4, dtype=torch.int64), neighbors, distances)
    assert len(alone.rows) == len(agreed.rows) == len(agreed.scores) == 0
    assert agreed.neighbors.shape == (0, 2)


def snapshot(**changes) -> NeighborSnapshot:
    """Three classes on a line with centers 0, 0.1 and 5, and radii 1, 1 and 0 (a single row)."""
    centers, radius = np.array([0, 0.1, 5]), np.array([1.0, 1.0, 0.0])
    apart = np.sqrt((centers[:, None] - centers) ** 2 + radius[:, None] ** 2 + radius**2)
    others = np.array([[1, 2], [0, 2], [1, 0]], np.int32)
    values = {
        "version": 1,
        "step": 10,
        "seconds": 0.1,
        "coverage": 1.0,
        "staleness": np.zeros(4),
        "backend": "torch",
        "class_counts": np.array([2, 2, 1], np.int32),
        "centroids": centers[:, None].astype(np.float32),
        "radius_max": radius.astype(np.float32),
        "radius_min": radius.astype(np.float32),
        "radius_rms": radius.astype(np.float32),
        "class_neighbors": others,
        "class_distances": np.take_along_axis(apart, others.astype(int), 1).astype(np.float32),
    }
    return NeighborSnapshot(**{**values, **changes})


@pytest.mark.parametrize(("guard", "expected"), [(0.2, [(0, 1)]), (0.05, []), (4.95, [(0, 1), (1, 2)])])
def test_classes_coincide_whose_centers_are_nearer_than_their_radii(guard: float, expected: list) -> None:
    found = coinciding_classes(snapshot(), guard)
    assert list(zip(found.rows.tolist(), found.others.tolist(), strict=True)) == expected
    for (first, second), distance in zip(expected, found.distances.tolist(), strict=True):
        assert distance == pytest.approx(abs([0, 0.1, 5][first] - [0, 0.1, 5][second]), abs=1e-3)
    assert (found.ratios.diff() >= 0).all()


def test_rows_coincide_that_are_nearer_than_the_radius_of_their_class() -> None:
    classes = np.array([0, 0, 1, 1, 2])
    negatives = np.array([[2, 3], [3, -1], [0, 4], [1, 4], [3, 2]], np.int32)
    distances = np.array([[0.05, 3], [0.3, np.inf], [0.05, 3], [0.3, 3], [0.1, 2]], np.float32)
    found = coinciding_rows(
        snapshot(row_negatives=negatives, row_negative_distances=distances), classes, guard=0.2
    )
    assert list(zip(found.rows.tolist(), found.others.tolist(), strict=True)) == [(0, 2), (3, 4)]
    assert found.distances.tolist() == pytest.approx([0.05, 0.1])
    assert len(coinciding_rows(snapshot(), classes, guard=9).rows) == 0
