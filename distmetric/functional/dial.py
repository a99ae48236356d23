"""A setting that may change over the steps of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True, frozen=True)
class Dial:
    """A number that goes from `start` to `end` between two steps, and stays where it is before and after."""

    start: float
    """Its value up to `begin_step`."""
    end: float
    """Its value from `end_step` on."""
    begin_step: int = 0
    """Step at which it begins to change."""
    end_step: int
    """Step at which it has arrived."""
    shape: Literal["linear", "cosine"] = "linear"
    """At constant speed (linear), or slowly at both ends (cosine)."""

    def __post_init__(self) -> None:
        """Check numbers and steps.

        Raises:
            ValueError: If they make no schedule.
        """
        if not 0 <= self.begin_step < self.end_step:
            raise ValueError(
                f"begin_step={self.begin_step} and end_step={self.end_step} are wrong: "
                "give steps from 0 on, the earlier one first"
            )
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(
                f"start={self.start} and end={self.end} must be finite to go from one to the other"
            )
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"shape={self.shape!r} is not known: choose one of linear, cosine")

    def at(self, step: int) -> float:
        """The value at a step."""
        done = (step - self.begin_step) / (self.end_step - self.begin_step)
        done = min(max(done, 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done if done < 1 else self.end


Setting = float | Dial
"""A number, or one that changes over the steps."""


def value_at(setting: Setting, step: int) -> float:
    """The value of a setting at a step."""
    return setting.at(step) if isinstance(setting, Dial) else setting


def ends(setting: Setting) -> tuple[float, float]:
    """The values between which all values of a setting lie."""
    return (setting.start, setting.end) if isinstance(setting, Dial) else (setting, setting)
