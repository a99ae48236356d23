"""What a registered model says of itself, and when another one is better."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from distmetric.tracking.model_card import reason_to_stay
from model_cards import CARD


def test_tags_are_texts_that_give_the_numbers_back() -> None:
    tags = CARD.tags()
    assert all(isinstance(value, str) for value in tags.values())
    assert float(tags["recall_at_1"]) == 0.1 + 0.2
    assert (float(tags["threshold"]), float(tags["far"])) == (0.875, 0.00099)
    assert (tags["protocol"], tags["data_fingerprint"], tags["step"]) == ("leave-one-out", "abc", "400")


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(CARD, metrics={}, calibration={}, weights="")
    assert not {"recall_at_1", "threshold", "weights_sha256"} & bare.tags().keys()
    assert "not evaluated, step 400" in bare.note()
    assert "one class" not in bare.note()
    assert not any(math.isnan(value) for value in bare.metrics.values())


def test_the_note_says_how_good_it_is_and_how_to_use_it() -> None:
    note = CARD.note()
    assert note.startswith("**recall_at_1 0.3000** (leave-one-out), step 400 of run glyphs-triplet.")
    assert "distance of 0.8750 (false accept rate 0.00099)" in note
    assert 'column "image"' in note


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metrics": {"recall_at_1": 0.31}}, None),
        ({"metrics": {"recall_at_1": 0.3}}, "recall_at_1 0.3000 is not above 0.3000"),
        ({"metrics": {"recall_at_1": 0.2}}, "recall_at_1 0.2000 is not above 0.3000"),
        ({"metrics": {"recall_at_1": float("nan")}}, "recall_at_1 nan is not above 0.3000"),
        ({"metrics": {}}, "no recall_at_1 was measured at its step"),
        ({"metrics": {"recall_at_1": 0.9}, "fingerprint": "xyz"}, "another data (abc there, xyz here)"),
        (
            {"metrics": {"recall_at_1": 0.9}, "protocol": "reid"},
            "another protocol (leave-one-out there, reid here)",
        ),
        (
            {"metrics": {"map_at_r": 0.9}, "headline": "map_at_r"},
            "another metric (recall_at_1 there, map_at_r here)",
        ),
    ],
)
def test_only_a_higher_metric_of_the_same_kind_is_better(changes, reason) -> None:
    assert reason_to_stay(replace(CARD, **changes).tags(), CARD.tags()) == reason


def test_anything_measured_is_better_than_what_was_not() -> None:
    assert reason_to_stay(CARD.tags(), replace(CARD, metrics={}).tags()) is None
    assert reason_to_stay(CARD.tags(), {}) == "another metric (unknown there, recall_at_1 here)"
