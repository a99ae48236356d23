"""A small training set for tests of the index: rows in clusters, and the snapshot that they give by hand."""

from __future__ import annotations

import numpy as np

from distmetric.index.config import ActorIndexConfig, StreamIndexConfig
from distmetric.index.embedding_table import EmbeddingTable
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_build import build_snapshot
from distmetric.index.snapshot_shards import LocalShard

ROWS, CLASSES, DIM = 60, 12, 6
LABELS = np.arange(ROWS, dtype=np.int32) * 7 % CLASSES
STREAM = StreamIndexConfig(refresh_steps=10, neighbors=4, positives=3, drift_fraction=None)


def embeddings(step: int, moved: float = 1.0) -> np.ndarray:
    """Of all rows, at a step: clusters that rows wander about in."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(CLASSES, DIM))[LABELS] * 4
    wander = np.random.default_rng(step).normal(size=(ROWS, DIM))
    return (centers + random.normal(size=(ROWS, DIM)) + moved * wander).astype(np.float32)


def by_hand(
    step: int,
    version: int = 1,
    config: ActorIndexConfig = STREAM,
    rows: np.ndarray | None = None,
    rest: int = -1,
) -> NeighborSnapshot:
    """The snapshot of a table that was filled at one step, or `rows` of it at that and the rest at another one."""
    table = EmbeddingTable(LABELS, CLASSES, DIM, config.storage)
    everything = np.arange(ROWS)
    if rest >= 0:
        table.put(everything, embeddings(rest), rest)
    chosen = everything if rows is None else rows
    table.put(chosen, embeddings(step)[chosen], step)
    shard = LocalShard(table.view(), config.search, threads=1)
    return build_snapshot(
        [shard], version=version, num_rows=ROWS, num_classes=CLASSES, config=config, rows=True
    )


def assert_same(found: NeighborSnapshot | None, expected: NeighborSnapshot) -> None:
    assert found is not None
    for name, value in vars(expected).items():
        if name not in ("seconds", "backend"):
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
