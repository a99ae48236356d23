"""Which queries a report shows: the easiest, some at random, and the hardest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_JUDGED = 2048
"""Queries looked at; more would make a report of a large set slow without showing anything else."""


@dataclass(frozen=True)
class Selection:
    """Query indices to show, each kind (n,) int64 with at most one of a class while classes last."""

    best: NDArray[np.int64]
    random: NDArray[np.int64]
    worst: NDArray[np.int64]


def select_queries(
    embeddings: NDArray[np.floating], labels: NDArray[np.int64], count: int, seed: int
) -> Selection:
    """Pick queries by how deep the nearest right neighbor ranks, then by how close the nearest wrong one is.

    depth_q = number of wrong items nearer than the nearest right one;
    margin_q = d(q, nearest wrong) - d(q, nearest right)

    Args:
        embeddings: (N, D) finite real numbers.
        labels: (N,) integer classes.
        count: queries of each kind.
        seed: of the random kind, and of the sample judged when there are more than `MAX_JUDGED` queries.

    Returns:
        Best (depth 0, largest margin first), random, and worst (deepest first, then smallest margin). Queries
        without any right neighbor are never picked.

    Cost: min(N, MAX_JUDGED) * N * D multiplications in blocks of 16 MiB.
    """
    random = np.random.default_rng(seed)
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    able = random.permutation(np.flatnonzero(sizes[group] > 1))[:MAX_JUDGED]
    depth, margin = _judge(embeddings.astype(np.float64), labels, able)
    return Selection(
        best=_one_of_each_class(able[np.lexsort((-margin, depth))], labels, count),
        random=_one_of_each_class(able, labels, count),
        worst=_one_of_each_class(able[np.lexsort((margin, -depth))], labels, count),
    )


def _judge(
    rows: NDArray[np.float64], labels: NDArray[np.int64], queries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    depth, margin = np.zeros(len(queries), np.int64), np.zeros(len(queries))
    rows = rows - rows.mean(axis=0)
    norms = np.square(rows).sum(axis=1)
    size = max(1, 2**21 // max(1, len(rows)))
    for start in range(0, len(queries), size):
        block = queries[start : start + size]
        distances = norms[block, None] + norms - 2 * rows[block] @ rows.T
        same = labels[block, None] == labels
        wrong = np.where(same, np.inf, distances)
        same[np.arange(len(block)), block] = False
        right = np.where(same, distances, np.inf).min(axis=1)
        depth[start : start + size] = (wrong < right[:, None]).sum(axis=1)
        roots = np.sqrt(np.maximum(wrong.min(axis=1), 0)), np.sqrt(np.maximum(right, 0))
        margin[start : start + size] = roots[0] - roots[1]
    return depth, margin


def _one_of_each_class(
    candidates: NDArray[np.int64], labels: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The first `count` candidates of distinct classes, filled up in order when classes run out."""
    _, first = np.unique(labels[candidates], return_index=True)
    rest = np.setdiff1d(np.arange(len(candidates)), first)
    taken = np.sort(np.concatenate([np.sort(first), rest])[:count])
    return np.asarray(candidates[taken])
