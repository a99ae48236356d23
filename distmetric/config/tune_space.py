"""The space of a search, and the trials drawn from it: which settings each of them has.

All trials are drawn before the first one starts. So each can be checked as a whole, and a search that was interrupted
knows which of them are left.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distmetric.errors import ConfigError

_FOR_A_RANGE = {"low", "high", "log"}


@dataclass(frozen=True)
class Choices:
    """Values that are equally likely.

    Args:
        values: The values, of any type a setting may have.
    """

    values: tuple[Any, ...]

    def at(self, fraction: float) -> Any:
        """The value at a fraction in [0, 1) of the list."""
        return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Args:
        low: The least.
        high: The greatest.
        log: Whether ratios count rather than differences: as many from 0.001 to 0.01 as from 0.01 to 0.1.
        whole: Whether only whole numbers count, both ends among them.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, fraction: float) -> float | int:
        """The number at a fraction in [0, 1) of the range; to four digits, unless it is whole."""
        end = self.high + 1 if self.whole else self.high
        drawn = self.low + (end - self.low) * fraction
        if self.log:
            drawn = self.low * (end / self.low) ** fraction
        number = math.floor(drawn) if self.whole else float(f"{drawn:.4g}")
        return min(max(number, self.low), self.high)


Space = dict[str, Choices | Range]


def parse_space(given: Mapping[str, Any]) -> Space:
    """Read a space.

    Args:
        given: By key of a setting a list of values, or a range as {low, high, log}. Keys may also be nested.

    Returns:
        By dotted key what can be drawn, in the order given.

    Raises:
        ConfigError: For the first part that says nothing that could be drawn.
    """
    space: Space = {}
    for key, value in given.items():
        space.update(_parse(str(key), value))
    if not space:
        raise ConfigError("space has no settings: give one or more, such as space={optim.lr: [0.001, 0.003]}")
    return space


def with_whole_numbers(space: Space, settings: Mapping[str, Any]) -> Space:
    """The space in which {low: 0, high: 1} is a range of whole numbers only where the setting is one.

    Args:
        space: What can be drawn.
        settings: Dotted keys and values of a configuration in the space.
    """
    return {
        key: Range(part.low, part.high, part.log, False)
        if isinstance(part, Range) and isinstance(settings.get(key), float)
        else part
        for key, part in space.items()
    }


def draw_trials(space: Space, num_trials: int | None, seed: int) -> list[dict[str, Any]]:
    """Draw the trials of a search.

    Where the space has lists only, they are different combinations, all of them if `num_trials` is None or as many.
    Where it has ranges, they are a Latin hypercube: every range is cut into `num_trials` equal parts, and each part,
    as each value of a list, is tried equally often (McKay, Beckman, Conover, Technometrics 1979).

    Args:
        space: What can be drawn.
        num_trials: How many; None for all combinations.
        seed: Of the draw; the same one draws the same trials.

    Returns:
        Settings by dotted key, in the order of the space; no more of them than there are combinations.

    Raises:
        ConfigError: If all combinations are asked for, and there is no end to them.
    """
    lists = [part.values for part in space.values() if isinstance(part, Choices)]
    drawn = random.Random(seed)
    if len(lists) == len(space):
        total = math.prod(map(len, lists))
        count = total if num_trials is None else min(num_trials, total)
        numbers = range(total) if count == total else drawn.sample(range(total), count)
        return [dict(zip(space, _combination(lists, number), strict=True)) for number in numbers]
    if num_trials is None:
        key = next(key for key, part in space.items() if isinstance(part, Range))
        raise ConfigError(f"num_trials is required, since {key} is a range: set num_trials=20, for example")
    columns = []
    for part in space.values():
        places = drawn.sample(range(num_trials), num_trials)
        columns.append([part.at((place + drawn.random()) / num_trials) for place in places])
    return [dict(zip(space, values, strict=True)) for values in zip(*columns, strict=True)]


def _combination(lists: list[tuple[Any, ...]], number: int) -> list[Any]:
    values = []
    for choices in reversed(lists):
        number, place = divmod(number, len(choices))
        values.append(choices[place])
    return values[::-1]


def _parse(key: str, value: Any) -> Space:
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"space: {key}=[] is wrong: give one or more values")
        if any(value.count(each) > 1 for each in value):
            raise ConfigError(f"space: {key}={value} is wrong: give each value once")
        return {key: Choices(tuple(value))}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"space: {key}={value} is wrong: give a list of values, or a range such as {{low: 1e-4, high: 1e-2}}"
        )
    if not _FOR_A_RANGE & set(value) and value:
        inner: Space = {}
        for name, part in value.items():
            inner.update(_parse(f"{key}.{name}", part))
        return inner
    return {key: _range(key, value)}


def _range(key: str, value: Mapping[str, Any]) -> Range:
    if unknown := sorted(set(map(str, value)) - _FOR_A_RANGE):
        raise ConfigError(f"space: {key} has {unknown[0]}, which a range has not: it takes low, high and log")
    low: Any = value.get("low")
    high: Any = value.get("high")
    log = value.get("log", False)
    if not (_is_number(low) and _is_number(high) and low < high):
        raise ConfigError(
            f"space: {key} from low={low} to high={high} is no range: give two numbers, low < high"
        )
    if not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(
            f"space: {key} with low={low}, log={log} is wrong: log is true or false, and true needs low > 0"
        )
    return Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
