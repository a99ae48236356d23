"""Which class is for training and which for testing: class-disjoint splits as pure functions.

A split is decided per class, never per image, because retrieval is judged on classes that training never saw.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from distmetric.errors import InputError

TRAIN, VALIDATION, TEST, QUERY, GALLERY = SPLITS = ("train", "validation", "test", "query", "gallery")


def by_ratio(
    class_names: Iterable[str], test_fraction: float, seed: int, validation_fraction: float = 0.0
) -> dict[str, str]:
    """Split classes at random in given proportions.

    The names are ordered by a hash of (seed, name): the first ones become the test classes, the next ones the
    validation classes, the others the training classes. The order of `class_names` therefore does not matter,
    and adding a class moves few others.

    Args:
        class_names: Names of the classes; repeated names count once.
        test_fraction: Share of the classes for testing, in [0, 1). Above 0 it yields at least one class.
        seed: Any integer; another seed gives another split.
        validation_fraction: Share of the classes for validation, in [0, 1).

    Returns:
        Class name to split name, in sorted order of the class names.

    Raises:
        InputError: A fraction is out of range, or no class would be left for training.
    """
    check_fractions(test_fraction, validation_fraction)
    names = sorted(set(class_names))
    num_test, num_validation = (_count(len(names), part) for part in (test_fraction, validation_fraction))
    if num_test + num_validation >= len(names):
        raise InputError(
            f"test_fraction={test_fraction:g} and validation_fraction={validation_fraction:g} leave none of "
            f"the {len(names)} classes for training; choose smaller ones"
        )
    shuffled = sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    held_out = dict.fromkeys(shuffled[:num_test], TEST)
    held_out |= dict.fromkeys(shuffled[num_test : num_test + num_validation], VALIDATION)
    return {name: held_out.get(name, TRAIN) for name in names}


def check_fractions(test_fraction: float, validation_fraction: float = 0.0) -> None:
    """Check the proportions that `by_ratio` takes, as can be done before any class is known.

    Args:
        test_fraction: Share of the classes for testing.
        validation_fraction: Share of the classes for validation.

    Raises:
        InputError: One is outside [0, 1), or together they leave nothing for training.
    """
    for key, fraction in (("test_fraction", test_fraction), ("validation_fraction", validation_fraction)):
        if not 0.0 <= fraction < 1.0:
            raise InputError(f"{key}={fraction:g} is no share of the classes; choose one in [0, 1)")
    if test_fraction + validation_fraction >= 1.0:
        raise InputError(
            f"test_fraction={test_fraction:g} and validation_fraction={validation_fraction:g} leave nothing "
            "for training; choose smaller ones"
        )


def _count(num_classes: int, fraction: float) -> int:
    return 0 if fraction == 0.0 else max(1, int(num_classes * fraction + 0.5))


def by_group(
    groups: Mapping[str, str], test_groups: Collection[str], validation_groups: Collection[str] = ()
) -> dict[str, str]:
    """Split classes by the group each belongs to (an alphabet, a make of car, a city).

    Args:
        groups: Class name to group name.
        test_groups: Groups whose classes are for testing.
        validation_groups: Groups whose classes are for validation.

    Returns:
        Class name to split name, in sorted order of the class names; unnamed groups are for training.

    Raises:
        InputError: A group does not exist or is named for both splits, or nothing would be left for training.
    """
    available = sorted(set(groups.values()))
    for key, named in (("test_groups", test_groups), ("validation_groups", validation_groups)):
        for group in named:
            if group not in available:
                raise InputError(f"{key}: no group is called {group!r}; {_suggest(group, available)}")
    for group in test_groups:
        if group in validation_groups:
            raise InputError(f"group {group!r} is in test_groups and in validation_groups; name it in one")
    split_of = dict.fromkeys(validation_groups, VALIDATION) | dict.fromkeys(test_groups, TEST)
    splits = {name: split_of.get(groups[name], TRAIN) for name in sorted(groups)}
    if TRAIN not in splits.values():
        raise InputError(
            f"test_groups and validation_groups name all {len(available)} groups; leave one for training"
        )
    return splits


def _suggest(name: str, available: list[str], most: int = 12) -> str:
    close = difflib.get_close_matches(name, available, n=1)
    listed = ", ".join(available[:most])
    more = f" and {len(available) - most} more" if len(available) > most else ""
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are: {listed}{more}"


def check_answerable(labels: npt.NDArray[np.int64], split: str) -> None:
    """See that among the images of a split there is something to find: two of one class.

    Args:
        labels: (N,) class of each image.
        split: How to name the split to people.

    Raises:
        InputError: Every class has one image only.
    """
    if np.unique(labels, return_counts=True)[1].max(initial=0) < 2:
        raise InputError(
            f"{split}: every class has one image only, so that no image has another one to be found by; "
            "choose a split, or ingest, with two or more images of some class"
        )


def check_given(
    pairs: Iterable[tuple[str, str]], allow_shared_classes: bool = False, needs_training: bool = True
) -> None:
    """Check splits that came with the data: known names, something to train on, no class on both sides.

    Args:
        pairs: The (class name, split name) combinations that occur; repeated ones count once.
        allow_shared_classes: Accept classes that have images for training and for testing.
        needs_training: Whether something has to be for training, as nothing is in a data set that only tests.

    Raises:
        InputError: A split has another name than train, validation, test, query or gallery, nothing is for training,
            or a class is in train and in test, query or gallery. Validation may share classes: it never decides a
            final number. Query and gallery have to.
    """
    classes: dict[str, set[str]] = defaultdict(set)
    for name, split in pairs:
        if split not in SPLITS:
            raise InputError(
                f"class {name!r} is in split {split!r}; rename the split to one of {', '.join(SPLITS)}"
            )
        classes[split].add(name)
    if needs_training and not classes[TRAIN]:
        raise InputError("the given splits leave nothing for training; mark some classes as train")
    for split in (TEST, QUERY, GALLERY):
        shared = sorted(classes[TRAIN] & classes[split])
        if shared and not allow_shared_classes:
            raise InputError(
                f"class {shared[0]!r} is in train and in {split} (as are {len(shared) - 1} others); "
                "give each class one split, or set allow_shared_classes=true"
            )
    if bool(classes[QUERY]) != bool(classes[GALLERY]) or (
        classes[QUERY] and classes[QUERY].isdisjoint(classes[GALLERY])
    ):
        raise InputError(
            "splits query and gallery have no class in common; mark as gallery what the queries are to find"
        )
