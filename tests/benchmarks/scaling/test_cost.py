"""Costs that are known are found again in times made of them, and what is predicted is their sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmetric.benchmarks.scaling.cost import (
    WORK,
    Cost,
    StepSize,
    fit_cost,
    fit_not_negative,
    fit_speed,
    step_seconds,
)
from distmetric.index.scale import IndexSize, Speed, build_seconds

SIZE = StepSize(processes=4, images=8, dim=16, parameters=1000, image_flops=5e6)


def test_work_is_what_a_step_does() -> None:
    assert SIZE.rows == 32
    found = {part: work(SIZE) for part, work in WORK.items()}
    pairs = sum(2 * SIZE.dim for _ in range(SIZE.images) for _ in range(SIZE.rows))  # of one process
    from_others = (SIZE.processes - 1) * SIZE.images * SIZE.dim * 4
    assert found == {
        "trunk": 8 * 5e6,
        "pair": pairs,
        "gather": 2 * from_others,  # and their gradients back
        "reduce": 2 * 4 * 1000 * 3 / 4,  # a ring: all but the own part, summed and then handed out
        "update": 1000,
    }
    alone = replace(SIZE, processes=1)
    assert WORK["gather"](alone) == WORK["reduce"](alone) == 0


@given(st.floats(1e-12, 1e3), st.floats(0, 10), st.integers(2, 5))
def test_a_known_cost_is_recovered(per_work: float, fixed_share: float, count: int) -> None:
    work = [1e6 * 3.0**k for k in range(count)]
    fixed = fixed_share * per_work * work[0]
    found = fit_cost([(w, fixed + per_work * w) for w in work])
    assert found.per_work == pytest.approx(per_work, rel=1e-6)
    assert found.fixed == pytest.approx(fixed, rel=1e-5, abs=1e-6 * per_work * work[0])


def test_noise_moves_a_cost_no_further_than_itself() -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 40)
    work = np.linspace(1e5, 4e6, 40)
    found = fit_cost(list(zip(work, (2e-3 + 1e-8 * work) * noise, strict=True)))
    assert found.per_work == pytest.approx(1e-8, rel=0.1)
    assert found.fixed == pytest.approx(2e-3, rel=0.2)


def test_costs_are_never_negative() -> None:
    # The least-squares line through these would begin below 0, or fall.
    rising = fit_cost([(1.0, 0.1), (2.0, 1.0), (3.0, 3.0)])
    falling = fit_cost([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])
    assert rising.fixed == 0
    assert rising.per_work > 0
    assert falling.per_work == 0
    assert falling.fixed > 0


def test_one_size_says_nothing_of_what_is_fixed() -> None:
    found = fit_cost([(4.0, 2.0), (4.0, 2.0)])
    assert (found.per_work, found.fixed) == (pytest.approx(0.5), 0)
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_cost([])


@given(st.lists(st.just(0.0) | st.floats(0.01, 5), min_size=3, max_size=3).filter(any), st.integers(0, 99))
def test_factors_of_several_columns_are_recovered(factors: list[float], seed: int) -> None:
    columns = list(np.random.default_rng(seed).uniform(1, 9, (3, 8)))
    values = sum(factor * column for factor, column in zip(factors, columns, strict=True))
    found = fit_not_negative(columns, values)
    assert found == pytest.approx(factors, rel=1e-6, abs=1e-6)


def test_the_speeds_of_a_machine_are_recovered_from_its_rebuilds() -> None:
    speed = Speed(flops=3e10, bytes_per_second=8e9)
    sizes = [
        IndexSize(rows=rows, classes=rows // members, dim=64, neighbors=50)
        for rows, members in ((1000, 4), (5000, 10), (20_000, 4), (50_000, 100))
    ]
    found = fit_speed([(size, build_seconds(size, speed).total) for size in sizes])
    assert found.flops == pytest.approx(speed.flops, rel=1e-6)
    assert found.bytes_per_second == pytest.approx(speed.bytes_per_second, rel=1e-6)
    unseen = IndexSize(rows=10**6, classes=10**5, dim=128)
    assert build_seconds(unseen, found).total == pytest.approx(build_seconds(unseen, speed).total, rel=1e-6)


def test_a_step_takes_its_parts() -> None:
    costs = {"trunk": Cost(1e-9, 0.01), "pair": Cost(1e-8), "gather": Cost(1e-6, 0.5), "reduce": Cost(1e-6)}
    parts = step_seconds(costs, SIZE)
    assert parts == {
        "trunk": pytest.approx(0.05),
        "pair": pytest.approx(8192e-8),
        "gather": pytest.approx(0.5 + 3072e-6),
        "reduce": pytest.approx(6e-3),
    }
    assert step_seconds(costs, replace(SIZE, processes=1))["gather"] == 0  # not even what is fixed
