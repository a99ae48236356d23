"""What the distances of some queries to all centers say about all members."""

from __future__ import annotations

import torch
from torch import Tensor

from distmetric.evaluation.gallery import FOLD
from distmetric.evaluation.neighbors import smallest
from distmetric.index.ball_layout import LARGE, BallLayout
from distmetric.index.batch import Batch, scores_from_below
from distmetric.index.class_balls import MARGIN, reach


class CenterBounds:
    """Squared distances of q queries to B centers, from below, and what follows for the balls.

    Balls are columns 0..P-1, the B real ones and padding. Those of a query's own class, and padding, are infinitely
    far away.

    Args:
        layout: The balls.
        batch: The queries.

    Cost: q B D multiplications and q P values; each method some passes over those.
    """

    def __init__(self, layout: BallLayout, batch: Batch) -> None:
        self._layout, self._batch = layout, batch
        self._squares = scores_from_below(
            layout.center_bias, batch.moved, layout.centers, batch.bias(layout.allowance)
        )
        self._mask_own(self._squares)

    def first(self, width: int, beyond: Tensor | None) -> tuple[Tensor, Tensor]:
        """The balls with the smallest mean squared distance, of which a member is at most that far away.

        Args:
            width: How many, at most B.
            beyond: (q,) float64 distance that all members must exceed; None for any ball.

        Returns:
            (q, width) float64 upper bounds of the squared distance to the nearest member, ascending, and int64 balls;
            inf where there are no more.
        """
        layout = self._layout
        means = torch.addcmul(layout.mean_offset, layout.mean_slope, self._squares)
        self._mask_own(means)
        if beyond is not None:
            test, most = self._test(beyond.square() * (1 + 4 * MARGIN))
            means.masked_fill_(test <= most[:, None], torch.inf)
        found, ball = smallest(means, min(width, layout.num_balls))
        slack = self._batch.slack(layout) + layout.mean_slack
        return (found.clamp_min(0).double() + slack[:, None]) * (1 + 8 * MARGIN), ball

    def within(self, limit: Tensor) -> tuple[Tensor, Tensor]:
        """All balls that may have a member within a squared distance.

        Args:
            limit: (q,) float64.

        Returns:
            (P,) int64 queries and (P,) int64 balls, in no order.
        """
        test, most = self._test(limit)
        groups = test.shape[1] // FOLD
        query, group = (test.view(-1, FOLD, groups).amin(dim=1) <= most[:, None]).nonzero(as_tuple=True)
        if 4 * len(query) > len(test) * groups:
            query, ball = (test <= most[:, None]).nonzero(as_tuple=True)
            return query, ball
        columns = group[:, None] + groups * torch.arange(FOLD, device=group.device)
        at, place = (test[query[:, None], columns] <= most[query][:, None]).nonzero(as_tuple=True)
        return query[at], columns[at, place]

    def distances(self, query: Tensor, ball: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) float64 distances of listed pairs from below and from above."""
        near = self._squares[query, ball].double().clamp_min_(0.0)
        far = (near + self._batch.slack(self._layout)[query]).sqrt_()
        return near.sqrt_() * (1 - MARGIN), far * (1 + MARGIN)

    def not_all_within(self, query: Tensor, ball: Tensor, beyond: Tensor) -> Tensor:
        """(P,) whether a member of each listed ball may be farther away than (q,) float64 `beyond`."""
        layout = self._layout
        far = self.distances(query, ball)[1]
        return reach(far, layout.radius_max[ball].double(), layout.curvature, MARGIN) >= beyond[query]

    def _test(self, limit: Tensor) -> tuple[Tensor, Tensor]:
        """(q, P) values and (q,) thresholds, such that a ball has no member within the limit if it is above.

        d <= t + r, in squares d^2 - r^2 - 2 t r <= t^2, which is linear in (1, t^2, t): one thin multiplication
        instead of roots. On the sphere, with t' = t sqrt(1 - c t^2) and r' alike, by the same steps
        d^2 - r^2 + 2 c t^2 r^2 - 2 t' r' <= t^2, as long as both angles are below 90 degrees.
        """
        layout, dtype = self._layout, self._squares.dtype
        square = limit.clamp(0.0, LARGE) * (1 + MARGIN)
        anything = layout.curvature * square >= 0.5
        square = square.masked_fill(anything, 0.0)
        turned = (square * (1 - layout.curvature * square)).sqrt_()
        weights = torch.stack([torch.ones_like(square), square, turned], dim=1).to(dtype)
        with torch.autocast(self._squares.device.type, enabled=False):
            test = torch.addmm(self._squares, weights, layout.test_weights)
        rounding = 16 * torch.finfo(dtype).eps * (self._batch.norms + layout.largest)
        most = square * (1 + 4 * MARGIN) + rounding
        return test, most.masked_fill(anything, LARGE).to(dtype)

    def _mask_own(self, values: Tensor) -> None:
        layout, classes = self._layout, self._batch.classes
        known = (classes >= 0).nonzero().squeeze(1)
        first = layout.first_ball[classes[known]]
        counts = layout.first_ball[classes[known] + 1] - first
        for number in range(int(counts.max()) if len(known) else 0):
            some = counts > number
            values[known[some], first[some] + number] = torch.inf
