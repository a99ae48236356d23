"""The embedding table against plain loops: who wins, what was moved, what a view holds."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.index import embedding_table
from distmetric.index.embedding_table import Drift, EmbeddingTable
from snapshots import snapshot_of

CLASSES, DIM = 4, 2
LABELS = np.array([0, 0, 1, 1, 1, 3])
NAN = math.nan

puts = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.integers(0, len(LABELS) - 1),
                st.tuples(*[st.sampled_from([-2.0, 0.0, 0.5, 3.0, math.inf, NAN])] * DIM),
            ),
            max_size=5,
        ),
        st.integers(0, 6),
    ),
    max_size=8,
)


def put(table: EmbeddingTable, batch, step: int) -> None:
    rows = np.array([row for row, _ in batch], dtype=np.int64)
    table.put(rows, np.array([x for _, x in batch], dtype=np.float32).reshape(-1, DIM), step)


class Oracle:
    """What a table should hold, by row."""

    def __init__(self) -> None:
        self.held, self.built, self.drift, self.rejected = {}, {}, {}, 0

    def put(self, batch, step: int) -> None:
        fresh = {}
        for row, x in batch:
            if all(map(math.isfinite, x)):
                fresh[row] = x
            else:
                self.rejected += 1
        for row, x in fresh.items():
            if row not in self.held or self.held[row][1] <= step:
                self.held[row] = (x, step)
                self.measure(row)

    def measure(self, row: int) -> None:
        if row in self.built:
            (x, step), (was, built) = self.held[row], self.built[row]
            if step > built or x != was:
                label = int(LABELS[row])
                self.drift[label] = max(self.drift.get(label, 0.0), math.dist(x, was))

    def mark_built(self, held) -> None:
        self.built, self.drift = held, {}
        for row in self.held:
            self.measure(row)


@settings(deadline=None, max_examples=150)
@given(
    before=puts, during=puts, after=puts, storage=st.sampled_from(["float32", "float16"]), block=st.booleans()
)
def test_the_table_is_what_loops_say(before, during, after, storage, block) -> None:
    table, oracle = EmbeddingTable(LABELS, CLASSES, DIM, storage), Oracle()
    whole = embedding_table.BLOCK_BYTES
    try:
        embedding_table.BLOCK_BYTES = 1 if block else whole
        for batch, step in before:
            put(table, batch, step)
            oracle.put(batch, step)
        assert np.isnan(table.drift().per_class).all()
        view, held = table.view(), dict(oracle.held)
        for batch, step in during:
            put(table, batch, step)
            oracle.put(batch, step)
        table.mark_built(view)
        oracle.mark_built(held)
        for batch, step in after:
            put(table, batch, step)
            oracle.put(batch, step)
    finally:
        embedding_table.BLOCK_BYTES = whole
    for one, expected in [(view, held), (table.view(), oracle.held)]:
        assert {row: int(step) for row, step in enumerate(one.steps) if step >= 0} == {
            row: step for row, (_, step) in expected.items()
        }
        assert {row: tuple(map(float, one.embeddings[row])) for row in expected} == {
            row: x for row, (x, _) in expected.items()
        }
    drift = [oracle.drift.get(label, NAN) for label in range(CLASSES)]
    np.testing.assert_allclose(table.drift().per_class, drift, rtol=1e-6)
    assert table.num_embedded == len(oracle.held)
    assert table.num_covered == len({int(LABELS[row]) for row in oracle.held})
    assert table.coverage() == table.num_covered / 3  # class 2 has no rows
    assert table.num_rejected == oracle.rejected
    assert table.newest_step == max([step for _, step in oracle.held.values()], default=-1)


def test_the_same_put_twice_changes_nothing_and_measures_nothing() -> None:
    table = EmbeddingTable(LABELS, CLASSES, DIM, "float16")
    rows, embeddings = np.arange(6), np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)
    table.put(rows, embeddings, 3)
    table.mark_built(table.view())
    table.put(rows, embeddings, 3)
    assert np.isnan(table.drift().per_class).all()
    table.put(rows, embeddings, 4)
    assert table.drift().per_class.tolist()[:2] == [0, 0]
    assert table.num_embedded == 6


def test_half_precision_rounds_and_what_is_beyond_it_is_rejected() -> None:
    table = EmbeddingTable(LABELS, CLASSES, DIM, "float16")
    table.put(np.array([0, 1]), np.array([[0.1, 1.0], [1e6, 0.0]], dtype=np.float32), 0)
    assert table.view().embeddings[0].tolist() == [float(np.float16(0.1)), 1.0]
    assert (table.num_embedded, table.num_rejected) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "shape", "step"),
    [
        ([0, 1], (1, DIM), 0),
        ([0], (1, DIM + 1), 0),
        ([6], (1, DIM), 0),
        ([-1], (1, DIM), 0),
        ([0], (1, DIM), -1),
    ],
)
def test_what_does_not_fit_the_table_is_a_bug(rows, shape, step) -> None:
    with pytest.raises(AssertionError, match=r"must be"):
        EmbeddingTable(LABELS, CLASSES, DIM).put(np.array(rows), np.zeros(shape, dtype=np.float32), step)


def test_labels_have_to_be_classes() -> None:
    with pytest.raises(AssertionError, match=r"0\.\.C-1"):
        EmbeddingTable(np.array([0, 3]), 3, DIM)


def test_bytes_are_those_of_the_table_and_of_the_view_in_use() -> None:
    table = EmbeddingTable(LABELS, CLASSES, DIM, "float16")
    assert table.nbytes == len(LABELS) * (DIM * 2 + 12)
    view = table.view()
    assert view.nbytes == len(LABELS) * (DIM * 2 + 8)
    table.mark_built(view)
    assert table.nbytes == len(LABELS) * (DIM * 4 + 20)


def test_a_view_taken_while_others_put_holds_every_row_with_its_own_step(monkeypatch) -> None:
    monkeypatch.setattr(embedding_table, "BLOCK_BYTES", 64)
    labels = np.zeros(300, dtype=np.int64)
    table, stop = EmbeddingTable(labels, 1, 16), threading.Event()
    started = threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            table.put(np.arange(300), np.full((300, 16), step, dtype=np.float32), step)
            step += 1
            started.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(30)
        for _ in range(20):
            view = table.view()
            assert (view.embeddings == view.steps[:, None]).all()
            table.mark_built(view)
            moved = float(np.nan_to_num(table.drift().per_class[0]))
            assert moved / 4 == round(moved / 4)  # 16 numbers, all moved by the same count of steps
    finally:
        stop.set()
        writer.join()


def test_stale_rows_follow_the_table() -> None:
    table = EmbeddingTable(LABELS, CLASSES, DIM)
    table.put(np.array([4, 1]), np.zeros((2, DIM), dtype=np.float32), 7)
    assert table.stale_rows(2, 5).tolist() == [0, 2]
    assert table.stale_rows(9, 8, retry_steps=4).tolist() == [3, 5, 1, 4]
    table.put(np.array([3]), np.zeros((1, DIM), dtype=np.float32), 9)
    assert table.stale_rows(9, 12, retry_steps=4).tolist() == [0, 2, 5, 1, 4, 3]


def test_the_ratio_of_drift_is_the_medians_by_hand() -> None:
    centers = np.array([[0.0], [3.0], [7.0], [12.0], [18.0]])
    snapshot = snapshot_of(centers, rms=0.5)
    gaps = [math.sqrt(gap**2 + 0.5) - 0.5 for gap in (3, 3, 4, 5, 6)]
    drift = Drift(np.array([0.2, 0.9, NAN, 0.1, 2.4], dtype=np.float32))
    expected = np.median([2 * moved / gaps[c] for c, moved in [(0, 0.2), (1, 0.9), (3, 0.1), (4, 2.4)]])
    assert drift.ratio(snapshot) == pytest.approx(expected)
    assert drift.wants_rebuild(snapshot, expected - 1e-6)
    assert not drift.wants_rebuild(snapshot, expected + 1e-6)


def test_drift_that_is_hardly_measured_asks_for_nothing() -> None:
    snapshot = snapshot_of(np.arange(21.0)[:, None])
    per_class = np.full(21, NAN, dtype=np.float32)
    per_class[:2] = 99
    assert Drift(per_class).ratio(snapshot) == 0
    per_class[2] = 99
    assert Drift(per_class).wants_rebuild(snapshot, 10)


def test_any_movement_counts_where_classes_coincide() -> None:
    snapshot = snapshot_of(np.zeros((2, 1)), rms=0.0)
    assert Drift(np.zeros(2, dtype=np.float32)).ratio(snapshot) == 0
    assert Drift(np.full(2, 1e-6, dtype=np.float32)).ratio(snapshot) == math.inf


def test_classes_without_a_neighbor_have_no_say() -> None:
    assert Drift(np.ones(1, dtype=np.float32)).ratio(snapshot_of(np.zeros((1, 1)), k=1)) == 0
