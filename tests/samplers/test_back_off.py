"""Backing off: when the level falls, how often, and how it comes back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.samplers import BackOff, BackOffConfig

CONFIG = BackOffConfig(patience=3, factor=0.5, lowest=0.1, recovery_steps=20, variance_fraction=0.25)


def seen(positive: float, negative: float, variance: float) -> dict[str, float]:
    return {
        "train/positive_distance_mean": positive,
        "train/nearest_negative_mean": negative,
        "train/embedding_variance": variance,
    }


CALM, MIXED, SHRUNK = seen(0.5, 1.0, 0.8), seen(1.0, 1.0, 0.8), seen(0.5, 1.0, 0.1)


def levels(back_off: BackOff, steps: list[dict[str, float]], start: int = 0) -> list[float]:
    told = []
    for step, metrics in enumerate(steps, start):
        back_off.observe(step, metrics)
        told.append(back_off.level)
    return told


def test_positives_as_far_as_negatives_reduce_once_in_a_patience() -> None:
    assert levels(BackOff(CONFIG), [MIXED] * 9) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_a_step_without_a_sign_begins_the_patience_anew() -> None:
    assert levels(BackOff(CONFIG), [MIXED, MIXED, CALM] * 5) == [1.0] * 15


def test_the_ratio_says_how_far_is_too_far() -> None:
    tolerant = BackOff(replace(CONFIG, distance_ratio=1.2))
    assert levels(tolerant, [seen(1.1, 1.0, 0.8)] * 9) == [1.0] * 9
    assert levels(tolerant, [seen(1.2, 1.0, 0.8)] * 3, start=9)[-1] == 0.5


def test_shrunk_variance_reduces_at_once_and_then_once_in_a_patience() -> None:
    assert levels(BackOff(CONFIG), [CALM, SHRUNK, SHRUNK, SHRUNK, SHRUNK]) == [1, 0.5, 0.5, 0.5, 0.25]
    assert levels(BackOff(replace(CONFIG, variance_fraction=0.0)), [CALM] + [SHRUNK] * 9) == [1.0] * 10


def test_the_level_comes_back_in_equal_parts() -> None:
    back_off = BackOff(CONFIG)
    levels(back_off, [MIXED] * 3)
    np.testing.assert_allclose(levels(back_off, [CALM] * 12, 3), [*np.arange(0.55, 1.0, 0.05), 1, 1, 1])


def test_the_warm_up_is_left_alone_but_shows_how_large_the_variance_was() -> None:
    back_off = BackOff(CONFIG, warmup_steps=10)
    assert levels(back_off, [CALM] + [MIXED] * 9) == [1.0] * 10
    assert levels(back_off, [MIXED] * 3, start=10) == [1, 1, 0.5]
    fresh = BackOff(CONFIG, warmup_steps=10)
    assert levels(fresh, [CALM] * 10 + [SHRUNK])[-1] == 0.5


def test_what_was_not_measured_is_no_sign() -> None:
    assert levels(BackOff(CONFIG), [{}] * 9) == [1.0] * 9
    assert (
        levels(BackOff(CONFIG), [seen(np.nan, np.nan, np.nan), seen(1.0, np.nan, np.inf)] * 5) == [1.0] * 10
    )


def test_disabled_it_does_nothing() -> None:
    assert levels(BackOff(replace(CONFIG, enabled=False)), [MIXED, SHRUNK] * 10) == [1.0] * 20


METRICS = st.lists(
    st.builds(seen, st.floats(0, 2), st.floats(0, 2), st.floats(0, 1)) | st.just({}), min_size=1, max_size=80
)


@given(steps=METRICS, warmup=st.integers(0, 5), cut=st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_levels_stay_in_range_and_falls_are_a_patience_apart(steps, warmup, cut) -> None:
    told = levels(BackOff(CONFIG, warmup), steps)
    assert all(CONFIG.lowest <= level <= 1 for level in told)
    falls = [step for step, (a, b) in enumerate(pairwise([1.0, *told])) if b < a]
    assert all(later - earlier >= CONFIG.patience for earlier, later in pairwise(falls))
    assert all(step >= warmup for step in falls)
    rises = [b - a for a, b in pairwise(told) if b > a]
    assert all(rise <= 1 / CONFIG.recovery_steps + 1e-12 for rise in rises)
    # interrupted equals uninterrupted
    first, second = BackOff(CONFIG, warmup), BackOff(CONFIG, warmup)
    before = levels(first, steps[:cut])
    second.load_state_dict(first.state_dict())
    assert before + levels(second, steps[cut:], len(before)) == told
    assert all(type(value) in (int, float) for value in first.state_dict().values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("distance_ratio", 0.0), ("variance_fraction", 1.0), ("patience", 0), ("factor", 0.0)),
        *(("factor", 1.5), ("lowest", 0.0), ("recovery_steps", 0), ("variance_fraction", -0.1)),
    ],
)
def test_wrong_numbers_are_named(key, value) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value} is "):
        BackOffConfig(**{key: value})
