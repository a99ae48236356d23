"""`survey_pairs` against plain loops: ties, duplicates, blocks, threads, workers, extremes, mistakes."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import Calibration, DistanceHistogram, PairSurvey, pair_counts, survey_pairs
from distmetric.evaluation.pair_distances import pair_table
from pair_oracle import calibrate, labeled, pairs, shared

BLOCKS = [1, 40_000, 2**21, None]


def clusters(
    num_classes: int, per_class: int, dim: int, noise: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, dim, generator=generator).repeat_interleave(per_class, dim=0)
    rows = centers + noise * torch.randn(len(centers), dim, generator=generator)
    order = torch.randperm(len(rows), generator=generator)
    unit = torch.nn.functional.normalize(rows, dim=1)
    return unit[order], torch.arange(num_classes).repeat_interleave(per_class)[order]


def facts(survey: PairSurvey) -> tuple[Calibration, dict[str, list[float] | list[int]]]:
    return survey.calibration, survey.histogram.to_dict()


@settings(deadline=None, max_examples=60)
@given(
    data=labeled(),
    far=st.sampled_from([0.001, 0.1, 0.25, 0.5, 0.9]),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    block_bytes=st.sampled_from(BLOCKS),
)
def test_equals_plain_loops_with_many_ties(data, far, dtype, block_bytes):
    rows, labels = data
    distances, same = pairs(rows, labels)
    found = survey_pairs(
        torch.tensor(rows, dtype=dtype), torch.tensor(labels), target_far=far, bins=7, block_bytes=block_bytes
    )
    threshold, tar, rate = calibrate(distances, same, far)
    assert found.calibration == Calibration(threshold, far, rate, tar, sum(same), len(same) - sum(same))
    edges = found.histogram.edges.tolist()
    for counts, wanted in ((found.histogram.positive, True), (found.histogram.negative, False)):
        mine = [d for d, s in zip(distances, same, strict=True) if s is wanted]
        inside = [sum(low <= d < high for d in mine) for low, high in itertools.pairwise(edges)]
        inside[-1] += sum(d >= edges[-1] for d in mine)
        assert counts.tolist() == inside


@pytest.mark.parametrize("far", [1e-3, 0.01, 0.3])
def test_arbitrary_floats_equal_plain_loops(far):
    rows, labels = clusters(13, 5, 11)
    distances, same = pairs(rows.tolist(), labels.tolist())
    threshold, tar, rate = calibrate(distances, same, far)
    found = survey_pairs(rows, labels, target_far=far).calibration
    assert (found.tar, found.far) == (tar, rate)
    assert 0 < found.tar < 1
    assert found.threshold == pytest.approx(threshold, rel=1e-6)


def test_unit_rows_are_counted_over_zero_to_two_and_opposite_rows_in_the_last_bin():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    histogram = survey_pairs(rows, np.array([0, 1, 1, 0]), bins=4).histogram
    assert histogram.edges.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert histogram.positive.tolist() == [1, 0, 1, 0]  # 0 and sqrt(2)
    assert histogram.negative.tolist() == [0, 0, 2, 2]  # sqrt(2) twice, 2 twice


def test_other_rows_are_counted_over_the_distances_there_are():
    rows, labels = clusters(9, 4, 6)
    histogram = survey_pairs(rows * 37.0 + 5.0, labels, bins=10).histogram
    assert histogram.positive.sum() + histogram.negative.sum() == 36 * 35 / 2
    assert histogram.positive[-1] + histogram.negative[-1] > 0
    widths = histogram.edges.diff()
    torch.testing.assert_close(widths, widths[:1].expand(10), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [60, 61])
@pytest.mark.parametrize(
    "cuts", [(0, 1.0), (0, 0.5, 1.0), (0, 0.02, 1.0), (0, 0.3, 0.3, 1.0), (0, 0.5, 0.9, 1.0)]
)
def test_any_division_among_workers_gives_the_same_bits(size, cuts):
    rows, labels = clusters(21, 3, 8)
    rows, labels = rows[:size], labels[:size]
    rows[7] = rows[9]
    whole = facts(survey_pairs(rows, labels, target_far=0.05))
    at = [round(cut * size) for cut in cuts]
    every = shared(at, lambda own, add: facts(survey_pairs(rows, labels, target_far=0.05, own=own, add=add)))
    assert every == [whole] * (len(cuts) - 1)


def test_blocks_threads_and_order_of_rows_change_no_bit():
    rows, labels = clusters(150, 4, 24, noise=0.9)
    whole = facts(survey_pairs(rows, labels, target_far=0.01))
    assert 0 < whole[0].tar < 1
    for block_bytes in BLOCKS:
        assert facts(survey_pairs(rows, labels, target_far=0.01, block_bytes=block_bytes)) == whole
    torch.set_num_threads(2)
    assert facts(survey_pairs(rows, labels, target_far=0.01)) == whole
    order = torch.randperm(len(rows))
    assert facts(survey_pairs(rows[order], 5 - 3 * labels[order], target_far=0.01)) == whole


@pytest.mark.parametrize("kind", ["codes", "floats", "copies"])
def test_nothing_changes_when_too_many_pairs_are_near_to_keep_them(monkeypatch, kind):
    rows, labels = clusters(40, 5, 7)
    rows = {"codes": rows.sign(), "floats": rows, "copies": rows[labels // 20]}[kind]
    kept = [survey_pairs(rows, labels, target_far=far).calibration for far in (1e-3, 0.1, 0.5)]
    monkeypatch.setattr(pair_counts, "_KEPT_BYTES", 0)
    assert [survey_pairs(rows, labels, target_far=far).calibration for far in (1e-3, 0.1, 0.5)] == kept


@pytest.mark.parametrize("size", range(2, 12))
def test_each_pair_is_visited_once(size):
    rows = torch.tensor([[2.0**i] for i in range(size)])  # every pair has a distance of its own
    labels = torch.tensor([0, *range(size - 1)]) if size > 2 else torch.tensor([0, 0])
    if size == 2:
        rows, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 0, 1])
    table = pair_table(rows, labels)
    for cut in range(len(rows) + 1):
        seen = []
        for own in (slice(0, cut), slice(cut, None)):
            for block in table.blocks(own, 1):
                same = torch.zeros_like(block.squared).bool() if block.same is None else block.same
                seen += zip(block.squared.flatten().sqrt().tolist(), same.flatten().tolist(), strict=True)
        expected, same_class = pairs(rows.tolist(), labels.tolist())
        in_units = [d / table.grid.unit for d in expected]
        assert sorted(seen) == sorted(zip(in_units, same_class, strict=True))


def test_anchors_have_equally_many_pairs():
    table = pair_table(*clusters(20, 5, 4))
    work = [
        sum(block.squared.numel() for block in table.blocks(slice(i, i + 10), 1)) for i in range(0, 100, 10)
    ]
    assert sum(work) == 100 * 99 // 2
    assert max(work) - min(work) <= 10


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-20, 2.0**20, 2.0**100])
def test_scale_scales_the_threshold_and_nothing_else(scale):
    rows, labels = clusters(30, 4, 6)
    rows = rows + 3.0  # no unit rows, whose histogram would be another
    plain, scaled = (survey_pairs(x, labels, target_far=0.02) for x in (rows, rows.double() * scale))
    assert scaled.calibration.threshold == plain.calibration.threshold * scale
    assert (scaled.calibration.tar, scaled.calibration.far) == (plain.calibration.tar, plain.calibration.far)
    assert torch.equal(scaled.histogram.positive, plain.histogram.positive)


def test_embeddings_close_together_far_from_the_origin_are_told_apart():
    rows, labels = clusters(20, 4, 8)
    near = (rows * 2**-6).double()
    moved = near + 1000.0
    found, wanted = (survey_pairs(x, labels, target_far=0.02).calibration for x in (moved, near))
    assert 0 < found.tar < 1
    assert (found.tar, found.far) == (wanted.tar, wanted.far)
    assert found.threshold == pytest.approx(wanted.threshold, rel=1e-6)


def test_a_collapsed_model_accepts_nothing():
    found = survey_pairs(torch.full((30, 4), 0.1), torch.arange(30) % 3)
    assert (found.calibration.tar, found.calibration.far) == (0.0, 0.0)
    assert found.calibration.threshold < 0
    assert int(found.histogram.positive[0]) == 3 * 45


def test_a_target_finer_than_the_negatives_accepts_none_of_them():
    rows = np.array([[0.0], [1.0], [5.0], [7.0]])
    found = survey_pairs(rows, np.array([0, 0, 1, 1]), target_far=1e-6).calibration
    assert found == Calibration(2.0, 1e-6, 0.0, 1.0, 2, 4)


def test_a_nearest_negative_leaves_a_threshold_just_below_it():
    rows = np.array([[0.0], [1.0], [5.0]])
    found = survey_pairs(rows, np.array([0, 1, 0])).calibration
    assert found.threshold == math.nextafter(1.0, 0.0)
    assert (found.tar, found.far) == (0.0, 0.0)


def test_values_survive_json():
    survey = survey_pairs(*clusters(8, 4, 5), bins=9)
    stored = json.loads(json.dumps([survey.calibration.to_dict(), survey.histogram.to_dict()]))
    assert Calibration.from_dict(stored[0]) == survey.calibration
    again = DistanceHistogram.from_dict(stored[1])
    for name in ("edges", "positive", "negative"):
        assert torch.equal(getattr(again, name), getattr(survey.histogram, name))
        assert getattr(again, name).dtype == getattr(survey.histogram, name).dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_embeddings_are_left_as_they_are(dtype):
    rows, labels = clusters(8, 4, 5)
    rows = rows.to(dtype)
    before = rows.clone()
    survey_pairs(rows, labels)
    assert torch.equal(rows, before)


GOOD, CLASSES = np.eye(4, 2), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros(4, int)}, "all 4 rows have the same class"),
        ({"labels": np.arange(4)}, "none of 4 rows has another of its class"),
        ({"embeddings": GOOD[:0], "labels": CLASSES[:0]}, "none of 0 rows"),
        ({"embeddings": GOOD * np.nan}, "row 0 is not finite"),
        ({"labels": CLASSES[1:]}, r"must have shape \(4,\)"),
        ({"target_far": 0.0}, "target_far must be a fraction between 0 and 1, got 0.0"),
        ({"target_far": 1.0}, "target_far must be a fraction between 0 and 1, got 1.0"),
        ({"bins": 0}, "bins must be from 1 to 65536, got 0"),
        ({"own": slice(0, 4, 2)}, "slice of step 1"),
        ({"own": slice(0, 3)}, "every anchor once: 6 pairs are wanted, 5 were counted"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        survey_pairs(**{"embeddings": GOOD, "labels": CLASSES, **arguments})
    assert "\n" not in str(caught.value)
