"""The signs of collapse that the back-off and the watch over a run share."""

from __future__ import annotations

import math

import pytest

from distmetric.samplers.collapse_signs import LargestVariance, are_mixed, relative_variance


def test_what_is_not_known_is_no_sign() -> None:
    largest = LargestVariance()
    assert not are_mixed({})
    assert not are_mixed({"train/positive_distance_mean": 1.0})
    assert math.isnan(relative_variance({"train/embedding_norm_mean": 1.0}))
    largest.observe({})
    assert not largest.is_far_below({}, 0.5)


@pytest.mark.parametrize(
    ("positive", "ratio", "expected"), [(0.5, 1, True), (0.49, 1, False), (0.6, 1.25, False)]
)
def test_positives_as_far_as_negatives_are_mixed(positive: float, ratio: float, expected: bool) -> None:
    metrics = {"train/positive_distance_mean": positive, "train/nearest_negative_mean": 0.5}
    assert are_mixed(metrics, ratio) == expected


def test_relative_variance_does_not_depend_on_the_scale() -> None:
    for scale in (0.1, 1, 30):
        metrics = {"train/embedding_variance": 0.5 * scale**2, "train/embedding_norm_mean": scale}
        assert relative_variance(metrics) == pytest.approx(0.5)
    assert relative_variance({"train/embedding_variance": 0.0, "train/embedding_norm_mean": 0.0}) == 0


def test_a_variance_is_measured_by_the_largest_finite_one() -> None:
    largest = LargestVariance()
    for variance in (0.5, 2.0, math.inf, math.nan, 1.0):
        largest.observe({"train/embedding_variance": variance})
    assert largest.value == 2
    assert largest.is_far_below({"train/embedding_variance": 0.19}, 0.1)
    assert not largest.is_far_below({"train/embedding_variance": 0.2}, 0.1)
