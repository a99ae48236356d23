"""Settings that are one of a few names."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the known ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(known)}")
