"""Spaces of settings, and the trials drawn from them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.config.tune_space import Choices, Range, draw_trials, parse_space, with_whole_numbers
from distmetric.errors import ConfigError


def test_a_space_is_read_as_written() -> None:
    space = parse_space(
        {
            "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "loss": {"margin": [0.1, 0.2], "distance": {"low": 1, "high": 3}},
            "model.widths": [[8, 8], [16]],
        }
    )
    assert space == {
        "optim.lr": Range(1e-4, 1e-2, log=True, whole=False),
        "loss.margin": Choices((0.1, 0.2)),
        "loss.distance": Range(1, 3, log=False, whole=True),
        "model.widths": Choices(([8, 8], [16])),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "space has no settings"),
        ({"optim.lr": []}, r"optim.lr=\[\] is wrong: give one or more values"),
        ({"optim.lr": [0.1, 0.1]}, "give each value once"),
        ({"optim.lr": 0.1}, "optim.lr=0.1 is wrong: give a list of values, or a range"),
        ({"optim": {"lr": 0.1}}, "optim.lr=0.1 is wrong"),
        ({"optim.lr": {}}, "from low=None to high=None is no range"),
        ({"optim.lr": {"low": 0.1}}, "from low=0.1 to high=None is no range"),
        ({"optim.lr": {"low": 0.1, "high": "1"}}, "to high=1 is no range"),
        ({"optim.lr": {"low": 2, "high": 1}}, "low < high"),
        ({"optim.lr": {"low": 0.1, "high": math.inf}}, "high=inf is no range"),
        ({"optim.lr": {"low": False, "high": True}}, "low=False to high=True is no range"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, "true needs low > 0"),
        ({"optim.lr": {"low": 1, "high": 2, "log": "yes"}}, "log is true or false"),
        ({"optim.lr": {"low": 1, "high": 2, "step": 1}}, "optim.lr has step, which a range has not"),
    ],
)
def test_what_says_nothing_that_could_be_drawn_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_space(given)
    assert "\n" not in str(caught.value)


NUMBERS = st.floats(1e-6, 1e6)
RANGES = st.builds(
    lambda ends, log, whole: Range(*(map(math.ceil, ends) if whole else ends), log=log, whole=whole),
    st.tuples(NUMBERS, NUMBERS).map(sorted).filter(lambda ends: ends[0] + 1 < ends[1]),
    st.booleans(),
    st.booleans(),
)
PARTS = RANGES | st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True).map(
    lambda values: Choices(tuple(values))
)
SPACES = st.dictionaries(st.text("abc", min_size=1), PARTS, min_size=1, max_size=4)


@given(SPACES, st.integers(1, 12), st.integers(0, 5))
@settings(deadline=None, max_examples=200)
def test_every_draw_is_in_the_space_and_the_same_for_the_same_seed(space, num_trials, seed) -> None:
    trials = draw_trials(space, num_trials, seed)
    assert trials == draw_trials(space, num_trials, seed)
    finite = all(isinstance(part, Choices) for part in space.values())
    total = math.prod(len(part.values) for part in space.values()) if finite else num_trials
    assert len(trials) == min(num_trials, total)
    for trial in trials:
        assert list(trial) == list(space)
        for key, part in space.items():
            if isinstance(part, Choices):
                assert trial[key] in part.values
            else:
                assert part.low <= trial[key] <= part.high
                assert isinstance(trial[key], int) == part.whole


@given(RANGES, st.integers(1, 40))
@settings(deadline=None, max_examples=200)
def test_every_part_of_a_range_is_tried_once(part: Range, num_trials: int) -> None:
    values = sorted(trial["a"] for trial in draw_trials({"a": part}, num_trials, 0))
    for number, value in enumerate(values):
        low, high = part.at(number / num_trials), part.at((number + 1) / num_trials)
        assert low <= value <= high


def test_trials_of_lists_are_all_combinations_and_never_the_same_one() -> None:
    space = {"a": Choices((1, 2, 3)), "b": Choices(("x", "y"))}
    expected = [{"a": a, "b": b} for a, b in product((1, 2, 3), ("x", "y"))]
    assert draw_trials(space, None, 0) == expected
    assert draw_trials(space, 99, 0) == expected
    for seed in range(20):
        some = draw_trials(space, 4, seed)
        assert len({tuple(trial.values()) for trial in some}) == 4
        assert all(trial in expected for trial in some)
    assert draw_trials(space, 4, 0) != draw_trials(space, 4, 1)


def test_beside_a_range_the_values_of_a_list_are_tried_equally_often() -> None:
    space = {"a": Range(0.0, 1.0, log=False, whole=False), "b": Choices(("x", "y", "z"))}
    assert Counter(trial["b"] for trial in draw_trials(space, 12, 3)) == {"x": 4, "y": 4, "z": 4}


def test_on_a_logarithmic_scale_ratios_count() -> None:
    log, linear = (Range(1e-4, 1.0, log=log, whole=False) for log in (True, False))
    assert sum(trial["a"] < 1e-2 for trial in draw_trials({"a": log}, 100, 0)) == 50
    assert sum(trial["a"] < 1e-2 for trial in draw_trials({"a": linear}, 100, 0)) <= 1


def test_both_ends_of_a_range_of_whole_numbers_are_drawn() -> None:
    for log in (True, False):
        drawn = draw_trials({"a": Range(2, 5, log=log, whole=True)}, 60, 0)
        assert {trial["a"] for trial in drawn} == {2, 3, 4, 5}


def test_without_end_a_number_of_trials_is_needed() -> None:
    with pytest.raises(ConfigError, match="num_trials is required, since b is a range"):
        draw_trials({"a": Choices((1,)), "b": Range(0, 1, log=False, whole=True)}, None, 0)


def test_whole_ends_of_a_setting_that_is_not_whole_are_no_limitation() -> None:
    space = {key: Range(0, 1, log=False, whole=True) for key in "abc"}
    found = with_whole_numbers(space, {"a": 0.5, "b": 3})
    assert [found[key].whole for key in "abc"] == [False, True, True]
