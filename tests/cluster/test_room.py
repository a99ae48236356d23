"""How many runs fit, against trying all ways to place their processes."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.cluster.room import reserved, room_for
from distmetric.config.compose import load
from distmetric.config.schema import Config


def config(*overrides: str) -> Config:
    return load("config", Config, overrides)


def run_of(workers: int | list[int], cpus: float, gpu: bool = False) -> Config:
    return config(
        f"trainer.num_workers={workers}",
        f"trainer.cpus_per_worker={cpus}",
        f"trainer.use_gpu={str(gpu).lower()}",
    )


RUNS = {(workers, cpus): run_of(workers, cpus) for workers in (1, 2, 3) for cpus in (0.5, 1.0, 2.0)}


@pytest.mark.parametrize(
    ("run", "machines", "expected"),
    [
        (run_of(2, 1), [{"CPU": 2.0}], 1),
        (run_of(2, 1), [{"CPU": 7.0, "GPU": 1.0}], 3),
        (run_of(2, 0.5), [{"CPU": 2.0}], 2),
        (run_of(3, 1), [{"CPU": 2.0}], 0),
        (run_of(2, 1.5), [{"CPU": 2.0}, {"CPU": 2.0}], 1),  # a worker is on one machine
        (run_of(2, 1.5), [{"CPU": 3.0}, {"CPU": 2.9}], 1),
        (run_of(1, 1, gpu=True), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], 2),
        (run_of(1, 1), [], 0),
        (
            run_of([1, 3], 1),
            [{"CPU": 7.0}],
            2,
        ),  # the most that it may have: no run waits for what another one took
        (run_of(10, 0.1), [{"CPU": 1.0}], 1),  # as ten tenths are one
    ],
)
def test_workers_fill_machines(run: Config, machines: list[dict[str, float]], expected: int) -> None:
    assert room_for(run, machines) == expected


@given(st.sampled_from(sorted(RUNS)), st.lists(st.integers(0, 4), min_size=1, max_size=3))
@settings(deadline=None, max_examples=100)
def test_equal_workers_are_placed_as_well_as_possible(run: tuple[int, float], cpus: list[int]) -> None:
    workers, each = run
    places = sum(int(cpu / each) for cpu in cpus)
    assert room_for(RUNS[run], [{"CPU": float(cpu)} for cpu in cpus]) == places // workers


def test_the_actors_of_an_index_need_room_too() -> None:
    common = ("sampler=hard_neighbors", "trainer.num_workers=2")
    streaming = config(*common, "index.num_cpus=1", "index.shards=2")
    assert sorted(reserved(streaming)) == [(1.0, 0.0)] * 5  # two workers, two shards and their head
    assert room_for(streaming, [{"CPU": 11.0}]) == 2
    sweeping = config(*common, "index=sweep", "index.workers=3", "index.worker_gpus=1")
    assert sorted(reserved(sweeping)) == [(0.0, 1.0)] * 3 + [(1.0, 0.0)] * 2
    for choice, sampler in product(("inline", "stream"), ("hard_neighbors", "pk")):
        assert reserved(config(f"index={choice}", f"sampler={sampler}")) == [(1.0, 0.0)] * 2
