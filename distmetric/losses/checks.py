"""Checks of settings that several losses have."""

from __future__ import annotations

import math


def check_positive(**settings: float) -> None:
    """Raise ValueError unless every setting is a finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is wrong: give a number above 0")
