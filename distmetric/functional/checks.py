"""Checks of settings, for everything that is built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the known ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(known)}")


def check_positive(**settings: float) -> None:
    """Raise ValueError unless every setting is a finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is wrong: give a number above 0")
