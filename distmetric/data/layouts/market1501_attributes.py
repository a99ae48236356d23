"""market_attribute.mat: 27 attributes of the persons of Market-1501.

    market_attribute.train, .test: one struct each, with a row of numbers for every attribute and the persons of the
    columns in image_index. Values are 1 and 2 (age: 1 to 4), and mean what `VALUES` says.

Source: Lin et al., Improving Person Re-identification by Attribute and Identity Learning, arXiv 1703.07220.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distmetric.data.layouts.annotations import Annotation
from distmetric.errors import InputError

ANNOTATION = "market_attribute.mat"

_NO_YES = ("no", "yes")
_UPPER = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
_LOWER = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
VALUES: dict[str, tuple[str, ...]] = {
    "age": ("young", "teenager", "adult", "old"),
    "gender": ("male", "female"),
    "hair": ("short", "long"),
    "up": ("long", "short"),  # sleeves
    "down": ("long", "short"),
    "clothes": ("dress", "pants"),
    **dict.fromkeys(("hat", "backpack", "bag", "handbag"), _NO_YES),
    **{f"up{color}": _NO_YES for color in _UPPER},
    **{f"down{color}": _NO_YES for color in _LOWER},
}


def read_attributes(annotation: Annotation) -> dict[str, dict[str, str | None]]:
    """The values of all attributes by person.

    Raises:
        InputError: It is no such file.
    """
    found: dict[str, dict[str, str | None]] = {}
    whole = annotation.matlab("market_attribute")
    for part in ("train", "test"):
        where = f"{annotation.shown}: market_attribute.{part}"
        struct = getattr(whole, part, None)
        if struct is None:
            raise InputError(f"{where} is not there; get the file again")
        persons = [str(each) for each in np.atleast_1d(getattr(struct, "image_index", ()))]
        columns = {name: _column(struct, name, len(persons), where) for name in VALUES}
        for number, person in enumerate(persons):
            if person in found:
                raise InputError(f"{where}: person {person} is there twice; get the file again")
            found[person] = {name: column[number] for name, column in columns.items()}
    return found


def _column(struct: Any, name: str, size: int, where: str) -> list[str]:
    values = np.atleast_1d(getattr(struct, name, ()))
    meanings = VALUES[name]
    if values.dtype.kind not in "uif" or values.shape != (size,):
        raise InputError(f"{where}.{name} is not {size} numbers, one for each person; get the file again")
    if not np.isin(values, range(1, len(meanings) + 1)).all():
        raise InputError(f"{where}.{name} has values other than 1 to {len(meanings)}; get the file again")
    return [meanings[int(value) - 1] for value in values]
