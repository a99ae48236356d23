"""Centroids on the unit sphere: distances that geometry knows, better than chance, the same every time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.functional import centroids, distances
from distmetric.functional.centroids import PLACEMENTS, Placement, place_centroids, spacing

# Classes and dimensions in which every kind of uniform placement occurs: repelled points (10 in 2, 24 in 3, 150 in 16),
# a cross-polytope (40 in 24), and phases of degree 2 and 3 where steps cost too much (5000 in 128 and in 64).
UNIFORM = [(10, 2), (24, 3), (150, 16), (40, 24), (5000, 128), (5000, 64)]


def random_points(num_classes: int, embedding_size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num_classes, embedding_size, dtype=torch.float64, generator=generator)
    return points / points.norm(dim=1, keepdim=True)


@given(num_classes=st.integers(2, 20), more=st.integers(-1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_simplex_is_equidistant_for_every_dimension_it_fits_in(
    num_classes: int, more: int, seed: int
) -> None:
    found = spacing(place_centroids(num_classes, num_classes + more, "simplex", seed))
    expected = math.sqrt(2 * num_classes / (num_classes - 1))
    assert (found.minimum, found.mean, found.maximum) == pytest.approx((expected,) * 3, abs=1e-12)


def test_one_hot_centroids_are_axes_sqrt_2_apart() -> None:
    points = place_centroids(7, 9, "one_hot")
    assert sorted(points.argmax(1).tolist()) == list(range(7))
    assert points.sum() == 7
    assert spacing(points) == pytest.approx((math.sqrt(2),) * 3, abs=1e-12)


@pytest.mark.parametrize(
    ("placement", "num_classes", "embedding_size"),
    [
        (placement, num_classes, 8)
        for placement in PLACEMENTS
        for num_classes in (2, 7, 30)
        if num_classes <= 8 or placement not in ("one_hot", "simplex")  # these have no room for more
    ],
)
def test_centroids_have_length_one_and_are_distinct(
    placement: Placement, num_classes, embedding_size
) -> None:
    points = place_centroids(num_classes, embedding_size, placement)
    assert points.shape == (num_classes, embedding_size)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(num_classes, dtype=torch.float64))
    assert spacing(points).minimum > 0.5


@pytest.mark.parametrize(
    ("num_classes", "embedding_size", "widest"),
    [
        (10, 2, 2 * math.sin(math.pi / 10)),  # a decagon
        (12, 3, 1.0514622),  # the icosahedron
        (24, 3, 0.7442063),  # the snub cube
        (8, 4, math.sqrt(2)),  # above D + 1 and up to 2 D points: a cross-polytope
        (17, 10, math.sqrt(2)),
        (40, 24, math.sqrt(2)),
        (9, 8, 1.5),  # the simplex, which uniform has to find itself
    ],
)
def test_uniform_centroids_come_near_the_widest_spacing_there_is(num_classes, embedding_size, widest) -> None:
    found = spacing(place_centroids(num_classes, embedding_size, "uniform")).minimum
    assert 0.98 * widest < found < widest + 1e-6


@pytest.mark.parametrize(("num_classes", "embedding_size"), UNIFORM)
def test_uniform_centroids_are_farther_apart_than_random_points(
    num_classes: int, embedding_size: int
) -> None:
    found = spacing(place_centroids(num_classes, embedding_size, "uniform")).minimum
    assert found > spacing(random_points(num_classes, embedding_size)).minimum + 0.15


@pytest.mark.parametrize(("num_classes", "embedding_size"), [(24, 3), (60, 16), (200, 32)])
def test_uniform_centroids_are_farther_apart_than_those_of_kmeans(
    num_classes: int, embedding_size: int
) -> None:
    kmeans = spacing(place_centroids(num_classes, embedding_size, "kmeans"))
    assert spacing(place_centroids(num_classes, embedding_size, "uniform")).minimum > kmeans.minimum + 0.1
    assert kmeans.minimum > spacing(random_points(num_classes, embedding_size)).minimum


@pytest.mark.parametrize(
    ("num_classes", "embedding_size", "degree"), [(41, 24, 1), (300, 40, 2), (1444, 40, 2), (3000, 40, 3)]
)
def test_cosines_of_phases_stay_below_weils_bound(num_classes: int, embedding_size: int, degree: int) -> None:
    points, found = centroids._phases(num_classes, embedding_size)
    prime = {24: 11, 40: 19}[embedding_size]
    assert found == degree
    cosines = (points @ points.T).fill_diagonal_(-1.0)
    assert cosines.max() <= (degree - 1) / math.sqrt(prime) + 1e-12
    torch.testing.assert_close(points.norm(dim=1), torch.ones(num_classes, dtype=torch.float64))


def test_phases_are_given_up_where_nothing_bounds_their_cosines() -> None:
    assert centroids._phases(100, 5)[0] is None  # no odd prime of dimensions
    assert centroids._phases(4 * 3**2 + 1, 6)[0] is None  # degree 3 in 3 complex dimensions


def test_many_classes_in_few_dimensions_are_placed_without_a_search(monkeypatch) -> None:
    monkeypatch.setattr(centroids, "WORK", 0.0)
    points = place_centroids(500, 4, "uniform")
    assert spacing(points).minimum > 0
    torch.testing.assert_close(points.norm(dim=1), torch.ones(500, dtype=torch.float64))


def test_auto_is_the_simplex_up_to_one_class_more_than_dimensions_and_then_uniform() -> None:
    assert torch.equal(place_centroids(9, 8, "auto"), place_centroids(9, 8, "simplex"))
    assert torch.equal(place_centroids(10, 8, "auto"), place_centroids(10, 8, "uniform"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_centroids_are_a_function_of_their_seed(placement: Placement) -> None:
    size = 16 if placement in ("one_hot", "simplex") else 4
    first = place_centroids(12, size, placement, seed=1)
    torch.rand(5)  # whatever the global generator does
    assert torch.equal(place_centroids(12, size, placement, seed=1), first)
    assert not torch.equal(place_centroids(12, size, placement, seed=2), first)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("placement", "num_classes"), [("uniform", 12), ("uniform", 60), ("kmeans", 20)])
def test_blocks_change_no_more_than_rounding(
    placement: Placement, num_classes: int, seed: int, monkeypatch
) -> None:
    whole = place_centroids(num_classes, 5, placement, seed)
    monkeypatch.setitem(distances.BLOCK_BYTES, "cpu", 11 * num_classes * 8)
    monkeypatch.setattr(distances, "MIN_BLOCK_ROWS", 1)
    torch.testing.assert_close(place_centroids(num_classes, 5, placement, seed), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("num_classes", "embedding_size"), [(7, 3), (12, 5), (14, 6), (60, 6)])
def test_repelling_does_not_amplify_rounding(num_classes: int, embedding_size: int) -> None:
    """Ranks on different processors would otherwise pull a class to different places."""
    points = random_points(num_classes, embedding_size)
    nudged = points + 1e-14 * random_points(num_classes, embedding_size, seed=1)
    difference = centroids._repelled(points, 300) - centroids._repelled(nudged, 300)
    assert difference.abs().max() < 1e-11


@given(count=st.integers(2, 12), rows=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_spacing_is_that_of_all_pairs_for_any_block_size(count: int, rows: int, seed: int) -> None:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    pairs = [math.dist(a, b) for i, a in enumerate(points.tolist()) for b in points.tolist()[:i]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", rows * count * 8)
        patch.setattr(distances, "MIN_BLOCK_ROWS", 1)
        found = spacing(points)
    assert found == pytest.approx((min(pairs), sum(pairs) / len(pairs), max(pairs)), abs=1e-9)


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r'room for 16 classes in 16 dimensions, not for 17: take placement="auto"'
    ):
        place_centroids(17, 16, "one_hot")
    with pytest.raises(ValueError, match="room for 17 classes in 16 dimensions, not for 18"):
        place_centroids(18, 16, "simplex")
    with pytest.raises(ValueError, match="give at least 2"):
        place_centroids(1, 16)
    with pytest.raises(ValueError, match="embedding_size=0"):
        place_centroids(2, 0)
    with pytest.raises(ValueError, match="placement='grid' is not known"):
        place_centroids(2, 2, "grid")
    with pytest.raises(ValueError, match="at least 2 points"):
        spacing(torch.ones(1, 3))
