"""The settings of a composed configuration, changed one by one: key=value, +key=value, ~key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distmetric.config.decode import leaves, unknown_key
from distmetric.errors import ConfigError


class Settings:
    """A configuration in plain containers.

    Args:
        values: Of all settings; changed in place. Groups that are empty, such as model.kwargs, take any setting.
        groups: Names of the groups of conf/, which could be meant by a key without dots.
    """

    def __init__(self, values: dict[str, Any], groups: Sequence[str] = ()) -> None:
        self.values, self._groups = values, groups
        self._open = {f"{key}." for key, value in leaves(values).items() if value == {}}

    def set(self, key: str, value: Any) -> None:
        """Set what a dotted key names, as in train.steps or model.widths.0; of a group only what the value has.

        Raises:
            ConfigError: If there is no such setting.
        """
        if key.startswith(tuple(self._open)):
            self.add(key, value, anew=True)
            return
        inside, name = self._place(key)
        if isinstance(inside, list):
            inside[int(name)] = value
        elif isinstance(value, Mapping) and isinstance(inside[name], Mapping) and f"{key}." not in self._open:
            for inner, item in value.items():
                self.set(f"{key}.{inner}", item)
        else:
            inside[name] = value

    def add(self, key: str, value: Any, anew: bool = False) -> None:
        """Add a setting with the groups around it, as losses have them that are sums of others.

        Args:
            key: Dotted. Whether it is a setting at all, `decode` knows.
            value: Of it.
            anew: Whether it may replace one that is there.

        Raises:
            ConfigError: If it is there already, or lies in something that is no group.
        """
        *path, name = key.split(".")
        inside: Any = self.values
        for step in path:
            inside = inside.setdefault(step, {}) if isinstance(inside, dict) else None
        if not isinstance(inside, dict):
            raise ConfigError(unknown_key(key, self._known(key)))
        if name in inside and not anew:
            raise ConfigError(f"+{key} is there already: give it without the +")
        inside[name] = value

    def delete(self, key: str) -> None:
        """Take a setting, or a group of them, out.

        Raises:
            ConfigError: If there is none.
        """
        inside, name = self._place(key)
        if isinstance(inside, list):
            raise ConfigError(f"~{key} is one value of a list: give the whole list instead")
        del inside[name]

    def _place(self, key: str) -> tuple[Any, str]:
        """The mapping or list that a key is in, and its name there."""
        *path, name = key.split(".")
        inside: Any = self.values
        for step in path:
            inside = inside[_index(inside, step)] if _has(inside, step) else None
        if not _has(inside, name):
            raise ConfigError(unknown_key(key, self._known(key)))
        return inside, name

    def _known(self, key: str) -> Iterator[str]:
        yield from leaves(self.values)
        if "." not in key:
            yield from self._groups


def _has(inside: Any, name: str) -> bool:
    if isinstance(inside, list):
        return name.isascii() and name.isdigit() and int(name) < len(inside)
    return isinstance(inside, Mapping) and name in inside


def _index(inside: Any, name: str) -> Any:
    return int(name) if isinstance(inside, list) else name
