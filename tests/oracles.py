"""The losses as plain loops over Python floats: slow, obvious, and what the fast ones are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def positives(labels: Sequence[int], anchor: int) -> list[int]:
    return [j for j, label in enumerate(labels) if label == labels[anchor] and j != anchor]


def negatives(labels: Sequence[int], anchor: int) -> list[int]:
    return [j for j, label in enumerate(labels) if label != labels[anchor]]


def batch_hard(embeddings: Rows, labels: Sequence[int], margin: float | str) -> float:
    terms = []
    for a in range(len(labels)):
        if not positives(labels, a) or not negatives(labels, a):
            continue
        farthest = max(distance(embeddings[a], embeddings[p]) for p in positives(labels, a))
        nearest = min(distance(embeddings[a], embeddings[n]) for n in negatives(labels, a))
        gap = farthest - nearest
        terms.append(math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, gap + float(margin)))
    return sum(terms) / len(terms) if terms else 0.0


def lifted_structure(
    embeddings: Rows, labels: Sequence[int], neg_margin: float = 1.0, pos_margin: float = 0.0
) -> float:
    """As the paper writes it: a sum over the negatives of both ends for every unordered positive pair."""
    terms = []
    for i in range(len(labels)):
        for j in positives(labels, i):
            if j < i:
                continue
            exponentials = [
                math.exp(neg_margin - distance(embeddings[end], embeddings[k]))
                for end in (i, j)
                for k in negatives(labels, end)
            ]
            if exponentials:
                lifted = math.log(sum(exponentials)) + distance(embeddings[i], embeddings[j]) - pos_margin
                terms.append(max(0.0, lifted) ** 2)
    return sum(terms) / (2 * len(terms)) if terms else 0.0
