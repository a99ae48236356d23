"""Checks of settings, for everything that is built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the known ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(known)}")


def check_at_least(least: int, **settings: int | None) -> None:
    """Raise ValueError unless every setting is `least` or more; None counts as left out."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name}={value} is too small: set it to {least} or more")


def check_not_negative(**settings: float) -> None:
    """Raise ValueError unless every setting is a finite number of 0 or more."""
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is wrong: give a number of 0 or more")


def check_positive(**settings: float) -> None:
    """Raise ValueError unless every setting is a finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is wrong: give a number above 0")
