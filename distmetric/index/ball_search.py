"""Branch and bound over class balls for one block of queries, and brute force in the same arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.functional.distances import block_bytes, pair_chunks
from distmetric.index.ball_layout import LARGE, BallLayout, starts
from distmetric.index.batch import Batch, rounded_roots, scores_from_below, squared_distances
from distmetric.index.center_bounds import CenterBounds
from distmetric.index.class_balls import MARGIN, gap, reach
from distmetric.index.shortlist import Shortlist


@dataclass(frozen=True)
class Wanted:
    """What is searched for.

    Args:
        k: How many rows, or classes.
        farthest: The farthest instead of the nearest; of the own class only.
        own: Rows of the query's own class, not those of the others.
        by_class: Only the best row of each class.
    """

    k: int
    farthest: bool = False
    own: bool = False
    by_class: bool = False


class BlockSearch:
    """Finds what is wanted for one batch, and counts.

    Args:
        layout: What to search.
        batch: For whom.
        wanted: What.

    Attributes:
        found: What is left; to be settled when all has been looked into.
        scanned: Distances to members that were computed.
        centers: Distances to centers that were computed.
    """

    def __init__(self, layout: BallLayout, batch: Batch, wanted: Wanted) -> None:
        self._layout, self._batch, self._wanted = layout, batch, wanted
        self.scanned = self.centers = 0
        self._bias, self._slack = batch.bias(layout.allowance), batch.slack(layout)
        # Distances of queries that must be exceeded, in the layout's units.
        self._beyond = None
        if batch.beyond is not None:
            some = batch.beyond.clamp_min(0.0)
            self._beyond = (some.sqrt() if layout.curvature else some) / layout.scale
        limit = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=batch.moved.device)
        groups = layout.class_of_position if wanted.by_class else None
        self.found = Shortlist(limit, wanted.k, self._exact, layout.order, groups)

    def prune(self) -> None:
        """Search the other classes by branch and bound.

        Distances to all centers bound the distances to all members. The balls with the smallest mean squared distance
        are looked into first; then all others whose lower bound does not exceed what has been found.
        """
        batch, limit = self._batch, self.found.limit
        bounds = CenterBounds(self._layout, batch)
        self.centers += len(batch) * self._layout.num_balls
        done = self._first_balls(bounds)
        query, ball = bounds.within(limit)
        fresh = (ball[:, None] != done[query]).all(dim=1)
        if self._beyond is not None:
            fresh &= bounds.not_all_within(query, ball, self._beyond)
        self._nearest_first(query[fresh], ball[fresh], bounds)

    def everything_within(self, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All rows of other classes that may be within (q,) float64 squared distances, unsettled.

        Returns:
            (P,) int64 queries, (P,) int64 positions, and (P,) float64 lower bounds of their squared distances.
        """
        self.found.limit.copy_(limit)
        bounds = CenterBounds(self._layout, self._batch)
        self.centers += len(self._batch) * self._layout.num_balls
        query, ball = bounds.within(limit)
        self._look_into(query, ball, *bounds.distances(query, ball))
        return self.found.candidates()

    def own_class(self) -> None:
        """Search the own class of every query: by center distances from its balls, farthest members first."""
        layout, batch = self._layout, self._batch
        query = (batch.classes >= 0).nonzero().squeeze(1)
        first = layout.first_ball[batch.classes[query]]
        counts = layout.first_ball[batch.classes[query] + 1] - first
        ball = torch.repeat_interleave(first - starts(counts)[:-1], counts)
        ball += torch.arange(len(ball), device=ball.device)
        query = torch.repeat_interleave(query, counts)
        distance = torch.empty(len(query), dtype=torch.float64, device=query.device)
        for part in pair_chunks(len(query), batch.points):
            distance[part] = squared_distances(batch.points[query[part]], layout.exact_centers[ball[part]])
        self.centers += len(query)
        distance = distance.sqrt_() / layout.scale
        if self._wanted.farthest and self._wanted.k == 1:
            self._seed_farthest(query, ball, distance)
        self._look_into(query, ball, distance * (1 - MARGIN), distance * (1 + MARGIN))

    def compare_all(self) -> None:
        """Search the other classes by brute force."""
        layout, batch = self._layout, self._batch
        budget = block_bytes(batch.moved.device) // 4
        columns = max(self._wanted.k, 256, budget // (4 * len(batch)))
        for start in range(0, len(layout.order), columns):
            block = slice(start, min(start + columns, len(layout.order)))
            scores = scores_from_below(layout.bias[block], batch.moved, layout.moved[block], self._bias)
            self.scanned += scores.numel()
            out = layout.class_of_position[block] == batch.classes[:, None]
            if bool((batch.classes < 0).any()):
                out |= torch.arange(block.start, block.stop, device=out.device) == batch.positions[:, None]
            if self._beyond is not None:
                near = self._beyond.square() * (1 - MARGIN) - self._slack
                out |= scores < near.to(scores.dtype)[:, None]
            scores.masked_fill_(out, torch.inf)
            self._lower_limits(scores, layout.class_of_position[block])
            limit = self.found.limit.clamp_max(LARGE) * (1 + MARGIN)
            query, column = (scores <= limit.to(scores.dtype)[:, None]).nonzero(as_tuple=True)
            self._take(query, column + block.start, scores[query, column])
            if self._wanted.k > 1:
                self.found.tighten()

    def _first_balls(self, bounds: CenterBounds) -> Tensor:
        """Look into the balls nearest in the mean, so many that they hold enough rows; (q, w) them, -1 for none."""
        layout, wanted, limit = self._layout, self._wanted, self.found.limit
        done = torch.empty(len(self._batch), 0, dtype=torch.int64, device=limit.device)
        count = 1.0 if wanted.by_class else len(layout.order) / layout.num_balls
        width = 2 + int((wanted.k - 1) / count)
        while True:
            upper, first = bounds.first(width, self._beyond)
            wanting = limit == torch.inf
            if done.shape[1] == 0:
                self._seed(upper)
            first = torch.where((upper < torch.inf) & wanting[:, None], first, -1)
            query, place = (first >= 0).nonzero(as_tuple=True)
            ball = first[query, place]
            fresh = (ball[:, None] != done[query]).all(dim=1)
            self._look_into(query[fresh], ball[fresh], *bounds.distances(query[fresh], ball[fresh]))
            self.found.tighten()
            done = torch.cat([done, first], dim=1)
            if not bool(((limit == torch.inf) & (first[:, -1] >= 0)).any()) or width >= layout.num_balls:
                return done
            width *= 4

    def _nearest_first(self, query: Tensor, ball: Tensor, bounds: CenterBounds) -> None:
        """Look into listed balls, in two turns: what is found in nearer ones rules out some of the others."""
        layout, limit = self._layout, self.found.limit
        near, far = bounds.distances(query, ball)
        bound = gap(near, layout.radius_max[ball], layout.curvature, MARGIN).clamp_min_(0.0)
        least = torch.full_like(limit, torch.inf).scatter_reduce_(0, query, bound, "amin")
        middle = least + (limit.clamp(0.0, LARGE).sqrt() - least) / 3
        first = bound <= middle[query]
        self._look_into(query[first], ball[first], near[first], far[first])
        self.found.tighten()
        then = ~first & (bound.square() <= limit[query] * (1 + MARGIN))
        self._look_into(query[then], ball[then], near[then], far[then])

    def _seed(self, upper: Tensor) -> None:
        """Limits from centers alone: each of the balls has a member within its upper bound."""
        layout, batch, k = self._layout, self._batch, self._wanted.k
        repeated = self._wanted.by_class and k > 1 and layout.num_balls > layout.num_classes
        if repeated or k > upper.shape[1]:
            return
        # Where nothing but the own row is ruled out, a ball may promise just that row.
        promised = torch.where((batch.positions >= 0) & (batch.classes < 0), torch.inf, upper[:, k - 1])
        torch.minimum(self.found.limit, promised, out=self.found.limit)

    def _seed_farthest(self, query: Tensor, ball: Tensor, distance: Tensor) -> None:
        """Limits from centers alone: some other member is as far away as the root mean square of all others."""
        layout, batch = self._layout, self._batch
        counts = layout.first_position.diff()[ball]
        mean = layout.mean_offset[ball] + layout.mean_slope[ball] * distance.square() - layout.mean_slack
        own = batch.positions[query]
        inside = (own >= layout.first_position[ball]) & (own < layout.first_position[ball + 1])
        to_own = torch.where(inside, self._exact(query, own).abs(), 0.0)
        others = (counts * mean - to_own) / (counts - inside.long()).clamp_min(1)
        keys = -others.clamp_min(0.0) * (1 - 8 * MARGIN) + 1e-8
        self.found.limit.scatter_reduce_(0, query, keys, "amin")

    def _lower_limits(self, scores: Tensor, classes: Tensor) -> None:
        """Lower the limits to the k-th smallest upper bound in a block of scores."""
        k, surely = self._wanted.k, scores
        if self._beyond is not None:
            past = self._beyond.square() * (1 + MARGIN)
            surely = scores.masked_fill(scores <= past.to(scores.dtype)[:, None], torch.inf)
        if self._wanted.by_class:
            first = int(classes[0])
            best = surely.new_full((len(scores), int(classes[-1]) - first + 1), torch.inf)
            surely = best.scatter_reduce_(1, (classes - first).expand_as(scores), surely, "amin")
        if surely.shape[1] >= k:
            at_k = surely.topk(k, dim=1, largest=False).values[:, -1] if k > 1 else surely.amin(dim=1)
            torch.minimum(self.found.limit, at_k.double() + self._slack, out=self.found.limit)

    def _look_into(self, query: Tensor, ball: Tensor, near: Tensor, far: Tensor) -> None:
        """Compare queries with the members of balls, tile by tile, where a tile's radii do not rule them out.

        Args:
            query: (P,) int64.
            ball: (P,) int64.
            near: (P,) float64 distances of the queries to the centers from below.
            far: (P,) float64 from above.
        """
        layout = self._layout
        if len(query) == 0:
            return
        order = ball.argsort(stable=True)
        groups = _Groups.of(query[order], ball[order], len(self._batch))
        near, far = groups.table(near[order]), groups.table(far[order])
        tiles = layout.first_tile.diff()[groups.ball]
        group = torch.repeat_interleave(torch.arange(len(tiles), device=tiles.device), tiles)
        number = torch.arange(len(group), device=group.device) - starts(tiles)[group]
        tile = layout.first_tile[groups.ball[group]] + number
        if self._wanted.farthest:
            outside_in = (tiles[group] - number).argsort(stable=True)
            group, tile = group[outside_in], tile[outside_in]
        for part in self._job_chunks(len(group), groups.query.shape[1]):
            jobs, tiles_here = group[part], tile[part]
            passing = self._passing(groups.query[jobs], near[jobs], far[jobs], layout.tile_rho[tiles_here])
            kept = passing.nonzero().squeeze(1)
            if len(kept):
                self._compare(groups.query[jobs[kept]], tiles_here[kept])

    def _passing(self, query: Tensor, near: Tensor, far: Tensor, rho: Tensor) -> Tensor:
        """(J,) whether any of a group of queries may find something in a tile."""
        curvature = self._layout.curvature
        limit = torch.nn.functional.pad(self.found.limit, (0, 1), value=-torch.inf)[query]
        low, high = rho[:, :1], rho[:, 1:]
        if self._wanted.farthest:
            best = -reach(far, high, curvature, MARGIN).square()
        else:
            best = torch.maximum(gap(near, high, curvature, MARGIN), gap(low, far, curvature, MARGIN))
            best = best.clamp_min_(0.0).square_()
        return (best <= limit + limit.abs() * MARGIN).any(dim=1)

    def _job_chunks(self, jobs: int, group: int) -> Iterator[slice]:
        width, dim = self._layout.tile_members.shape[1], self._batch.moved.shape[1]
        budget = block_bytes(self._batch.moved.device) // 8
        size = max(1, budget // ((group + width) * dim + 4 * group * width))
        for start in range(0, jobs, size):
            yield slice(start, start + size)

    def _compare(self, query: Tensor, tile: Tensor) -> None:
        """Distances of (J, g) queries, q for none, to the members of J tiles; candidates go to the list."""
        layout, batch = self._layout, self._batch
        there = query < len(batch)
        self.scanned += int((there.sum(dim=1) * layout.tile_sizes[tile]).sum())
        safe = query.clamp_max(len(batch) - 1)
        members = layout.tile_members.index_select(0, tile)
        points = batch.moved.index_select(0, safe.view(-1)).view(*safe.shape, -1)
        rows = layout.moved.index_select(0, members.view(-1)).view(*members.shape, -1)
        scores = scores_from_below(layout.bias[members], points, rows, self._bias[safe])
        limit = self.found.limit[safe]
        if self._wanted.farthest:
            least = (-limit - self._slack[safe]).clamp_min(-LARGE)
            least -= least.abs() * MARGIN
            mask = (scores >= least.to(scores.dtype)[:, :, None]) & (scores < torch.inf)
        else:
            most = limit.clamp_max(LARGE) * (1 + MARGIN)
            mask = scores <= most.to(scores.dtype)[:, :, None]
        mask &= there[:, :, None]
        job, slot, place = mask.nonzero(as_tuple=True)
        self._take(query[job, slot], members[job, place], scores[job, slot, place])

    def _take(self, query: Tensor, position: Tensor, score: Tensor) -> None:
        """Put candidates on the list, with bounds that say what the rounding of a score allows."""
        layout, batch = self._layout, self._batch
        lower = score.double()
        upper = lower + layout.slack(batch.norms[query], layout.norms[position])
        counts = position != batch.positions[query]
        if self._beyond is not None:
            square = self._beyond.square()[query]
            counts &= upper >= square * (1 - MARGIN)
            upper = torch.where(lower > square * (1 + MARGIN), upper, torch.inf)
        if self._wanted.farthest:
            lower, upper = -upper, -lower
        self.found.add(query[counts], position[counts], lower[counts], upper[counts])

    def _exact(self, query: Tensor, position: Tensor) -> Tensor:
        """(P,) float64 exact squared distances in units of scale^2, negative where the farthest are wanted."""
        layout, batch = self._layout, self._batch
        squares = torch.empty(len(query), dtype=torch.float64, device=query.device)
        for part in pair_chunks(len(query), batch.points):
            rows = layout.rows[layout.order[position[part]]]
            squares[part] = squared_distances(batch.points[query[part]], rows)
        if batch.beyond is not None:
            values = squares if layout.curvature else rounded_roots(squares)
            squares = torch.where(values > batch.beyond[query], squares, torch.inf)
        squares /= layout.scale**2
        return -squares if self._wanted.farthest else squares


@dataclass(frozen=True, eq=False)
class _Groups:
    """Pairs sorted by ball, cut into groups of at most g queries of one ball each.

    Attributes:
        query: (G, g) int64; the number of queries where there are no more.
        ball: (G,) int64.
        group: (P,) int64 and
        slot: (P,) int64 place of each pair.
    """

    query: Tensor
    ball: Tensor
    group: Tensor
    slot: Tensor

    @classmethod
    def of(cls, query: Tensor, ball: Tensor, num_queries: int) -> _Groups:
        balls, runs, lengths = torch.unique_consecutive(ball, return_inverse=True, return_counts=True)
        # Groups are as wide as a typical run is long: wider ones are mostly empty, narrower ones slow.
        width = min(32, max(4, 1 << max(0, len(query) // len(balls) - 1).bit_length()))
        groups = -(-lengths // width)
        rank = torch.arange(len(query), device=query.device) - starts(lengths)[runs]
        group, slot = starts(groups)[runs] + rank // width, rank % width
        of_group = torch.repeat_interleave(balls, groups)
        table = torch.full((len(of_group), width), num_queries, dtype=torch.int64, device=query.device)
        table[group, slot] = query
        return cls(table, of_group, group, slot)

    def table(self, values: Tensor) -> Tensor:
        """(G, g) values of the pairs; 0 where there is none."""
        table = values.new_zeros(self.query.shape)
        table[self.group, self.slot] = values
        return table
