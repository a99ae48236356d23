"""Re-ranking and query expansion as plain loops over floats and sets: their specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def square(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def expanded_query(
    query: Sequence[float], gallery: Rows, neighbors: int, alpha: float, own: int
) -> list[float]:
    """(q + sum (q . x)^alpha x) of length 1, over the nearest other items."""
    others = sorted((square(query, row), j) for j, row in enumerate(gallery) if j != own)
    total = list(query)
    for _, j in others[:neighbors]:
        similarity = max(math.fsum(a * b for a, b in zip(query, gallery[j], strict=True)), 0.0)
        total = [t + similarity**alpha * x for t, x in zip(total, gallery[j], strict=True)]
    length = math.sqrt(math.fsum(t * t for t in total))
    return [t / length for t in total]


def reranked(
    queries: Rows,
    gallery: Rows,
    k1: int,
    k2: int,
    lambda_value: float,
    own: Sequence[int] | None = None,
) -> list[list[tuple[float, float, int]]]:
    """For each query all (other) gallery items in order: (re-ranked distance, squared distance, index)."""
    rows = [*queries, *gallery] if own is None else list(gallery)
    first = len(rows) - len(gallery)
    places = range(len(queries)) if own is None else own
    everything = range(len(rows))
    squares = [[square(a, b) for b in rows] for a in rows]
    # A row is its own first neighbor, also among equal ones; ties go by index.
    ranking = [
        [i, *sorted((j for j in everything if j != i), key=lambda j: (squares[i][j], j))] for i in everything
    ]
    distance = [[one / max(max(line), 1e-300) for one in line] for line in squares]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    def expanded(i: int) -> set[int]:
        first = reciprocal(i, k1)
        whole = set(first)
        for j in first:
            second = reciprocal(j, round(k1 / 2))
            if 3 * len(first & second) > 2 * len(second):
                whole |= second
        return whole

    encoding = []
    for i in everything:
        weights = {j: math.exp(-distance[i][j]) for j in expanded(i)}
        total = math.fsum(weights.values())
        encoding.append([weights.get(j, 0.0) / total for j in everything])
    mean = []
    for i in everything:
        near = ranking[i][:k2]
        mean.append([math.fsum(encoding[j][column] for j in near) / len(near) for column in everything])

    found = []
    for q in places:
        line = []
        for at in range(first, len(rows)):
            pairs = list(zip(mean[q], mean[at], strict=True))
            jaccard = 1 - math.fsum(map(min, pairs)) / math.fsum(map(max, pairs))
            if at == q:
                continue
            line.append(
                ((1 - lambda_value) * jaccard + lambda_value * distance[q][at], squares[q][at], at - first)
            )
        found.append(sorted(line))
    return found
