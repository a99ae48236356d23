"""Exact mining over a whole data set without all of its distances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.functional.checks import check_choice
from distmetric.functional.distances import block_bytes
from distmetric.index.ball_layout import LARGE, BallLayout, lay_out, rows_per_block
from distmetric.index.ball_search import BlockSearch, Wanted
from distmetric.index.ball_split import class_balls
from distmetric.index.batch import Batch, rounded_roots, squared_distances
from distmetric.index.class_statistics import ClassStatistics, class_statistics

Metric = Literal["l2", "cosine"]
Done = Callable[[int], object]

FALL_BACK_ABOVE = 0.1
"""Share of all distances above which brute force is faster."""
SAMPLE = 128
"""Queries that are searched to measure that share."""


@dataclass(frozen=True, eq=False)
class Queries:
    """What to search for.

    Args:
        points: (Q, D) embeddings, finite.
        labels: (Q,) integer class of each, which may be one that does not occur; None: no query has a class.
        rows: (Q,) int64 row of the index that each query is, which is never its own neighbor; -1 for none.
    """

    points: Tensor
    labels: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class Effort:
    """What an exact search cost.

    Attributes:
        queries: Q.
        rows: N.
        scanned: Distances to members that were computed.
        centers: Distances to centers of balls that were computed besides.
        fell_back: Whether brute force took over, since a sample of the queries had to scan too much.
    """

    queries: int
    rows: int
    scanned: int
    centers: int
    fell_back: bool

    @property
    def fraction(self) -> float:
        """`scanned` as a share of Q N; 0 without queries."""
        return self.scanned / (self.queries * self.rows) if self.queries else 0.0


@dataclass(frozen=True, eq=False)
class Mined:
    """Exact answers.

    Attributes:
        rows: (Q, k) int64 rows of the index, best first, ties by row; -1 where there are no more.
        distances: (Q, k) float64, |x - y| or 1 - cos(x, y) by metric; where there are no more, inf (nearest) or
            -inf (farthest).
        effort: What it cost.
    """

    rows: Tensor
    distances: Tensor
    effort: Effort


class ClassBallIndex:
    """Exact mining by branch and bound over class centers and radii; made by `build`.

    What is found is what brute force finds with the same arithmetic: squared differences in float64, summed in one
    fixed order; ties go to the lower row. Bounds of single-precision products only decide what need not be computed.

    Attributes:
        rows: (N, D) embeddings; of length one if the metric is cosine.
        labels: (N,) int64.
        metric: "l2" or "cosine".
        statistics: Of the classes, in the coordinates of `rows`.
        layout: What the search reads.
    """

    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        metric: Metric,
        statistics: ClassStatistics,
        layout: BallLayout,
        fall_back_above: float,
    ) -> None:
        self.rows, self.labels, self.metric = rows, labels, metric
        self.statistics, self.layout = statistics, layout
        self._fall_back_above = fall_back_above

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        embeddings: Array,
        labels: Array,
        *,
        metric: Metric = "l2",
        sub_centers: int = 4,
        fall_back_above: float = FALL_BACK_ABOVE,
    ) -> ClassBallIndex:
        """Sort rows into balls.

        Args:
            embeddings: (N, D) real numbers, finite.
            labels: (N,) integers, any values.
            metric: "l2", or "cosine" of rows of any length but 0.
            sub_centers: Balls of a class at most, a power of two; more than one are used where they pay, such as
                for a class with an outlier or with several modes.
            fall_back_above: Share of all distances beyond which brute force takes over, measured on 128 queries of
                each search that has many more; 1 for never.

        Returns:
            The index, on the device of the embeddings.

        Raises:
            InputError: If there are no rows, embeddings are not finite or not (N, D), labels are not one for each, or
                a row has length 0 and so no cosine.
            ValueError: If metric or sub_centers are none of those.

        Cost: O(N D log(sub_centers) + N log N), 128 N D to measure what pays, and three copies of the embeddings.
        """
        check_choice("metric", metric, ("l2", "cosine"))
        if sub_centers < 1 or sub_centers & (sub_centers - 1):
            raise ValueError(f"sub_centers={sub_centers} is wrong: give a power of two, 1 for none")
        rows = as_embeddings(embeddings)
        given = as_labels(labels, rows)
        if len(rows) == 0:
            raise InputError("embeddings must have at least one row")
        if metric == "cosine":
            rows = to_length_one(rows, "embeddings")
        statistics = class_statistics(rows, given)
        place = torch.searchsorted(statistics.labels, given)
        spherical = metric == "cosine"
        balls = class_balls(rows, place, len(statistics), spherical, sub_centers)
        layout = lay_out(rows, place, balls, spherical)
        return cls(rows, given, metric, statistics, layout, fall_back_above)

    def __len__(self) -> int:
        return len(self.rows)

    def members(self, rows: Array | None = None) -> Queries:
        """Rows of the index as queries: with their labels, and never their own neighbors; all of them by default."""
        if rows is None:
            chosen = torch.arange(len(self), device=self.rows.device)
        else:
            chosen = torch.as_tensor(rows, device=self.rows.device).long()
        return Queries(self.rows[chosen], self.labels[chosen], chosen)

    def hardest_negative(self, queries: Queries, *, done: Done | None = None) -> Mined:
        """The nearest row of another class for every query; see `k_hardest_negatives`, k = 1."""
        return self._search(queries, Wanted(1), done)

    def k_hardest_negatives(self, queries: Queries, k: int, *, done: Done | None = None) -> Mined:
        """The k nearest rows of other classes.

        Args:
            queries: Q of them; one without a class has every row but itself as a negative.
            k: At least 1; may exceed what there is.
            done: Called with a number of queries whenever that many more are done.

        Returns:
            (Q, k) rows, nearest first, ties by row.

        Raises:
            InputError: If queries are not finite, not as wide as the rows, or so far away that squares overflow.

        Cost: Q B D multiplications for B balls, and about `scanned` D more, each at about three times the price; Q N D
        where brute force takes over.
        """
        return self._search(queries, Wanted(_count(k)), done)

    def semi_hard_negative(self, queries: Queries, beyond: Tensor, *, done: Done | None = None) -> Mined:
        """The nearest row of another class that is farther than a given distance.

        argmin d(x, y) over the y of other classes with d(x, y) > a; FaceNet's, with a the distance of the positive

        Args:
            queries: Q of them.
            beyond: (Q,) float64 a, in the metric's unit; below 0 for any distance.
            done: See `k_hardest_negatives`.

        Returns:
            (Q, 1) rows, ties by row.

        Source: Schroff et al., arXiv 1503.03832.
        """
        given = beyond.to(self.rows.device, torch.float64)
        if given.shape != queries.points.shape[:1] or bool(given.isnan().any()):
            raise InputError("beyond must be one number for each query")
        return self._search(queries, Wanted(1), done, 2 * given if self.metric == "cosine" else given)

    def nearest_classes(self, queries: Queries, k: int, *, done: Done | None = None) -> Mined:
        """The nearest row of each of the k nearest other classes, by the distance of their nearest member.

        Args:
            queries: Q of them.
            k: At least 1; may exceed what there is.
            done: See `k_hardest_negatives`.

        Returns:
            (Q, k) rows, of a different class each, whose label is `labels[rows]`; nearest first, ties by row.
        """
        return self._search(queries, Wanted(_count(k), by_class=True), done)

    def hardest_positive(self, queries: Queries, *, done: Done | None = None) -> Mined:
        """The farthest other row of its own class for every query.

        Args:
            queries: Q of them, with labels.
            done: See `k_hardest_negatives`.

        Returns:
            (Q, 1) rows, ties by row; -1 at -inf for a query whose class has no other row.

        Cost: at most n D for a class of n, less where balls say that members near the center are no candidates.
        """
        return self._search(queries, Wanted(1, farthest=True, own=True), done)

    def nearest_positives(self, queries: Queries, k: int, *, done: Done | None = None) -> Mined:
        """The k nearest other rows of its own class for every query, nearest first, ties by row."""
        return self._search(queries, Wanted(_count(k), own=True), done)

    @torch.no_grad()
    def _search(
        self, queries: Queries, wanted: Wanted, done: Done | None, beyond: Tensor | None = None
    ) -> Mined:
        batch = self.prepare(queries, beyond)
        run = _Run(self, batch, wanted, done)
        fell_back = False
        rest = torch.arange(len(batch), device=self.rows.device)
        if not wanted.own and self._fall_back_above < 1 and len(batch) >= 4 * SAMPLE:
            step = len(batch) // SAMPLE
            run.search(rest[::step], brute=False)
            fell_back = run.scanned > self._fall_back_above * len(rest[::step]) * len(self)
            rest = rest[rest % step != 0]
        run.search(rest, brute=fell_back)
        worst = -torch.inf if wanted.farthest else torch.inf
        squares = torch.where(run.rows >= 0, run.squares, worst)
        effort = Effort(len(batch), len(self), run.scanned, run.centers, fell_back)
        return Mined(run.rows, self.from_squares(squares), effort)

    def prepare(self, queries: Queries, beyond: Tensor | None = None) -> Batch:
        """Check queries and bring them into the layout's units; for `beyond` see `Batch`."""
        layout, device = self.layout, self.rows.device
        points = as_embeddings(queries.points, "queries").to(device)
        if points.shape[1] != self.rows.shape[1]:
            raise InputError(f"queries have {points.shape[1]} columns, the index {self.rows.shape[1]}")
        if self.metric == "cosine":
            points = to_length_one(points, "queries")
        moved = layout.to_units(points)
        norms = moved.double().square().sum(dim=1)
        if bool((~(norms < LARGE / 16)).any()):
            raise InputError("queries are too far away from the indexed rows: was another model used?")
        none = torch.full((len(points),), -1, dtype=torch.int64, device=device)
        classes = positions = none
        if queries.labels is not None:
            labels = as_labels(queries.labels, points)
            known = self.statistics.labels
            place = torch.searchsorted(known, labels).clamp_max(len(known) - 1)
            classes = torch.where(known[place] == labels, place, -1)
        if queries.rows is not None:
            rows = queries.rows.to(device)
            positions = torch.where(rows >= 0, layout.position[rows.clamp_min(0)], -1)
        return Batch(points, moved, norms, classes, positions, beyond)

    def from_squares(self, squares: Tensor) -> Tensor:
        """Squared euclidean distances in the metric's unit: their roots, or halves for cosine; signs are kept."""
        if self.metric == "cosine":
            return squares / 2
        return rounded_roots(squares.abs()).copysign(squares)


class _Run:
    """One search, block by block; results by query."""

    def __init__(self, index: ClassBallIndex, batch: Batch, wanted: Wanted, done: Done | None) -> None:
        self._layout, self._batch, self._wanted, self._done = index.layout, batch, wanted, done
        device = index.rows.device
        self.rows = torch.full((len(batch), wanted.k), -1, dtype=torch.int64, device=device)
        self.squares = torch.full(self.rows.shape, torch.inf, dtype=torch.float64, device=device)
        self.scanned = self.centers = 0

    def search(self, chosen: Tensor, brute: bool) -> None:
        """Search for the chosen queries."""
        layout, wanted = self._layout, self._wanted
        budget = block_bytes(layout.moved.device) // 4
        size = min(4096, max(64, budget // (4 * (1024 if brute else layout.num_balls))))
        for part in torch.split(chosen, size):
            block = BlockSearch(layout, self._batch.only(part), wanted)
            if wanted.own:
                block.own_class()
            elif brute:
                block.compare_all()
            else:
                block.prune()
            positions, keys = block.found.settle()
            found = layout.order[positions.clamp_min(0)]
            self.rows[part] = torch.where(positions >= 0, found, -1)
            self.squares[part] = keys.abs() * layout.scale**2
            self.scanned += block.scanned
            self.centers += block.centers
            if self._done is not None:
                self._done(len(part))


def to_length_one(rows: Tensor, name: str) -> Tensor:
    """Rows divided by their lengths; those of length one, up to rounding, stay as they are.

    The same to the last bit however often and in whatever company, so that equal rows stay equal.

    Raises:
        InputError: If a row has length 0.
    """
    found, close = rows.clone(), 4 * torch.finfo(rows.dtype).eps
    step = rows_per_block(rows)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].double()
        lengths = squared_distances(block, torch.zeros_like(block)).sqrt_()
        if not float(lengths.min()) > 0:
            raise InputError(
                f"{name} row {start + int(lengths.argmin())} has length 0 and so no direction: "
                "use metric=l2, or leave it out"
            )
        lengths[(lengths - 1).abs() <= close] = 1.0
        found[start : start + step] = block.div_(lengths[:, None]).to(rows.dtype)
    return found


def _count(k: int) -> int:
    if k < 1:
        raise InputError(f"k={k} is wrong: give 1 or more")
    return k
