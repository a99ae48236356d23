"""The queue of least visited classes against sorting them anew every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.samplers.least_visited import LeastVisited


@given(
    visits=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    batches=st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_takes_what_sorting_by_visits_and_order_takes(visits, seed, batches) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(visits))
    turn = {int(label): place for place, label in enumerate(order)}
    expected = list(visits)
    queue = LeastVisited(np.array(visits, dtype=np.int32), order)
    for joins in batches:
        assert queue.open_batch() == min(expected)
        members: list[int] = []
        for join in joins[: len(visits)]:
            free = sorted(set(turn) - set(members), key=lambda label: (expected[label], turn[label]))
            if join:  # any class of those that are free, as a neighbor would
                members.append(int(rng.choice(free)))
                queue.join(members[-1])
            else:
                members.append(free[0])
                assert queue.take() == free[0]
            inside = queue.is_in_batch(np.arange(len(visits)))
            assert np.flatnonzero(inside).tolist() == sorted(members)
        assert queue.members == members
        queue.close_batch()
        for label in members:
            expected[label] += 1
        assert queue.visits.tolist() == expected


def test_visits_far_apart_are_sorted_too() -> None:
    visits = np.array([256_000, 0, 7, 255_999], dtype=np.int32)
    queue = LeastVisited(visits, np.arange(4))
    queue.open_batch()
    assert [queue.take() for _ in range(4)] == [1, 2, 3, 0]
