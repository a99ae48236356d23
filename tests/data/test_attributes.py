"""Catalog attributes as numbers: vocabularies of the training rows, unknown where there is no value."""

from __future__ import annotations

import numpy as np
import pytest

from catalogs import ROWS, write_catalog
from distmetric.data.attributes import attribute_targets, attribute_values
from distmetric.data.catalog import Catalog
from distmetric.errors import InputError

# The third row is of the test split: "zebra" is a value that the training split has not.
ATTRIBUTES = [{"hue": "red", "age": None}, {"hue": "zebra", "age": "9"}, {"hue": "blue"}, {"age": None}]


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    write_catalog(tmp_path / "c.arrow", ROWS, attributes=ATTRIBUTES)
    return Catalog.open(tmp_path / "c.arrow")


def test_values_are_sorted_and_those_of_the_given_rows_only(catalog) -> None:
    assert attribute_values(catalog, catalog.rows("train"), ["hue"]) == {"hue": ["blue", "red"]}
    assert attribute_values(catalog, np.arange(4), ["hue", "age"]) == {
        "hue": ["blue", "red", "zebra"],
        "age": ["9"],
    }
    assert attribute_values(catalog, np.arange(4), []) == {}


def test_null_and_unseen_values_are_minus_one(catalog) -> None:
    targets = attribute_targets(catalog, {"hue": ["blue", "red"], "age": ["9"]})
    hues = {image: hue for (image, *_), hue in zip(ROWS, [1, -1, 0, -1], strict=True)}
    assert targets["hue"].dtype == np.int64
    assert {bytes(catalog.image_bytes(row)): targets["hue"][row] for row in range(4)} == hues
    assert sorted(targets["age"].tolist()) == [-1, -1, -1, 0]


def test_an_attribute_that_is_not_there_names_those_that_are(catalog) -> None:
    with pytest.raises(InputError, match="no attribute is called 'hat'; choose one of: age, hue"):
        attribute_values(catalog, np.arange(4), ["hat"])


def test_an_attribute_without_a_value_in_the_training_rows_is_refused(catalog) -> None:
    with pytest.raises(InputError, match="no row of the training split has a value of attribute 'age'"):
        attribute_values(catalog, catalog.rows("train"), ["age"])
