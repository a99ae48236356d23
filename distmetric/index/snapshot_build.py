"""From embeddings to a snapshot: class statistics, neighbors of classes and, where asked for, of rows.

The rows may lie in several shards, each with whole classes; the snapshot is the same for any division.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from operator import methodcaller
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.index.class_statistics import ClassStatistics, nearest_classes
from distmetric.index.config import IndexConfig
from distmetric.index.snapshot import STALENESS, NeighborSnapshot
from distmetric.index.snapshot_shards import LAST_EFFORT, Effort, LocalShard, Shard
from distmetric.index.torch_search import nearest_first

ShouldStop = Callable[[], bool]
Each = Callable[[Callable[[Shard], Any]], list[Any]]


class BuildStoppedError(Exception):
    """A build ended early because it was asked to."""


def build_snapshot(
    shards: Sequence[Shard],
    *,
    version: int,
    num_rows: int,
    num_classes: int,
    config: IndexConfig,
    rows: bool,
    effort: int = 0,
    threads: int | None = None,
    should_stop: ShouldStop = lambda: False,
) -> NeighborSnapshot:
    """Build a snapshot of what the shards hold.

    Args:
        shards: Together all classes, each class whole in one of them; at least one embedded row.
        version: Its version.
        num_rows: M, rows of the training split.
        num_classes: C.
        config: How many neighbors are listed.
        rows: Whether neighbors of rows are listed, too.
        effort: How often building it ran out of memory, 0 to `LAST_EFFORT`: see `Effort.of`. Shards in this
            process are given theirs when they are made.
        threads: CPU threads of FAISS in the search of classes; None leaves its own setting.
        should_stop: Asked between blocks.

    Returns:
        The snapshot; equal for any division into shards if their search is exact. Classes without an embedded
        row have count 0, a zero centroid and no neighbors, and are nobody's neighbor; the same goes for rows.

    Raises:
        BuildStoppedError: If `should_stop` says so.

    Cost: O(N D) and the search of all classes; for rows in addition the search of all rows, and O(sum n_c^2 D) for the
    positives. Memory C (D + 2 k) + 2 M (k + p) numbers for the result, and blocks of bounded size.
    """
    start = time.monotonic()
    size = Effort.of(effort, config, rows)
    with ExitStack() as stack:
        each = _in_parallel(stack, shards)
        summaries = each(methodcaller("summary"))
        _check(should_stop)
        steps = np.concatenate([summary.steps for summary in summaries])
        counts = np.concatenate([summary.counts for summary in summaries])
        assert len(steps), "a snapshot needs at least one embedded row"
        statistics = _merged([summary.statistics for summary in summaries])
        arrays, searched_by = _class_arrays(statistics, num_classes, size, threads)
        _check(should_stop)
        if size.rows:
            k, p = min(size.neighbors, max(1, num_rows - 1)), min(size.positives, max(1, num_rows - 1))
            arrays |= _negatives(shards, each, num_rows, k, size.block_bytes, should_stop)
            arrays |= _positives(shards, num_rows, p, should_stop)
        searched = sorted({f"rows: {name}" for name in each(methodcaller("backend")) if name})
    of_shards = f"{len(shards)} shards, " if len(shards) > 1 else ""
    return NeighborSnapshot(
        version=version,
        step=int(steps.max()),
        seconds=time.monotonic() - start,
        coverage=int(counts.sum()) / num_rows,
        staleness=weighted_quantiles(steps.max() - steps, counts),
        backend=of_shards + "; ".join([f"classes: {searched_by or 'nothing to search'}", *searched]),
        **arrays,
    )


def weighted_quantiles(ages: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The `STALENESS` quantiles of ages of which each occurs `counts` times.

    Quantile q is the smallest age that at least a share q of all does not exceed; an age that occurs.
    """
    order = ages.argsort(kind="stable")
    below = counts[order].cumsum()
    at = np.searchsorted(below, np.ceil(np.array(STALENESS) * below[-1]).clip(1))
    quantiles: NDArray[np.float64] = ages[order][at].astype(np.float64)
    return quantiles


def _in_parallel(stack: ExitStack, shards: Sequence[Shard]) -> Each:
    """A function that asks all shards at once: remote ones work at the same time."""
    if len(shards) == 1:
        return lambda ask: [ask(shards[0])]
    pool = stack.enter_context(ThreadPoolExecutor(len(shards)))
    return lambda ask: list(pool.map(ask, shards))


def _check(should_stop: ShouldStop) -> None:
    if should_stop():
        raise BuildStoppedError


def _merged(parts: Sequence[ClassStatistics]) -> ClassStatistics:
    """Statistics of disjoint classes, ascending by label."""
    parts = [part for part in parts if len(part.labels)]
    order = torch.cat([part.labels for part in parts]).argsort()
    merged = {name: torch.cat([vars(part)[name] for part in parts])[order] for name in vars(parts[0])}
    assert bool((merged["labels"].diff() > 0).all()), "a class lies in two shards"
    return ClassStatistics(**merged)


def _class_arrays(
    statistics: ClassStatistics, num_classes: int, size: Effort, threads: int | None
) -> tuple[dict[str, NDArray[Any]], str]:
    """The snapshot's arrays of classes, and who searched; rows of classes that have no members stay empty."""
    labels = statistics.labels
    k = min(size.neighbors, max(1, num_classes - 1))
    places, distances, searched_by = nearest_classes(
        statistics, k, size.search, threads=threads, block_bytes=size.block_bytes
    )
    neighbors = torch.where(places < 0, places, labels[places.clamp(min=0)])

    def spread(values: Tensor, dtype: torch.dtype, empty: float = 0) -> NDArray[Any]:
        whole = torch.full((num_classes, *values.shape[1:]), empty, dtype=dtype)
        whole[labels] = values.to(dtype)
        return whole.numpy()

    arrays = {
        "class_counts": spread(statistics.counts, torch.int32),
        "centroids": spread(statistics.centroids, torch.float32),
        "radius_max": spread(statistics.radius_max, torch.float32),
        "radius_min": spread(statistics.radius_min, torch.float32),
        "radius_rms": spread(statistics.radius_rms, torch.float32),
        "class_neighbors": spread(neighbors, torch.int32, -1),
        "class_distances": spread(distances, torch.float32, float("inf")),
    }
    return arrays, searched_by


def _negatives(
    shards: Sequence[Shard],
    each: Each,
    num_rows: int,
    k: int,
    block_bytes: int,
    should_stop: ShouldStop,
) -> dict[str, NDArray[Any]]:
    """Nearest rows of other classes for every embedded row: every shard is asked, the nearest of all count."""
    rows = np.full((num_rows, k), -1, dtype=np.int32)
    distances = np.full((num_rows, k), np.inf, dtype=np.float32)
    for shard in shards:
        for block in shard.row_blocks(max(1, block_bytes // (64 * k * len(shards)))):
            _check(should_stop)
            found = each(methodcaller("nearest_negatives", block.embeddings, block.labels, k))
            candidates = torch.cat([one.rows for one in found], dim=1)
            nearest, squares = nearest_first(candidates, torch.cat([one.squares for one in found], dim=1))
            rows[block.rows] = nearest[:, :k]
            distances[block.rows] = squares[:, :k].sqrt()
    return {"row_negatives": rows, "row_negative_distances": distances}


def _positives(
    shards: Sequence[Shard], num_rows: int, count: int, should_stop: ShouldStop
) -> dict[str, NDArray[Any]]:
    """Farthest rows of the same class for every embedded row: a class is whole in its shard."""
    rows = np.full((num_rows, count), -1, dtype=np.int32)
    distances = np.full((num_rows, count), -np.inf, dtype=np.float32)
    for shard in shards:
        for found in shard.farthest_positives(count):
            _check(should_stop)
            rows[found.rows] = found.neighbors
            distances[found.rows] = found.squares.abs().sqrt().masked_fill_(found.neighbors < 0, -torch.inf)
    return {"row_positives": rows, "row_positive_distances": distances}


__all__ = [
    "LAST_EFFORT",
    "BuildStoppedError",
    "Effort",
    "LocalShard",
    "Shard",
    "build_snapshot",
    "weighted_quantiles",
]
