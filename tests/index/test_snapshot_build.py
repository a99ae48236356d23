"""Snapshots against plain loops, and the same from any division into shards."""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.index import labeled_search, snapshot_shards
from distmetric.index.config import InlineIndexConfig, SearchConfig
from distmetric.index.embedding_table import EmbeddingTable, TableView
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_build import (
    LAST_EFFORT,
    BuildStoppedError,
    Effort,
    LocalShard,
    build_snapshot,
    weighted_quantiles,
)

TORCH = SearchConfig(backend="torch")
CONFIG = InlineIndexConfig(neighbors=3, positives=2, search=TORCH)


def shards_of(view: TableView, owner, search: SearchConfig = TORCH, **settings) -> list[LocalShard]:
    """One shard for each number in `owner`, the shard of every class."""
    shards = []
    for shard in sorted(set(owner)):
        rows = np.flatnonzero(np.asarray(owner)[view.labels] == shard)
        part = TableView(view.labels[rows], view.num_classes, view.embeddings[rows], view.steps[rows])
        shards.append(LocalShard(part, search, rows=rows, **settings))
    return shards


def build(shards, view: TableView, config=CONFIG, rows=True, **settings) -> NeighborSnapshot:
    return build_snapshot(
        shards,
        version=7,
        num_rows=len(view.labels),
        num_classes=view.num_classes,
        config=config,
        rows=rows,
        **settings,
    )


def assert_same(left: NeighborSnapshot, right: NeighborSnapshot) -> None:
    """Equal to the last bit, but for who built it and how long it took."""
    for name, value in vars(left).items():
        if name not in ("seconds", "backend"):
            np.testing.assert_array_equal(value, getattr(right, name), err_msg=name, strict=True)


@st.composite
def views(draw, floats: bool = False) -> TableView:
    """Partly filled tables with ties, duplicates, lone members, and classes that were never seen or have no rows."""
    classes, num_rows, dim = draw(st.integers(1, 6)), draw(st.integers(1, 24)), draw(st.integers(1, 3))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=num_rows, max_size=num_rows)))
    table = EmbeddingTable(labels, classes, dim, draw(st.sampled_from(["float32", "float16"])))
    number = st.floats(-2, 2, width=16) if floats else st.integers(-2, 2)
    embeddings = draw(
        st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=num_rows, max_size=num_rows)
    )
    steps = draw(
        st.lists(st.integers(-1, 3), min_size=num_rows, max_size=num_rows).filter(lambda s: max(s) >= 0)
    )
    for row, step in enumerate(steps):
        if step >= 0:
            table.put(np.array([row]), np.array([embeddings[row]], dtype=np.float32), step)
    return table.view()


def square(x, y) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))


def check_classes(snapshot: NeighborSnapshot, members, k: int) -> None:
    """Counts, centers, radii and neighbors of classes by the definitions."""
    mean_square = {
        (a, b): sum(square(x, y) for x in members[a] for y in members[b]) / len(members[a]) / len(members[b])
        for a, b in itertools.permutations(members, 2)
    }
    for label in range(snapshot.num_classes):
        own = members.get(label, [])
        assert snapshot.class_counts[label] == len(own)
        center = np.mean(own, axis=0) if own else np.zeros(snapshot.centroids.shape[1])
        np.testing.assert_allclose(snapshot.centroids[label], center, atol=1e-6)
        radii = [math.dist(x, center) for x in own] or [0.0]
        rms = math.sqrt(sum(r * r for r in radii) / len(radii))
        found = [getattr(snapshot, f"radius_{name}")[label] for name in ("max", "min", "rms")]
        np.testing.assert_allclose(found, [max(radii), min(radii), rms], atol=1e-6)
        apart = sorted(math.sqrt(mean_square[label, other]) for other in members if other != label and own)
        count = min(k, len(apart))
        listed = snapshot.class_neighbors[label].tolist()
        assert listed[count:] == [-1] * (k - count)
        assert len(set(listed[:count])) == count
        distances = snapshot.class_distances[label]
        np.testing.assert_allclose(distances, apart[:count] + [np.inf] * (k - count), atol=1e-5)
        by_number = [math.sqrt(mean_square[label, other]) for other in listed[:count]]
        np.testing.assert_allclose(distances[:count], by_number, atol=1e-5)


def check_rows(snapshot: NeighborSnapshot, view: TableView, k: int, p: int) -> None:
    """Nearest rows of other classes and farthest of the same, ties by row."""
    known = [row for row, step in enumerate(view.steps) if step >= 0]
    for row, label in enumerate(view.labels):
        apart = [(square(view.embeddings[row], view.embeddings[other]), other) for other in known]
        near = sorted(pair for pair in apart if view.labels[pair[1]] != label) if row in known else []
        far = [(-d, other) for d, other in apart if view.labels[other] == label and other != row]
        far = sorted(far) if row in known else []
        for name, expected, missing, sign in [
            ("negative", near[:k], np.inf, 1),
            ("positive", far[:p], -np.inf, -1),
        ]:
            count = getattr(snapshot, f"row_{name}s").shape[1] - len(expected)
            rows = [other for _, other in expected] + [-1] * count
            distances = [math.sqrt(sign * d) for d, _ in expected] + [missing] * count
            assert getattr(snapshot, f"row_{name}s")[row].tolist() == rows
            np.testing.assert_allclose(getattr(snapshot, f"row_{name}_distances")[row], distances, rtol=1e-6)


@settings(deadline=None, max_examples=80)
@given(view=views(), k=st.integers(1, 5), p=st.integers(1, 3), hidden=st.sampled_from([-100, 256]))
def test_a_snapshot_is_what_loops_say(view, k, p, hidden) -> None:
    config = InlineIndexConfig(neighbors=k, positives=p, search=TORCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeled_search, "_HIDDEN", hidden)
        snapshot = build([LocalShard(view, TORCH)], view, config)
    members = {}
    for row, step in enumerate(view.steps):
        if step >= 0:
            members.setdefault(int(view.labels[row]), []).append(view.embeddings[row].tolist())
    ages = [int(view.steps.max() - step) for step in view.steps if step >= 0]
    assert (snapshot.version, snapshot.step) == (7, view.steps.max())
    assert snapshot.coverage == len(ages) / len(view.labels)
    np.testing.assert_array_equal(
        snapshot.staleness, np.quantile(ages, [0, 0.5, 0.9, 1], method="inverted_cdf")
    )
    check_classes(snapshot, members, min(k, max(1, view.num_classes - 1)))
    assert snapshot.row_negatives.shape[1] == min(k, max(1, len(view.labels) - 1))
    check_rows(snapshot, view, k, p)


@settings(deadline=None, max_examples=80)
@given(
    view=st.one_of(views(), views(floats=True)),
    owner=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    hidden=st.sampled_from([-100, 256]),
    block_bytes=st.sampled_from([1, 10_000, 2**27]),
)
def test_three_shards_give_the_snapshot_of_one(view, owner, hidden, block_bytes) -> None:
    one = build([LocalShard(view, TORCH)], view)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeled_search, "_HIDDEN", hidden)
        patch.setattr(snapshot_shards, "BLOCK_BYTES", block_bytes)
        shards = shards_of(view, [0, 1, 2, *owner], block_bytes=block_bytes)
        assert len(shards) == 3
        assert_same(one, build(shards, view))


def clusters(num_classes: int = 12, size: int = 5, dim: int = 8) -> TableView:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(num_classes), size))
    table = EmbeddingTable(labels, num_classes, dim)
    centers = rng.normal(size=(num_classes, dim))
    table.put(np.arange(len(labels)), centers[labels] + rng.normal(size=(len(labels), dim)), 5)
    return table.view()


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="FAISS is not there")
def test_faiss_gives_the_snapshot_of_torch() -> None:
    view = clusters()
    with_faiss = build([LocalShard(view, SearchConfig(backend="faiss"), threads=1)], view)
    assert_same(build([LocalShard(view, TORCH)], view), with_faiss)
    assert "rows: faiss flat on " in with_faiss.backend


def test_the_backend_says_who_searched_and_in_how_many_shards() -> None:
    view = clusters()
    classes_and_rows = "classes: torch flat on cpu, exact; rows: torch flat on cpu, exact"
    assert build([LocalShard(view, TORCH)], view, rows=False).backend == "classes: torch flat on cpu, exact"
    assert build([LocalShard(view, TORCH)], view).backend == classes_and_rows
    shards = shards_of(view, np.arange(12) % 3)
    assert build(shards, view).backend == f"3 shards, {classes_and_rows}"


def test_without_row_lists_nobody_searches(monkeypatch) -> None:
    monkeypatch.setattr(LocalShard, "nearest_negatives", None)
    view = clusters()
    snapshot = build([LocalShard(view, TORCH)], view, rows=False)
    assert not snapshot.has_rows
    assert snapshot.row_positives.shape == (0, 0)


def test_smaller_efforts_list_less_of_the_same() -> None:
    view = clusters()
    config = InlineIndexConfig(neighbors=6, positives=4, search=TORCH)
    whole, same, half, least = (
        build([LocalShard(view, TORCH)], view, config, effort=effort) for effort in range(LAST_EFFORT + 1)
    )
    assert_same(whole, same)
    np.testing.assert_array_equal(half.class_neighbors, whole.class_neighbors[:, :3])
    np.testing.assert_array_equal(half.row_negatives, whole.row_negatives[:, :3])
    np.testing.assert_array_equal(half.row_positives, whole.row_positives[:, :2])
    np.testing.assert_array_equal(least.class_neighbors, half.class_neighbors)
    assert half.has_rows
    assert not least.has_rows


def test_after_the_first_failure_blocks_are_smaller_and_the_cpu_searches() -> None:
    config = InlineIndexConfig(search=SearchConfig(device="cuda", probes=5))
    first, second = (Effort.of(level, config, rows=True) for level in (0, 1))
    assert second.block_bytes == first.block_bytes // 2
    assert (first.search, second.search) == (config.search, SearchConfig(device="cpu", probes=5))
    with pytest.raises(AssertionError):
        Effort.of(LAST_EFFORT + 1, config, rows=True)


@pytest.mark.parametrize("rows", [False, True])
def test_a_build_stops_wherever_it_is_asked_to(rows) -> None:
    view, asked = clusters(), []
    build(shards_of(view, np.arange(12) % 3), view, rows=rows, should_stop=lambda: asked.append(0) or False)
    assert len(asked) == (2 + 3 + 3 if rows else 2)
    for at in range(len(asked)):
        left = iter([False] * at + [True])
        with pytest.raises(BuildStoppedError):
            build(shards_of(view, np.arange(12) % 3), view, rows=rows, should_stop=lambda: next(left))  # noqa: B023


def test_a_class_in_two_shards_is_a_bug() -> None:
    view = clusters()
    with pytest.raises(AssertionError, match="two shards"):
        build([LocalShard(view, TORCH), LocalShard(view, TORCH)], view, rows=False)


def test_an_empty_table_is_a_bug() -> None:
    view = EmbeddingTable(np.array([0, 1]), 2, 3).view()
    with pytest.raises(AssertionError, match="at least one embedded row"):
        build([LocalShard(view, TORCH)], view)


@given(ages=st.lists(st.integers(0, 20), min_size=1, max_size=50))
def test_quantiles_of_counted_ages_are_those_of_the_ages(ages) -> None:
    values, counts = np.unique(ages, return_counts=True)
    expected = np.quantile(ages, [0, 0.5, 0.9, 1], method="inverted_cdf")
    assert weighted_quantiles(values, counts).tolist() == expected.tolist()
    assert weighted_quantiles(values[::-1], counts[::-1]).tolist() == expected.tolist()
