"""Splits are class-disjoint, repeatable, and say what is wrong with a wish that cannot be met."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmetric.data.splits import by_group, by_ratio, check_answerable, check_fractions, check_given
from distmetric.errors import InputError

NAMES = st.sets(st.text(min_size=1, max_size=6), min_size=4, max_size=40)


@given(NAMES, st.integers(), st.floats(0.0, 0.45), st.floats(0.0, 0.25), st.randoms())
def test_every_class_gets_one_split_and_order_does_not_matter(
    names: set[str], seed: int, test: float, validation: float, shuffler: random.Random
) -> None:
    listed = sorted(names)
    try:
        splits = by_ratio(listed, test, seed, validation)
    except InputError:
        assert len(names) < 8, "only a handful of classes can be too few for such fractions"
        return
    assert set(splits) == names
    assert "train" in splits.values()
    assert ("test" in splits.values()) == (test > 0)
    assert ("validation" in splits.values()) == (validation > 0)
    shuffler.shuffle(listed)
    assert by_ratio(listed + listed[:2], test, seed, validation) == splits


def test_fractions_are_met_and_seeds_differ() -> None:
    names = [f"class {i}" for i in range(100)]
    splits = by_ratio(names, 0.3, seed=0, validation_fraction=0.1)
    counts = {split: list(splits.values()).count(split) for split in ("train", "validation", "test")}
    assert counts == {"train": 60, "validation": 10, "test": 30}
    assert by_ratio(names, 0.3, seed=1, validation_fraction=0.1) != splits


def test_a_new_class_moves_few_others() -> None:
    names = [f"class {i}" for i in range(100)]
    before, after = by_ratio(names, 0.5, seed=0), by_ratio([*names, "one more"], 0.5, seed=0)
    assert sum(before[name] != after[name] for name in names) <= 1


def test_the_split_is_the_same_on_every_machine_and_release() -> None:
    assert by_ratio("abcdef", 0.5, seed=7) == dict(
        zip("abcdef", ["test", "train", "test", "test", "train", "train"], strict=True)
    )


@pytest.mark.parametrize(
    ("test", "validation"), [(-0.1, 0.0), (1.0, 0.0), (float("nan"), 0.0), (0.5, 1.5), (0.6, 0.4)]
)
def test_impossible_fractions_are_refused(test: float, validation: float) -> None:
    with pytest.raises(InputError, match=r"_fraction=.*choose"):
        check_fractions(test, validation)
    with pytest.raises(InputError, match=r"_fraction=.*choose"):
        by_ratio("abcd", test, 0, validation)


def test_too_few_classes_to_hold_any_out() -> None:
    with pytest.raises(InputError, match="leave none of the 2 classes for training"):
        by_ratio("ab", 0.4, 0, validation_fraction=0.4)


GROUPS = {"Greek/alpha": "Greek", "Greek/beta": "Greek", "Latin/a": "Latin", "Korean/ga": "Korean"}


def test_groups_decide() -> None:
    assert by_group(GROUPS, ["Greek"], ["Korean"]) == {
        "Greek/alpha": "test",
        "Greek/beta": "test",
        "Korean/ga": "validation",
        "Latin/a": "train",
    }


def test_an_unknown_group_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"test_groups: no group is called 'Greeek'; did you mean 'Greek'\?"):
        by_group(GROUPS, ["Greeek"])
    with pytest.raises(InputError, match=r"validation_groups: .*'xyz'; there are: Greek, Korean, Latin$"):
        by_group(GROUPS, ["Greek"], ["xyz"])


def test_contradicting_groups_are_refused() -> None:
    with pytest.raises(InputError, match="'Greek' is in test_groups and in validation_groups"):
        by_group(GROUPS, ["Greek"], ["Greek"])
    with pytest.raises(InputError, match="leave one for training"):
        by_group(GROUPS, ["Greek", "Latin"], ["Korean"])


def test_given_splits_are_checked() -> None:
    check_given([("a", "train"), ("a", "validation"), ("b", "test")])
    with pytest.raises(InputError, match=r"class 'b' is in train and in test \(as are 1 others\)"):
        check_given([("a", "train"), ("b", "train"), ("b", "test"), ("c", "train"), ("c", "test")])
    check_given([("b", "train"), ("b", "test")], allow_shared_classes=True)
    with pytest.raises(InputError, match=r"class 'b' is in split 'dev'; rename .* train, validation, test"):
        check_given([("a", "train"), ("b", "dev")])
    with pytest.raises(InputError, match="nothing for training"):
        check_given([("a", "test"), ("b", "test")])


def test_a_split_of_lone_images_has_nothing_to_find() -> None:
    check_answerable(np.array([3, 1, 3]), "test")
    for labels in ([], [5], [2, 1, 3]):
        with pytest.raises(InputError, match=r"^test: every class has one image only"):
            check_answerable(np.array(labels, np.int64), "test")
