"""Rows to embed again: the oldest first, each asked for once, lost requests repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.index import stale_rows
from distmetric.index.stale_rows import StaleRows

NEVER_AGAIN = 10**9


@settings(deadline=None, max_examples=100)
@given(
    num_rows=st.integers(0, 30),
    line_rows=st.integers(1, 40),
    rounds=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 5), st.lists(st.integers(0, 29), max_size=6)),
        max_size=12,
    ),
)
def test_rows_come_oldest_first_and_once_until_embedded(num_rows, line_rows, rounds) -> None:
    stale, steps = StaleRows(num_rows, line_rows), np.full(num_rows, -1)
    asked, now, max_age = {}, 0, 3
    for count, passed, embedded in rounds:
        before = now - max_age
        found = stale.take(steps, count, before, NEVER_AGAIN)
        free = [
            (steps[row], row)
            for row in range(num_rows)
            if steps[row] < before and asked.get(row) != steps[row]
        ]
        assert found.tolist() == [row for _, row in sorted(free)[:count]]
        asked |= {row: steps[row] for row in found.tolist()}
        now += passed
        for row in embedded:
            if row < num_rows:
                steps[row] = now


def test_never_embedded_rows_come_first_and_count_from_step_0_on() -> None:
    stale, steps = StaleRows(4), np.array([5, -1, 3, -1])
    assert stale.take(steps, 9, -1, NEVER_AGAIN).tolist() == []
    assert stale.take(steps, 3, 6, NEVER_AGAIN).tolist() == [1, 3, 2]
    assert stale.take(steps, 3, 6, NEVER_AGAIN).tolist() == [0]


@pytest.mark.parametrize("line_rows", [1, 100])
def test_a_request_that_brought_nothing_is_repeated_after_a_while(line_rows) -> None:
    stale, steps = StaleRows(3, line_rows), np.array([0, 1, 2])
    assert stale.take(steps, 9, 3, retry_steps=10).tolist() == [0, 1, 2]
    steps[1] = 4
    assert stale.take(steps, 9, 4, retry_steps=10).tolist() == []
    assert stale.take(steps, 9, 12, retry_steps=10).tolist() == [1]
    assert stale.take(steps, 9, 13, retry_steps=10).tolist() == [0, 2]
    assert stale.take(steps, 9, 14, retry_steps=10).tolist() == []
    assert stale.take(steps, 9, 22, retry_steps=10).tolist() == [1]


def test_a_row_embedded_while_it_waits_in_line_is_passed_over() -> None:
    stale, steps = StaleRows(5), np.zeros(5, dtype=np.int64)
    assert stale.take(steps, 1, 1, NEVER_AGAIN).tolist() == [0]
    steps[1:3] = 7
    assert stale.take(steps, 2, 1, NEVER_AGAIN).tolist() == [3, 4]


def test_where_nothing_is_stale_all_rows_are_looked_at_only_now_and_then(monkeypatch) -> None:
    monkeypatch.setattr(stale_rows, "ROWS_PER_STEP", 10)
    looks = []
    monkeypatch.setattr(StaleRows, "_scan", lambda self, *args: looks.append(args[1]) or scan(self, *args))
    stale, steps = StaleRows(40), np.full(40, 100)
    for before in range(20):
        assert stale.take(steps, 8, before, NEVER_AGAIN).tolist() == []
        assert stale.take(steps, 8, before, NEVER_AGAIN).tolist() == []
    assert looks == [0, 5, 10, 15]


scan = StaleRows._scan
