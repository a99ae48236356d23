"""Several balls for a class that one does not fit: outliers, several modes."""

from __future__ import annotations

import torch
from torch import Tensor

from distmetric.functional.distances import squared_distance_block
from distmetric.functional.segments import segment_extreme
from distmetric.index.ball_layout import Balls, measure_balls, rows_per_block
from distmetric.index.class_balls import SPHERE, gap
from distmetric.index.class_statistics import distances_to_own

SAMPLE = 128
"""Rows whose nearest negatives say how often a ball is looked into."""
BALL_COST = 1.0
"""What one more center costs every query, in distances to members. The time of a search hardly depends on it between
0.5 and 4: fewer distances, in smaller portions."""


def class_balls(
    rows: Tensor, class_of_row: Tensor, num_classes: int, spherical: bool, most: int, seed: int = 0
) -> Balls:
    """One ball per class, or up to `most` where several pay.

    A ball is cut in two, between its member farthest from the center and the member farthest from that one. The cut
    is kept if it saves more distances than the additional center costs, as measured on a sample of queries:
    n v > n_1 v_1 + n_2 v_2 + cost, where v is the share of the sample whose nearest negative is no nearer than the
    ball's lower bound. An outlier so becomes a ball of one member: no more work for a query than an outlier on a list
    that is always scanned, and its bound, which is exact, still rules it out.

    Args:
        rows: (N, D); of length one if spherical.
        class_of_row: (N,) int64, 0 <= class < C, none of them empty.
        num_classes: C.
        spherical: Whether distances are chords of the unit sphere.
        most: Balls of a class at most, a power of two.
        seed: Key of the sample.

    Returns:
        The balls.

    Cost: O(N D log(most)), and 128 (N + balls) D for the sample.
    """
    balls = measure_balls(rows, class_of_row, torch.arange(num_classes, device=rows.device), spherical)
    rounds = most.bit_length() - 1
    if rounds == 0 or num_classes == 1 or len(rows) == num_classes:
        return balls
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(rows), generator=generator)[:SAMPLE].to(rows.device)
    tau = _nearest_negatives(rows, class_of_row, sample)
    work = balls.counts * _visits(rows, class_of_row, sample, tau, balls, spherical)
    for _ in range(rounds):
        apart = _cut(rows, balls)
        halves, parent = _halved(rows, balls, apart, spherical)
        half_work = halves.counts * _visits(rows, class_of_row, sample, tau, halves, spherical)
        both = torch.zeros_like(work).index_add_(0, parent, half_work)
        pays = work - both > BALL_COST
        if not bool(pays.any()):
            break
        kept = pays[parent]
        balls, old = _halved(rows, balls, apart & pays[balls.ball], spherical)
        # Halves come in the same order in both, those of a ball that stays whole as one.
        work = work[old]
        work[pays[old]] = half_work[kept]
    return balls


def _nearest_negatives(rows: Tensor, class_of_row: Tensor, sample: Tensor) -> Tensor:
    """(S,) distance of sampled rows to the nearest row of another class; inf without one."""
    nearest = torch.full((len(sample),), torch.inf, dtype=torch.float64, device=rows.device)
    queries, step = rows[sample].double(), max(1, rows_per_block(rows) // 4)
    for start in range(0, len(rows), step):
        squares = squared_distance_block(queries, rows[start : start + step].double())
        own = class_of_row[sample][:, None] == class_of_row[start : start + step]
        torch.minimum(nearest, squares.masked_fill_(own, torch.inf).amin(dim=1), out=nearest)
    return nearest.sqrt_()


def _visits(
    rows: Tensor, class_of_row: Tensor, sample: Tensor, tau: Tensor, balls: Balls, spherical: bool
) -> Tensor:
    """(B,) float64 share of the sample that would look into each ball."""
    radius, queries, shares = balls.radius, rows[sample].double(), []
    step = max(1, rows_per_block(rows) // 4)
    for start in range(0, len(balls), step):
        block = slice(start, start + step)
        distance = squared_distance_block(queries, balls.centers[block]).sqrt_()
        looks = gap(distance, radius[block], SPHERE if spherical else 0.0) <= tau[:, None]
        looks &= class_of_row[sample][:, None] != balls.classes[block]
        shares.append(looks.double().mean(dim=0))
    return torch.cat(shares)


def _cut(rows: Tensor, balls: Balls) -> Tensor:
    """(N,) which half of its ball each row belongs to; False for all of a ball that cannot be cut."""
    first = _farthest(balls.rho, balls)
    from_first = distances_to_own(rows, rows[first].double(), balls.ball)
    second = _farthest(from_first, balls)
    apart = from_first < distances_to_own(rows, rows[second].double(), balls.ball)
    apart &= (balls.counts >= 3)[balls.ball]
    return apart


def _farthest(distance: Tensor, balls: Balls) -> Tensor:
    """(B,) the first row of each ball that has its largest value."""
    largest = segment_extreme(distance, balls.ball, len(balls), largest=True)
    at = (distance == largest[balls.ball]).nonzero().squeeze(1)
    first = torch.full((len(balls),), len(distance), dtype=torch.int64, device=distance.device)
    return first.scatter_reduce_(0, balls.ball[at], at, "amin")


def _halved(rows: Tensor, balls: Balls, apart: Tensor, spherical: bool) -> tuple[Balls, Tensor]:
    """Balls with those rows set apart from the others of their ball, and the ball each comes from."""
    occurring, ball = torch.unique(2 * balls.ball + apart, return_inverse=True)
    parent = occurring // 2
    return measure_balls(rows, ball, balls.classes[parent], spherical), parent
