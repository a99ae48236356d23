"""Rows of classes: which ones a visit reads."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.samplers.reading_order import ClassRows


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    per_visit=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    cycle=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_a_cycle_reads_distinct_rows_of_the_class(labels, per_visit, seed, cycle) -> None:
    labels = np.array(labels) * 7
    catalog = np.random.default_rng(0).permutation(len(labels)) + 100
    rows = ClassRows(catalog, labels, per_visit, seed)
    assert rows.num_classes == len(set(labels.tolist()))
    np.testing.assert_array_equal(np.unique(labels)[rows.classes()], labels)
    for label, value in enumerate(np.unique(labels).tolist()):
        members = np.flatnonzero(labels == value)
        assert rows.counts[label] == len(members)
        assert rows.gives[label] == min(len(members), per_visit)
        visits = max(1, len(members) // per_visit)
        read = [rows.places(label, cycle * visits + visit) for visit in range(visits)]
        assert {len(places) for places in read} == {rows.gives[label]}
        counted = Counter(np.concatenate(read).tolist())
        assert set(counted.values()) == {1}
        assert set(counted) <= set(members.tolist())
        np.testing.assert_array_equal(rows.rows(label, cycle * visits), catalog[read[0]])


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    visits=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**40)), max_size=8),
    per_visit=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_classes_read_together_give_what_each_gives_alone(labels, visits, per_visit) -> None:
    rows = ClassRows(np.arange(len(labels)), np.array(labels), per_visit, seed=1)
    visits = [(label, visit) for label, visit in visits if label < rows.num_classes]
    alone = [rows.places(label, visit) for label, visit in visits]
    together = rows.places([label for label, _ in visits], [visit for _, visit in visits])
    np.testing.assert_array_equal(together, np.concatenate([np.empty(0, dtype=np.int64), *alone]))


def test_every_order_is_as_likely_as_any_other() -> None:
    rows = ClassRows(np.arange(24), np.repeat(np.arange(6), 4), per_visit=4, seed=2)
    for number in (0, 5):
        seen = Counter(tuple(rows.places(number, cycle).tolist()) for cycle in range(2400))
        assert len(seen) == 24
        # Chi-squared with 23 degrees of freedom is above 50 once in a thousand times.
        assert sum((count - 100) ** 2 / 100 for count in seen.values()) < 50
    orders = [
        rows.places(0, cycle).tolist() == (rows.places(5, cycle) - 20).tolist() for cycle in range(2400)
    ]
    assert 50 < sum(orders) < 150  # classes have orders of their own


def test_purposes_have_numbers_of_their_own() -> None:
    rows = ClassRows(np.arange(4), np.arange(4), 1, seed=3)
    keys = [(counter, purpose) for counter in (0, 1) for purpose in (0, 1)]
    assert len({rows.generator(*key).random() for key in keys}) == len(keys)
    assert rows.generator(1, 1).random() == rows.generator(1, 1).random()
