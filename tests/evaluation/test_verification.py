"""`verify` and `verify_pairs` against plain loops and scikit-learn: ties, folds, workers, mistakes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import VerificationMetrics, pair_counts, verify, verify_pairs
from distmetric.evaluation.calibration import FINE_BINS, fine_rate
from distmetric.evaluation.pair_counts import count_distances
from distmetric.evaluation.pair_distances import pair_table
from distmetric.evaluation.pair_ordering import area_under_roc
from distmetric.evaluation.roc import rate_name
from distmetric.evaluation.verification import _class_folds
from pair_oracle import area, calibrate, equal_error, labeled, pairs, shared

FARS = (0.5, 0.25, 0.1, 0.01)


def clusters(num_classes: int, per_class: int, dim: int, noise: float = 0.7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(num_classes, dim, generator=generator).repeat_interleave(per_class, dim=0)
    rows = centers + noise * torch.randn(len(centers), dim, generator=generator)
    order = torch.randperm(len(rows), generator=generator)
    unit = torch.nn.functional.normalize(rows, dim=1)
    return unit[order], torch.arange(num_classes).repeat_interleave(per_class)[order]


def some_pairs(count: int = 400, *, ties: bool = False) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    random = np.random.default_rng(3)
    same = random.random(count) < 0.4
    distances = random.normal(1.3, 0.2, count) - 0.3 * same
    return distances.round(1) if ties else distances, same


def assert_as_defined(found: VerificationMetrics, distances: list[float], same: list[bool]) -> None:
    negatives = len(same) - sum(same)
    assert (found.num_positives, found.num_negatives) == (sum(same), negatives)
    assert list(found.tar_at_far) == list(found.thresholds) == [far for far in FARS if far * negatives >= 1]
    for far, tar in found.tar_at_far.items():
        threshold, expected, rate = calibrate(distances, same, far)
        assert (found.thresholds[far], tar) == (threshold, expected)
        assert rate <= far
    assert found.roc_auc == pytest.approx(area(distances, same), abs=1e-12)
    assert found.equal_error_rate == pytest.approx(equal_error(distances, same), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(data=labeled(), block_bytes=st.sampled_from([1, 40_000, None]))
def test_all_pairs_equal_plain_loops_with_many_ties(data, block_bytes):
    rows, labels = data
    found = verify(torch.tensor(rows), torch.tensor(labels), fars=FARS, folds=0, block_bytes=block_bytes)
    assert_as_defined(found, *pairs(rows, labels))
    assert found.accuracy is None


@settings(deadline=None, max_examples=50)
@given(
    listed=st.lists(
        st.tuples(st.integers(-3, 9).map(lambda d: d / 4), st.booleans()), min_size=1, max_size=30
    )
)
def test_listed_pairs_equal_plain_loops_with_many_ties(listed):
    distances, same = map(list, zip(*listed, (0.5, True), (0.25, False), strict=True))
    assert_as_defined(verify_pairs(np.array(distances), np.array(same), fars=FARS, folds=0), distances, same)


def test_all_pairs_of_arbitrary_floats_equal_the_list_of_them():
    rows, labels = clusters(12, 6, 9)
    distances, same = pairs(rows.tolist(), labels.tolist())
    streamed = verify(rows, labels, fars=FARS).to_dict()
    listed = verify_pairs(np.array(distances), np.array(same), fars=FARS).to_dict()
    for name in streamed.keys() - {"accuracy", "accuracy_std"}:
        assert streamed[name] == pytest.approx(listed[name], rel=1e-6), name
    assert 0.5 < streamed["roc_auc"] < 1
    assert 0.01 < streamed["equal_error_rate"] < 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_area_curve_and_equal_error_equal_scikit_learn(ties):
    distances, same = some_pairs(ties=ties)
    found = verify_pairs(distances, same)
    assert found.roc_auc == pytest.approx(roc_auc_score(same, -distances), abs=1e-12)
    far, tar, _ = roc_curve(same, -distances, drop_intermediate=False)
    every_point = set(zip(far.round(12).tolist(), tar.round(12).tolist(), strict=True))
    drawn = list(zip(found.roc.far.tolist(), found.roc.tar.tolist(), strict=True))
    assert {(round(a, 12), round(b, 12)) for a, b in drawn} <= every_point
    assert drawn[0] == (0.0, 0.0)
    assert drawn[-1] == (1.0, 1.0)
    # The usual recipe: the zero of 1 - x - ROC(x), by bisection.
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - middle - np.interp(middle, far, tar) > 0 else (low, middle)
    assert found.equal_error_rate == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize("far", FARS)
def test_rates_equal_the_curve_of_scikit_learn(far):
    distances, same = some_pairs()
    rates, tars, _ = roc_curve(same, -distances, drop_intermediate=False)
    assert verify_pairs(distances, same, fars=[far]).tar_at_far[far] == tars[rates <= far].max()


def test_every_point_drawn_is_one_of_all_pairs():
    rows, labels = clusters(30, 5, 6)
    roc = verify(rows, labels, folds=0).roc
    distances, same = map(np.array, pairs(rows.tolist(), labels.tolist()))
    assert 100 < len(roc.far) < 450
    assert bool((roc.far.diff() >= 0).all())
    assert bool((roc.tar.diff() >= 0).all())
    for threshold, far, tar in zip(
        *(side.tolist() for side in (roc.thresholds, roc.far, roc.tar)), strict=True
    ):
        accepted = distances <= threshold + 1e-6
        # Rounding to the grid may take a pair or two across a threshold.
        assert accepted[same].mean() == pytest.approx(tar, abs=2 / same.sum())
        assert accepted[~same].mean() == pytest.approx(far, abs=2 / (~same).sum())


def test_thresholds_keep_what_they_promise():
    rows, labels = clusters(30, 5, 6)
    found = verify(rows, labels, folds=0, fars=[0.1, 0.001])
    distances, same = map(np.array, pairs(rows.double().tolist(), labels.tolist()))
    for far, threshold in found.thresholds.items():
        accepted = distances <= threshold + 1e-7
        assert accepted[~same].mean() <= far < accepted[~same].mean() + 2 / (~same).sum()
        assert accepted[same].mean() == pytest.approx(found.tar_at_far[far], abs=1.5 / same.sum())


def test_a_rate_is_the_decimal_it_is_written_as():
    """0.1 * 30 is above 3 in binary, 0.29 * 100 below 29."""
    for far, negatives, allowed in ((0.1, 30, 3), (0.29, 100, 29), (0.07, 100, 7)):
        distances = np.arange(negatives + 1, dtype=float)
        same = np.append(np.zeros(negatives, bool), True)
        found = verify_pairs(distances, same, fars=[far], folds=0)
        assert found.thresholds[far] == allowed - 1


def test_rates_finer_than_one_negative_are_left_out():
    found = verify_pairs(*some_pairs(200), fars=[0.1, 1e-2, 1e-3, 1e-9])
    assert list(found.tar_at_far) == [0.1, 1e-2]
    assert [name for name in found.to_dict() if "far" in name] == [
        "tar_at_far_1e-1",
        "tar_at_far_1e-2",
        "threshold_at_far_1e-1",
        "threshold_at_far_1e-2",
    ]


@pytest.mark.parametrize(
    ("rate", "name"), [(0.1, "1e-1"), (1e-6, "1e-6"), (0.025, "2.5e-2"), (0.5, "5e-1"), (1e-10, "1e-10")]
)
def test_rates_have_short_names(rate, name):
    assert rate_name(rate) == name


def test_a_collapsed_model_is_as_good_as_chance():
    found = verify(torch.ones(40, 3), torch.arange(40) % 20, folds=10).to_dict()
    assert (found["roc_auc"], found["equal_error_rate"], found["accuracy"]) == (0.5, 0.5, 0.5)
    assert found["tar_at_far_1e-1"] == 0.0


def test_separate_classes_are_told_apart_without_error():
    labels = torch.arange(20).repeat(3)
    rows = torch.nn.functional.one_hot(labels).double() + 0.01 * torch.rand(60, 20)
    found = verify(rows, labels).to_dict()
    assert (found["roc_auc"], found["equal_error_rate"]) == (1.0, 0.0)
    assert (found["accuracy"], found["accuracy_std"], found["tar_at_far_1e-3"]) == (1.0, 0.0, 1.0)


def fold_accuracy(distances, same, test, cuts) -> float:
    """The best of some cuts on the other pairs, the middle of the first best neighbors, judged on these."""
    positives, negatives = np.sort(distances[~test & same]), np.sort(distances[~test & ~same])
    gains = np.searchsorted(positives, cuts) / len(positives) - np.searchsorted(negatives, cuts) / len(
        negatives
    )
    first = int(np.argmax(gains))
    last = first
    while last + 1 < len(gains) and gains[last + 1] == gains[first]:
        last += 1
    cut = cuts[(first + last) // 2]
    return ((distances[test & same] < cut).mean() + (distances[test & ~same] >= cut).mean()) / 2


@pytest.mark.parametrize("ties", [False, True])
def test_accuracy_over_listed_folds_is_that_of_the_best_threshold_elsewhere(ties):
    distances, same = some_pairs(ties=ties)
    folds = np.random.default_rng(0).integers(3, 7, len(same))
    accuracies = []
    for fold in range(3, 7):
        train = np.unique(distances[folds != fold])
        cuts = [-np.inf, *((train[:-1] + train[1:]) / 2), np.inf]
        accuracies.append(fold_accuracy(distances, same, folds == fold, cuts))
    found = verify_pairs(distances, same, folds=folds)
    assert found.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert found.accuracy_std == pytest.approx(np.std(accuracies), abs=1e-12)


def test_a_number_of_folds_means_those_of_lists_in_order():
    """As Labeled Faces in the Wild has them: ten folds, in each as many positives, then as many negatives."""
    same = np.tile(np.repeat([True, False], 30), 10)
    distances = np.random.default_rng(0).normal(size=600) - 0.5 * same
    found, named = (verify_pairs(distances, same, folds=f) for f in (10, np.arange(10).repeat(60)))
    assert found.to_dict() == named.to_dict()
    assert found.accuracy is not None
    assert 0.5 < found.accuracy < 0.8


@pytest.mark.parametrize("folds", [0, np.zeros(400, int), np.arange(400), np.where(some_pairs()[1], 0, 1)])
def test_without_both_kinds_in_every_fold_there_is_no_accuracy(folds):
    found = verify_pairs(*some_pairs(), folds=folds)
    assert found.accuracy is None
    assert found.accuracy_std is None
    assert not {"accuracy", "accuracy_std"} & found.to_dict().keys()


@pytest.mark.parametrize("seed", range(6))
def test_accuracy_over_folds_of_classes_equals_plain_loops(seed):
    rows, labels = clusters(12, 4, 6, noise=1.0)
    # What is best across folds is then another threshold than what is best inside them.
    rows[labels % 3 == 0] *= 3
    folds = _class_folds(labels, 4, seed)
    assert folds is not None
    rate, _ = fine_rate(pair_table(rows, labels), FINE_BINS)
    points = pair_table(rows, labels).grid
    edges = np.arange(int(np.sqrt(points.farthest) * rate) + 2) / rate * points.unit
    distances, same = map(np.array, pairs(rows.tolist(), labels.tolist()))
    left, right = np.triu_indices(len(rows), 1)
    accuracies = []
    for fold in range(4):
        touched = (folds[left] == fold).numpy().astype(int) + (folds[right] == fold).numpy()
        pick = touched != 1
        accuracies.append(fold_accuracy(distances[pick], same[pick], touched[pick] == 2, edges))
    found = verify(rows, labels, folds=4, seed=seed)
    assert found.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert found.accuracy_std == pytest.approx(np.std(accuracies), abs=1e-12)
    assert 0.5 < np.mean(accuracies) < 1


def test_folds_of_classes_are_even_and_follow_the_seed():
    labels = torch.cat([torch.arange(40).repeat(3), torch.arange(100, 115)])
    folds, again, other = (_class_folds(labels, 10, seed) for seed in (0, 0, 1))
    assert folds is not None
    assert again is not None
    assert other is not None
    assert torch.equal(folds, again)
    assert not torch.equal(folds, other)
    of_class = {(int(c), int(f)) for c, f in zip(labels, folds, strict=True)}
    assert len(of_class) == 55
    for fold in range(10):
        mine = [c for c, f in of_class if f == fold]
        assert sum(c < 40 for c in mine) == 4
        assert len(mine) in (5, 6)


def test_too_few_classes_for_the_folds_give_no_accuracy():
    rows, labels = clusters(6, 4, 4)
    assert verify(rows, labels, folds=3).accuracy is not None
    assert verify(rows, labels, folds=4).accuracy is None


def test_blocks_threads_and_order_of_rows_change_no_bit():
    rows, labels = clusters(32, 4, 12)
    rows[3] = rows[100]
    whole = verify(rows, labels).to_dict()
    for block_bytes in (1, 2**24):
        assert verify(rows, labels, block_bytes=block_bytes).to_dict() == whole
    torch.set_num_threads(2)
    assert verify(rows, labels).to_dict() == whole
    order = torch.randperm(len(rows))
    assert verify(rows[order], labels[order]).to_dict() == whole


@pytest.mark.parametrize("size", [80, 81])
@pytest.mark.parametrize("cuts", [(0, 40, 1000), (0, 0, 70, 1000)])
def test_any_division_among_workers_gives_the_same_bits(size, cuts):
    rows, labels = clusters(27, 3, 8)
    rows, labels = (rows * 4).round()[:size], labels[:size]
    whole = verify(rows, labels, fars=FARS).to_dict()
    at = [min(cut, size) for cut in cuts]
    every = shared(at, lambda own, add: verify(rows, labels, fars=FARS, own=own, add=add).to_dict())
    assert every == [whole] * (len(cuts) - 1)
    assert "accuracy" in whole


@pytest.mark.parametrize("kind", ["floats", "codes", "copies"])
@pytest.mark.parametrize("listed", [1, 7, 100])
def test_area_does_not_depend_on_how_many_pairs_are_held(kind, listed):
    rows, labels = clusters(8, 12, 5)
    rows = {"codes": rows.sign(), "floats": rows, "copies": rows[labels // 3]}[kind]
    table = pair_table(rows, labels)
    counts = count_distances(table, 9 * table.grid.unit, block_bytes=20_000)
    expected = area(*pairs(rows.tolist(), labels.tolist()))
    assert area_under_roc(counts, listed) == area_under_roc(counts)
    assert area_under_roc(counts) == pytest.approx(expected, abs=1e-12 if kind != "floats" else 1e-7)


def test_nothing_changes_when_too_many_pairs_are_near_to_keep_them(monkeypatch):
    rows, labels = clusters(30, 4, 6)
    kept = verify(rows, labels, fars=FARS).to_dict()
    monkeypatch.setattr(pair_counts, "_KEPT_BYTES", 0)
    assert verify(rows, labels, fars=FARS).to_dict() == kept


GOOD, CLASSES = np.eye(4, 2), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros(4, int)}, "all 4 rows have the same class"),
        ({"labels": np.arange(4)}, "none of 4 rows has another of its class"),
        ({"embeddings": GOOD * np.nan}, "row 0 is not finite"),
        ({"fars": [0.1, 1.5]}, "each of fars must be a fraction between 0 and 1, got 1.5"),
        ({"folds": 1}, "folds must be at least 2, or 0 for no accuracy, got 1"),
        ({"folds": -2}, "folds must be at least 2"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        verify(**{"embeddings": GOOD, "labels": CLASSES, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distances": np.array([0.1, np.nan, 0.3])}, "distance 1 is not finite"),
        ({"distances": np.ones((3, 1))}, r"shape \(P,\), got \(3, 1\)"),
        ({"same": np.array([True])}, r"same must have shape \(3,\)"),
        ({"same": np.array([0, 1, 2])}, "booleans or 0 and 1"),
        ({"same": np.array([0.0, 1.0, 1.0])}, "booleans or 0 and 1"),
        ({"same": np.ones(3, bool)}, "3 of 3 pairs are of one class"),
        ({"same": np.zeros(3, bool)}, "0 of 3 pairs are of one class"),
        ({"folds": np.zeros(2, int)}, "one integer for each of 3 pairs"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"fars": [0.0]}, "each of fars must be"),
    ],
)
def test_mistakes_in_a_list_get_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        verify_pairs(
            **{"distances": np.array([0.1, 0.2, 0.3]), "same": np.array([True, False, True]), **arguments}
        )
    assert "\n" not in str(caught.value)
