"""Which faults come when: a function of the seed, every kind as often as the others."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from distmetric.benchmarks.soak.plan import KINDS, plan
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ConfigError


def test_a_seed_gives_the_same_faults_and_another_one_others() -> None:
    first, again, other = (list(islice(plan(seed, 6.0), 30)) for seed in (3, 3, 4))
    assert first == again
    assert [fault.kind for fault in first] != [fault.kind for fault in other]


def test_kinds_come_equally_often_at_the_rate_that_was_asked_for() -> None:
    faults = list(islice(plan(0, 6.0), 100 * len(KINDS)))
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(KINDS, 100)
    assert all(5.0 <= fault.wait_s <= 15.0 for fault in faults)
    assert sum(fault.wait_s for fault in faults) / len(faults) == pytest.approx(10.0, rel=0.05)
    assert {fault.kind for fault in islice(plan(0, 6.0, ["stop", "slow_disk"]), 9)} == {"stop", "slow_disk"}


def test_an_unknown_fault_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"faults=kill_workers is not a fault .*: did you mean kill_worker\?"
    ):
        plan(0, 6.0, ["kill_workers"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seconds=0"], "seconds=0.0 is wrong: give a number above 0"),
        (["faults_per_minute=-1"], "faults_per_minute=-1.0 is wrong"),
        (["faults=[]"], "faults must not be an empty list"),
        (["k=3"], "k belongs to suite=index: leave it out with suite=soak"),
        (["sizes=[64]"], "sizes is for what is measured, not for suite=soak"),
        (["suite=losses", "seconds=9"], "seconds belongs to suite=soak: leave it out with suite=losses"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("benchmark", BenchmarkJob, ["suite=soak", "tracking=none", *overrides])
    assert message in str(caught.value)
