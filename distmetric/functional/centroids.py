"""Fixed points for classes to gather at: as far apart on the unit sphere as the dimension allows.

Shapes: C classes, D dimensions.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import row_blocks, squared_distance_block
from distmetric.functional.hardest import argmin

Placement = Literal["auto", "one_hot", "simplex", "kmeans", "uniform"]
"""How centroids are placed; see `place_centroids`."""

PLACEMENTS: tuple[Placement, ...] = ("auto", "one_hot", "simplex", "kmeans", "uniform")

# Multiplications that repelling may take: 10 to 20 seconds of one CPU core. Every rank places its own.
WORK = 2e11
# What one exponential costs, in multiplications.
EXP_COST = 200

REPEL_STEPS = 300
# With fewer steps than this repelled points do not come near the phases.
MIN_REPEL_STEPS = 30
# A gain in the smallest distance below this is no reason to leave the phases.
WORTHWHILE = 1e-3

CLUSTER_STEPS = 20
POINTS_PER_CLASS = range(8, 65)
POINTS_PER_DRAW = 1024


class Spacing(NamedTuple):
    """Distances between all pairs of C points."""

    minimum: float
    mean: float
    maximum: float


def spacing(centroids: Tensor) -> Spacing:
    """How far apart points are from each other.

    Args:
        centroids: (C, D), C at least 2.

    Returns:
        Smallest, mean and largest euclidean distance of two of them. Cost: C C D in float64; memory one block.

    Raises:
        ValueError: If there is no pair.
    """
    if len(centroids) < 2:
        raise ValueError(f"spacing needs at least 2 points, not {len(centroids)}")
    points = centroids.detach().double()
    smallest, total, largest = math.inf, 0.0, 0.0
    for rows in row_blocks(len(points), len(points), points):
        distances = squared_distance_block(points[rows], points).sqrt_()
        own = torch.arange(rows.start, rows.stop, device=points.device)[:, None]
        distances.scatter_(1, own, 0.0)
        total += float(distances.sum())
        largest = max(largest, float(distances.max()))
        smallest = min(smallest, float(distances.scatter_(1, own, math.inf).min()))
    return Spacing(smallest, total / (len(points) * (len(points) - 1)), largest)


def place_centroids(
    num_classes: int, embedding_size: int, placement: Placement = "auto", seed: int = 0
) -> Tensor:
    """Centroids of classes on the unit sphere, and which class gets which.

    one_hot: axes of the space, all sqrt(2) apart; C <= D.

    simplex: the regular simplex, all sqrt(2 C / (C - 1)) apart, wider than any other C points; C <= D + 1.

    kmeans: means of a spherical k-means over many uniform points, scaled to length one again.

    uniform: the better spaced of two. (a) Random points that have repelled each other, by descent on log-uniformity
    sum_a log sum_{b != a} e^{t w_a.w_b} with t growing from 10 to 300, so that in the end only near neighbors
    count. (b) Polynomial phases, which cost no search and suit many classes: (e^{2 pi i (f(n) / p + q / 4)})_n /
    sqrt(p) as 2 p real numbers, for p the largest prime <= D / 2, q = 0 .. 3 and the p^k polynomials f of degree
    <= k without constant term. Their cosines are at most (k - 1) / sqrt(p) (Weil): for C <= 4 p (k = 1) the
    smallest distance is sqrt(2), the largest that more than D + 1 points can have; for C <= 4 p^2 it is at least
    sqrt(2 - 2 / sqrt(p)), 1.32 for D = 128 and 1.37 for D = 512, where 11,318 random points have 1.05 and 1.23.

    auto: simplex where it exists, since it is equidistant and wider than one_hot; uniform for more classes.

    Args:
        num_classes: C, at least 2.
        embedding_size: D.
        placement: Which one.
        seed: Key of the points that are drawn and of the random permutation that gives centroids to classes. No
            class is closer to one than to another before training, so that the permutation is as good as any.

    Returns:
        (C, D) float64 unit rows on the CPU. They are a pure function of the arguments: the same on all ranks, up to
        rounding where processors or thread counts differ. Memory O(C D) and one block. Cost: nothing worth
        mentioning for one_hot and simplex; at most `WORK` multiplications for uniform (random points as they are
        where neither way is open: many classes in very few dimensions); 8 to 64 C C D for each of 20 steps of
        kmeans, 20 seconds of one core at C = 1000 and D = 128, by that count half an hour at 20,000 and 512.

    Raises:
        ValueError: If there are fewer than 2 classes, or more than the placement has room for.

    Source: one_hot and kmeans: Do et al., arXiv 1904.08720; log-uniformity: Wang, Isola, arXiv 2005.10242; bounds on
    the smallest distance: Rankin, "The closest packing of spherical caps in n dimensions", 1955.
    """
    _check_room(num_classes, embedding_size, placement)
    if placement == "auto":
        placement = "simplex" if num_classes <= embedding_size + 1 else "uniform"
    generator = torch.Generator().manual_seed(seed)
    if placement == "one_hot":
        points = torch.eye(num_classes, embedding_size, dtype=torch.float64)
    elif placement == "simplex":
        points = _simplex(num_classes, embedding_size)
    elif placement == "kmeans":
        points = _clustered(num_classes, embedding_size, generator)
    else:
        points = _uniform(num_classes, embedding_size, generator)
    return points[torch.randperm(num_classes, generator=generator)]


def _check_room(num_classes: int, embedding_size: int, placement: Placement) -> None:
    check_choice("placement", placement, PLACEMENTS)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} leaves no other class to push from: give at least 2")
    if embedding_size < 1:
        raise ValueError(f"embedding_size={embedding_size} is no space: give at least 1")
    room = {"one_hot": embedding_size, "simplex": embedding_size + 1}.get(placement, num_classes)
    if num_classes > room:
        raise ValueError(
            f'placement="{placement}" has room for {room} classes in {embedding_size} dimensions, not for '
            f'{num_classes}: take placement="auto" or a larger embedding_size'
        )


def _simplex(num_classes: int, embedding_size: int) -> Tensor:
    """Vertices of the regular simplex, in the first C - 1 of D dimensions."""
    n = num_classes - 1
    points = torch.zeros(num_classes, embedding_size, dtype=torch.float64)
    points[:n, :n] = -(math.sqrt(n + 1) + 1) / n**1.5
    points[:n, :n].diagonal().add_(math.sqrt(1 + 1 / n))
    points[n, :n] = n**-0.5
    return points


def _uniform(num_classes: int, embedding_size: int, generator: torch.Generator) -> Tensor:
    steps = min(REPEL_STEPS, int(WORK / (num_classes**2 * (2 * embedding_size + EXP_COST))))
    phases, degree = _phases(num_classes, embedding_size)
    cannot_be_wider = degree == 1 and num_classes > embedding_size + 1
    if phases is not None and (cannot_be_wider or steps < MIN_REPEL_STEPS):
        return phases
    points = _random_points(num_classes, embedding_size, generator)
    if steps < MIN_REPEL_STEPS:
        return points
    points = _repelled(points, steps)
    if phases is None or spacing(points).minimum > spacing(phases).minimum + WORTHWHILE:
        return points
    return phases


def _random_points(count: int, embedding_size: int, generator: torch.Generator) -> Tensor:
    return _unit(torch.randn(count, embedding_size, generator=generator, dtype=torch.float64))


def _unit(rows: Tensor) -> Tensor:
    return rows.div(rows.norm(dim=1, keepdim=True))


def _repelled(points: Tensor, steps: int) -> Tensor:
    """Unit rows after steps of descent on log-uniformity, shorter and more local from step to step."""
    for step in range(steps):
        sharpness = 10.0 * 30.0 ** (step / steps)
        # Longer steps overshoot. They end at a slightly wider spacing, but where would depend on rounding, and so on
        # the machine: every rank places its own centroids, and they have to be the same.
        length = 1.0 / sharpness
        forces = torch.empty_like(points)
        for rows in row_blocks(len(points), len(points), points):
            weights = points[rows] @ points.T
            weights.scatter_(1, torch.arange(rows.start, rows.stop)[:, None], -math.inf)
            weights.sub_(weights.amax(1, keepdim=True)).mul_(sharpness).exp_()
            torch.mm(weights, points, out=forces[rows]).div_(weights.sum(1, keepdim=True))
        forces.sub_((forces * points).sum(1, keepdim=True) * points)
        points = _unit(points.sub(forces, alpha=length))
    return points


def _phases(num_classes: int, embedding_size: int) -> tuple[Tensor | None, int]:
    """Polynomial phases of the lowest degree that has enough of them; None where no cosine below 1 is certain."""
    prime = max((p for p in range(3, embedding_size // 2 + 1, 2) if _is_odd_prime(p)), default=0)
    if prime == 0:
        return None, 0
    degree = 1
    while 4 * prime**degree < num_classes:
        degree += 1
    if (degree - 1) ** 2 >= prime:
        return None, 0
    index = torch.arange(num_classes)
    quarter, coefficients = index % 4, index // 4
    exponent = torch.zeros(num_classes, prime, dtype=torch.int64)
    power = torch.ones(prime, dtype=torch.int64)
    for _ in range(degree):
        power = power * torch.arange(prime) % prime
        exponent.addcmul_(coefficients[:, None] % prime, power)
        coefficients = coefficients // prime
    angle = exponent.remainder_(prime).double().div_(prime).add_(quarter[:, None] / 4).mul_(2 * math.pi)
    points = torch.zeros(num_classes, embedding_size, dtype=torch.float64)
    points[:, :prime], points[:, prime : 2 * prime] = angle.cos(), angle.sin()
    return points.div_(math.sqrt(prime)), degree


def _is_odd_prime(number: int) -> bool:
    return number % 2 == 1 and all(number % factor for factor in range(3, math.isqrt(number) + 1, 2))


def _clustered(num_classes: int, embedding_size: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means over uniform points, which are drawn again in every step rather than kept."""
    affordable = int(WORK / (CLUSTER_STEPS * num_classes**2 * embedding_size))
    count = num_classes * min(max(affordable, POINTS_PER_CLASS[0]), POINTS_PER_CLASS[-1])
    means = _random_points(num_classes, embedding_size, generator)
    keys = torch.randint(2**62, (-(-count // POINTS_PER_DRAW),), generator=generator).tolist()
    for _ in range(CLUSTER_STEPS):
        sums = torch.zeros_like(means)
        for key in keys:
            draw = torch.Generator().manual_seed(key)
            points = _random_points(POINTS_PER_DRAW, embedding_size, draw)
            for rows in row_blocks(POINTS_PER_DRAW, num_classes, points):
                sums.index_add_(0, argmin(points[rows] @ -means.T), points[rows])
        lengths = sums.norm(dim=1, keepdim=True)
        # A mean that no point is nearest to stays where it was.
        means = torch.where(lengths > 0, sums / lengths, means)
    return means
