"""What the distance to a class's center says about the distances to its members: bounds that need no member.

A class (or a part of one) is a ball: a center mu, the distances rho_y = |y - mu| of its members, their largest,
smallest and root mean square. By the triangle inequality

    |d - rho_y| <= |x - y| <= d + rho_y,  d = |x - mu|

and on the unit sphere, whose angles obey it too, the same holds for angles. Chords (euclidean distances of unit
vectors) are what is computed, 2 sin(angle / 2), so `gap` and `reach` are the difference and the sum of two angles,
said in chords; with curvature 0 they are plain difference and sum. All functions are elementwise and broadcast.

Derivation and literature: Fukunaga, Narendra, "A branch and bound algorithm for computing k-nearest neighbors", 1975;
Schubert, "A triangle inequality for cosine similarity", arXiv 2107.04071, for the sphere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SPHERE = 0.25
"""Curvature of the unit sphere, 1 / (4 R^2); 0 is flat space."""
MARGIN = 1e-6
"""Relative margin that makes bounds computed in single precision hold all the same."""


class Bounds(NamedTuple):
    """What a value lies between."""

    lower: Tensor
    upper: Tensor


def gap(longer: Tensor, shorter: Tensor, curvature: float = 0.0, margin: float = 0.0) -> Tensor:
    """Least distance of two points at given distances from a third, signed: negative if `longer` is the shorter.

    flat: a - b; sphere: 2 R sin((A - B) / 2) = a sqrt(1 - c b^2) - b sqrt(1 - c a^2) for the angles A, B of the chords

    Args:
        longer: a, any shape.
        shorter: b, broadcastable.
        curvature: c = 1 / (4 R^2); 0 for flat space.
        margin: Relative allowance for rounding; the result is never above the exact one by more than rounding of
            less than this.

    Returns:
        The bound in the type of the arguments. Increasing in a, decreasing in b.
    """
    if curvature == 0:
        return longer * (1 - margin) - shorter * (1 + margin)
    nearer = longer * (1 - margin) * _root(1 - margin - curvature * shorter.square())
    return nearer - shorter * (1 + margin) * _root(1 + margin - curvature * longer.square())


def reach(first: Tensor, second: Tensor, curvature: float = 0.0, margin: float = 0.0) -> Tensor:
    """Largest distance of two points at given distances from a third.

    flat: a + b; sphere: 2 R sin((A + B) / 2) = a sqrt(1 - c b^2) + b sqrt(1 - c a^2), and 2 R if A + B exceeds pi

    Args:
        first: a, any shape.
        second: b, broadcastable.
        curvature: c = 1 / (4 R^2); 0 for flat space.
        margin: Relative allowance for rounding; the result is never below the exact one by more than rounding of
            less than this.

    Returns:
        The bound in the type of the arguments.
    """
    if curvature == 0:
        return (first + second) * (1 + margin)
    a, b = curvature * first.square(), curvature * second.square()
    total = (first * _root(1 + margin - b) + second * _root(1 + margin - a)) * (1 + margin)
    return torch.where(a + b >= 1 - margin, curvature**-0.5 * (1 + margin), total)


def nearest_bounds(
    distance: Tensor,
    radius_max: Tensor,
    radius_min: Tensor,
    radius_rms: Tensor | None = None,
    curvature: float = 0.0,
) -> Bounds:
    """Bounds of the distance from a point to the nearest member of a ball.

    max(0, d - r_max, r_min - d) <= min_y |x - y| <= min(d + r_min, sqrt(d^2 + r_rms^2))

    Args:
        distance: d, from the point to the center.
        radius_max: Largest rho.
        radius_min: Smallest rho.
        radius_rms: Root mean square of rho, if the center is the mean of the members; None otherwise.
        curvature: 1 / (4 R^2), and no `radius_rms`, for angles.

    Returns:
        Both bounds; tight for a single member.
    """
    lower = torch.maximum(
        gap(distance, radius_max, curvature), gap(radius_min, distance, curvature)
    ).clamp_min(0.0)
    upper = reach(distance, radius_min, curvature)
    if radius_rms is not None:
        upper = torch.minimum(upper, torch.hypot(distance, radius_rms))
    return Bounds(lower, upper)


def farthest_bounds(
    distance: Tensor,
    radius_max: Tensor,
    radius_min: Tensor,
    radius_rms: Tensor | None = None,
    curvature: float = 0.0,
) -> Bounds:
    """Bounds of the distance from a point to the farthest member of a ball.

    max(sqrt(d^2 + r_rms^2), r_max - d, d - r_min) <= max_y |x - y| <= d + r_max

    Args:
        distance: d, from the point to the center.
        radius_max: Largest rho.
        radius_min: Smallest rho.
        radius_rms: Root mean square of rho, if the center is the mean of the members; None otherwise.
        curvature: 1 / (4 R^2), and no `radius_rms`, for angles.

    Returns:
        Both bounds.
    """
    lower = torch.maximum(
        gap(radius_max, distance, curvature), gap(distance, radius_min, curvature)
    ).clamp_min(0.0)
    if radius_rms is not None:
        lower = torch.maximum(lower, torch.hypot(distance, radius_rms))
    return Bounds(lower, reach(distance, radius_max, curvature))


def class_pair_bounds(
    distance: Tensor,
    first: tuple[Tensor, Tensor, Tensor],
    second: tuple[Tensor, Tensor, Tensor],
) -> Bounds:
    """Bounds of the least distance between members of two classes, in flat space.

    max(0, D - r_a - r_b) <= min |x - y| <= min(D + r_a^min + r_b^min, sqrt(D^2 + rms_a^2 + rms_b^2))

    Args:
        distance: D = |mu_a - mu_b| between the means.
        first: Largest, smallest and root mean square radius of a.
        second: The same of b.

    Returns:
        Both bounds.
    """
    lower = (distance - first[0] - second[0]).clamp_min(0.0)
    mean = mean_squared_distance(distance, first[2], second[2]).sqrt()
    return Bounds(lower, torch.minimum(distance + first[1] + second[1], mean))


def mean_squared_distance(distance: Tensor, first_rms: Tensor, second_rms: Tensor) -> Tensor:
    """Mean squared distance between the members of two classes, exactly: D^2 + rms_a^2 + rms_b^2.

    Args:
        distance: D = |mu_a - mu_b| between the means.
        first_rms: Root mean square radius of a; 0 for a point.
        second_rms: The same of b.

    Returns:
        The mean over all pairs, without a pair computed.
    """
    return distance.square() + first_rms.square() + second_rms.square()


def mean_squared_to_others(rho: Tensor, radius_rms: Tensor, counts: Tensor) -> Tensor:
    """Mean squared distance from a member to the other members of its class: n / (n - 1) (rho^2 + rms^2).

    Args:
        rho: Distance of the member from the mean.
        radius_rms: Root mean square of rho over the class.
        counts: n; NaN comes of a class of one.

    Returns:
        The mean. Over all members of the class it is the mean squared distance within, 2 n / (n - 1) rms^2.
    """
    return counts / (counts - 1) * (rho.square() + radius_rms.square())


def mean_squared_within(radius_rms: Tensor, counts: Tensor) -> Tensor:
    """Mean squared distance of two different members of a class: 2 n / (n - 1) rms^2; NaN for a class of one."""
    return mean_squared_to_others(radius_rms, radius_rms, counts)


def similarity_bounds(similarity: Tensor, least_similarity: Tensor) -> Bounds:
    """Bounds of the cosine similarity between a unit vector and any member of a cap of unit vectors.

    upper = 1 if s >= t else s t + sqrt(1 - s^2) sqrt(1 - t^2); lower = -1 if s <= -t else s t - the same root

    Args:
        similarity: s, of the vector to the unit center of the cap.
        least_similarity: t, the least similarity of a member to that center.

    Returns:
        Both bounds, which some unit vectors of the cap attain. 2 - 2 upper is the square of the chord that `gap` gives.
    """
    product = similarity * least_similarity
    root = _root(1 - similarity.square()) * _root(1 - least_similarity.square())
    lower = torch.where(similarity <= -least_similarity, -1.0, product - root)
    return Bounds(lower, torch.where(similarity >= least_similarity, 1.0, product + root))


def _root(value: Tensor) -> Tensor:
    return value.clamp_min(0.0).sqrt()
