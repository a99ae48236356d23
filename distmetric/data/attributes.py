"""Attributes of a catalog as numbers: which values there are, and which of them each row has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from distmetric.data.catalog import Catalog
from distmetric.data.catalog_format import Integers
from distmetric.errors import InputError

UNKNOWN = -1  # target of a row that does not say, or has a value that the training split has not


def attribute_values(catalog: Catalog, rows: Integers, names: Iterable[str]) -> dict[str, list[str]]:
    """The values that attributes take in some rows, usually those of the training split.

    Args:
        catalog: Where rows come from.
        rows: (R,) int64 row numbers.
        names: Attributes of the catalog.

    Returns:
        Name -> its different values, sorted; a value's position is its number.

    Raises:
        InputError: If the catalog has no such attribute, or none of the rows says what its value is.
    """
    known = {}
    for name in names:
        known[name] = sorted({value for value in catalog.attribute(name)[rows] if value is not None})
        if not known[name]:
            raise InputError(
                f"{catalog.path}: no row of the training split has a value of attribute {name!r}: leave it out"
            )
    return known


def attribute_targets(
    catalog: Catalog, values: Mapping[str, Sequence[str]]
) -> dict[str, npt.NDArray[np.int64]]:
    """The number of each row's value.

    Args:
        catalog: Where rows come from.
        values: Name of an attribute -> its values, as `attribute_values` gives them.

    Returns:
        Name -> (len(catalog),) int64 positions in its values; `UNKNOWN` for null and for values that are not there.
        Cost: 8 bytes a row and attribute.

    Raises:
        InputError: If the catalog has no such attribute.
    """
    targets = {}
    for name, known in values.items():
        number = {value: position for position, value in enumerate(known)}
        found = (number.get(value, UNKNOWN) for value in catalog.attribute(name))
        targets[name] = np.fromiter(found, np.int64, len(catalog))
    return targets
