"""Bounds by center and radius hold, and are what the derivation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.index.class_balls import (
    MARGIN,
    SPHERE,
    class_pair_bounds,
    farthest_bounds,
    gap,
    mean_squared_distance,
    mean_squared_to_others,
    mean_squared_within,
    nearest_bounds,
    reach,
    similarity_bounds,
)

# Two classes of three points and a query, worked out by hand (and by an independent script).
SIX = torch.tensor([(0, 0), (1, 0), (0, 2), (3, 0), (3, 1), (1, 2)], dtype=torch.float64)
QUERY = torch.tensor([4.0, 3.0], dtype=torch.float64)


def ball(members: Tensor, center: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    center = members.mean(dim=0) if center is None else center
    rho = (members - center).norm(dim=1)
    return center, rho.max(), rho.min(), rho.square().mean().sqrt()


def test_worked_example() -> None:
    center, *radii = ball(SIX[3:])
    assert [round(float(r), 6) for r in radii] == [1.666667, 0.666667, 1.247219]
    d = (QUERY - center).norm()
    near, far = nearest_bounds(d, *radii), farthest_bounds(d, *radii)
    assert float(d) == pytest.approx(2.603417, abs=1e-6)
    assert float(near.lower) == pytest.approx(0.936750, abs=1e-6)
    assert float(near.upper) == float(far.lower) == pytest.approx(2.886751, abs=1e-6)
    assert float(far.upper) == pytest.approx(4.270083, abs=1e-6)
    truth = (SIX[3:] - QUERY).norm(dim=1)
    assert (float(truth.min()), float(truth.max())) == pytest.approx((2.236068, 3.162278), abs=1e-6)
    assert near.lower <= truth.min() <= near.upper
    assert far.lower <= truth.max() <= far.upper


def test_worked_mean_squared_distances() -> None:
    (first, *a), (second, *b) = ball(SIX[:3]), ball(SIX[3:])
    apart = (first - second).norm()
    assert float(mean_squared_distance(apart, a[2], b[2])) == pytest.approx(6.777778, abs=1e-6)
    assert float(mean_squared_within(a[2], torch.tensor(3))) == pytest.approx(3.333333, abs=1e-6)
    for i in range(3):
        rho = (SIX[i] - first).norm()
        others = SIX[[j for j in range(3) if j != i]]
        expected = (others - SIX[i]).square().sum(dim=1).mean()
        assert float(mean_squared_to_others(rho, a[2], torch.tensor(3))) == pytest.approx(float(expected))


def test_worked_similarity_bounds() -> None:
    bounds = similarity_bounds(torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))
    assert (float(bounds.lower), float(bounds.upper)) == pytest.approx((-0.145812, 0.685812), abs=1e-6)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Two clusters, with an outlier or collapsed or of one member each, and points anywhere or inside."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.integers(1, 16))

    def one() -> np.ndarray:
        members = random.normal(size=(draw(st.integers(1, 12)), dim)) * draw(
            st.sampled_from([0.0, 0.01, 1.0])
        )
        members += random.normal(size=dim) * draw(st.sampled_from([0.0, 1.0, 5.0]))
        if draw(st.booleans()):
            members[0] *= 30
        return np.round(members) if draw(st.booleans()) else members

    first, second = one(), one()
    points = np.concatenate([second, random.normal(size=(5, dim)) * 3, first.mean(axis=0, keepdims=True)])
    return tuple(torch.from_numpy(each) for each in (first, second, points))


def unit(rows: Tensor) -> Tensor:
    rows = torch.where(rows.norm(dim=1, keepdim=True) > 1e-3, rows, torch.ones_like(rows))
    return rows / rows.norm(dim=1, keepdim=True)


@settings(deadline=None, max_examples=200)
@given(clusters())
def test_flat_bounds_hold_for_all_members(world) -> None:
    members, others, points = world
    center, *radii = ball(members)
    slack = 1e-9 * (1 + float(members.abs().max()) + float(points.abs().max()))
    for point in points:
        d, true = (point - center).norm(), (members - point).norm(dim=1)
        near, far = nearest_bounds(d, *radii), farthest_bounds(d, *radii)
        assert near.lower - slack <= true.min() <= near.upper + slack
        assert far.lower - slack <= true.max() <= far.upper + slack
        assert true.square().mean().sqrt() == pytest.approx(float(torch.hypot(d, radii[2])), abs=slack)
    other_center, *other_radii = ball(others)
    apart = (center - other_center).norm()
    pairs = (members[:, None] - others).norm(dim=2)
    bounds = class_pair_bounds(apart, tuple(radii), tuple(other_radii))
    assert bounds.lower - slack <= pairs.min() <= bounds.upper + slack
    mean = float(mean_squared_distance(apart, radii[2], other_radii[2]))
    assert float(pairs.square().mean()) == pytest.approx(mean, rel=1e-9, abs=slack)


@settings(deadline=None, max_examples=200)
@given(clusters(), st.sampled_from([1.0, 0.125, 4.0]))
def test_spherical_bounds_hold_and_beat_the_flat_ones(world, scale) -> None:
    members, _, points = (unit(each) for each in world)
    center = unit(members.mean(dim=0, keepdim=True))[0]
    curvature = SPHERE * scale**2
    _, largest, smallest, _ = ball(members / scale, center / scale)
    least = (members @ center).min()
    for point in points:
        d, true = (point - center).norm() / scale, (members - point).norm(dim=1) / scale
        near = nearest_bounds(d, largest, smallest, curvature=curvature)
        far = farthest_bounds(d, largest, smallest, curvature=curvature)
        # Near the antipode roots of rounding errors come in.
        slack = 1e-7 / scale
        assert near.lower - slack <= true.min() <= near.upper + slack
        assert far.lower - slack <= true.max() <= far.upper + slack
        assert near.lower >= nearest_bounds(d, largest, smallest).lower - slack
        similarity = similarity_bounds((point @ center).clamp(-1, 1), least.clamp(-1, 1))
        assert similarity.lower - 1e-9 <= (members @ point).min()
        assert (members @ point).max() <= similarity.upper + 1e-9
        chord = (2 - 2 * similarity.upper).clamp_min(0).sqrt() / scale
        assert float(near.lower) == pytest.approx(
            max(float(chord), float(gap(smallest, d, curvature))), abs=slack
        )


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 2), st.floats(0, 2), st.sampled_from([0.0, SPHERE]))
def test_margins_make_single_precision_safe(a, b, curvature) -> None:
    exact = [torch.tensor(value, dtype=torch.float64) for value in (a, b)]
    # A single-precision argument is itself off by half a unit in the last place.
    single = [value.float() for value in exact]
    assert gap(*single, curvature, MARGIN).double() <= gap(*exact, curvature) + 1e-12
    assert reach(*single, curvature, MARGIN).double() >= reach(*exact, curvature) - 1e-12
    assert gap(*single, curvature, MARGIN).double() >= gap(*exact, curvature) - 5e-3
    assert reach(*single, curvature, MARGIN).double() <= reach(*exact, curvature) + 5e-3


def test_a_gap_is_negative_on_the_wrong_side_and_zero_for_equal_distances() -> None:
    for curvature in (0.0, SPHERE):
        one, half = torch.tensor(1.0), torch.tensor(0.5)
        assert gap(half, one, curvature) == -gap(one, half, curvature) < 0
        assert gap(one, one, curvature) == 0
    assert reach(torch.tensor(1.9), torch.tensor(1.9), SPHERE) == 2
