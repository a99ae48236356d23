"""Class statistics and nearest classes against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.functional import distances
from distmetric.index.class_statistics import class_statistics, distances_to_own, nearest_classes


@st.composite
def labeled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, dim, classes = draw(st.integers(1, 60)), draw(st.integers(1, 9)), draw(st.integers(1, 12))
    labels = random.integers(classes, size=rows) * 5 - 7
    values = random.normal(size=(rows, dim)) * draw(st.sampled_from([1e-3, 1.0, 50.0]))
    if draw(st.booleans()):
        values = np.round(values)
    return values + draw(st.sampled_from([0.0, 100.0])), labels


@settings(deadline=None, max_examples=60)
@given(labeled(), st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_statistics_are_those_of_plain_loops(world, dtype) -> None:
    values, labels = world
    embeddings = torch.from_numpy(values).to(dtype)
    found = class_statistics(embeddings, torch.from_numpy(labels))
    values = embeddings.double().numpy()
    assert found.labels.tolist() == sorted(set(labels.tolist()))
    for place, label in enumerate(found.labels.tolist()):
        members = values[labels == label]
        center = members.mean(axis=0)
        rho = np.linalg.norm(members - center, axis=1)
        assert int(found.counts[place]) == len(members)
        np.testing.assert_allclose(found.centroids[place], center, rtol=1e-12, atol=1e-12)
        for radius, expected in (
            (found.radius_max, rho.max()),
            (found.radius_min, rho.min()),
            (found.radius_rms, np.sqrt((rho**2).mean())),
        ):
            assert radius.dtype == torch.float64
            assert float(radius[place]) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@settings(deadline=None, max_examples=60)
@given(labeled(), st.integers(1, 15), st.sampled_from([1 << 20, 1]))
def test_nearest_classes_are_those_with_the_smallest_mean_squared_distance(world, k, block_bytes) -> None:
    values, labels = world
    found = class_statistics(torch.from_numpy(values), torch.from_numpy(labels))
    places, apart, _ = nearest_classes(found, k, block_bytes=block_bytes)
    assert places.shape == apart.shape == (len(found), k)
    members = [values[labels == label] for label in found.labels.tolist()]
    for a in range(len(found)):
        mean = [
            np.inf
            if a == b
            else np.mean([((x - y) ** 2).sum() for x in members[a] for y in members[b]]) ** 0.5
            for b in range(len(found))
        ]
        wanted = min(k, len(found) - 1)
        assert places[a, wanted:].tolist() == [-1] * (k - wanted)
        assert apart[a, wanted:].tolist() == [np.inf] * (k - wanted)
        chosen = places[a, :wanted].tolist()
        assert len(set(chosen)) == wanted
        np.testing.assert_allclose(apart[a, :wanted], [mean[b] for b in chosen], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(apart[a, :wanted], sorted(mean)[:wanted], rtol=1e-9, atol=1e-9)


def test_ties_between_classes_go_to_the_lower_place() -> None:
    corners = torch.tensor([[0, 0], [2, 0], [-2, 0], [0, 2], [0, -2]], dtype=torch.float32)
    # Each class has two equal members, so radii are 0 and the four outer classes are equally far from the first.
    found = class_statistics(corners.repeat(2, 1), torch.arange(5).repeat(2))
    places, apart, _ = nearest_classes(found, 4)
    assert places[0].tolist() == [1, 2, 3, 4]
    assert apart[0].tolist() == [2.0] * 4
    assert places[1].tolist() == [0, 3, 4, 2]


def test_a_class_of_equal_rows_has_radius_zero_exactly() -> None:
    row = torch.tensor([[0.1, 1e-7, 12345.678]])
    found = class_statistics(row.expand(7, 3), torch.zeros(7, dtype=torch.int32))
    assert (found.radius_max.item(), found.radius_min.item(), found.radius_rms.item()) == (0, 0, 0)
    assert torch.equal(found.centroids, row.double())


def test_no_rows_have_no_classes() -> None:
    found = class_statistics(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert len(found) == 0
    assert found.centroids.shape == (0, 3)
    places, apart, _ = nearest_classes(found, 2)
    assert places.shape == apart.shape == (0, 2)


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(200, 6, generator=random), torch.randint(20, (200,), generator=random)
    whole = class_statistics(rows, labels)
    neighbors = nearest_classes(whole, 5)
    monkeypatch.setitem(distances.BLOCK_BYTES, "cpu", 1)
    split = class_statistics(rows, labels)
    for name in ("labels", "counts", "centroids", "radius_max", "radius_min", "radius_rms"):
        torch.testing.assert_close(getattr(split, name), getattr(whole, name), rtol=1e-14, atol=1e-14)
    for one, other in zip(nearest_classes(split, 5, block_bytes=1)[:2], neighbors[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_distances_to_own_point() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    found = distances_to_own(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), points, torch.tensor([0, 1]))
    assert found.tolist() == [5.0, 0.0]
