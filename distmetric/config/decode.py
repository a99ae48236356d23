"""Plain containers to dataclasses, strictly: every mistake is one line with the key, the value and the fix.

Own code rather than a validation library because the messages are the point: a library's would have to be
translated key by key, which takes more lines than this and breaks with its releases.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from distmetric.errors import ConfigError

T = TypeVar("T")

_SHOWN = 200  # characters


def decode(schema: type[T], values: Mapping[str, Any]) -> T:
    """Build the dataclass `schema` from nested mappings.

    Accepted field types: other dataclasses, unions of dataclasses told apart by their `name: Literal[...]`,
    Literal, bool, int, float (also from an int), str, None, list[...], tuple[X, Y], dict[str, ...], Any, and unions.

    Raises:
        ConfigError: For the first unknown or missing key, wrong type, or value outside its choices; also with the
            message of a ValueError that the dataclass's own `__post_init__` raises.
    """
    return cast(T, _decode(schema, values, ""))


def unknown_key(key: str, known: Iterable[str]) -> str:
    """One line for a key that does not exist, with the nearest one that does."""
    known, key = list(known), key if len(key) <= _SHOWN else f"{key[:_SHOWN]}..."
    section, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if close:
        return f"{key} is not a setting: did you mean {siblings[close[0]]}?"
    elsewhere = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    elsewhere = elsewhere or [name for name in known if name.rpartition(".")[2] == leaf][:1]
    if elsewhere:
        return f"{key} is not a setting: did you mean {elsewhere[0]}?"
    if section and siblings:
        return f"{key} is not a setting: {section} has {', '.join(sorted(siblings))}"
    return f"{key} is not a setting: --cfg prints all there are"


def shown(value: Any) -> str:
    """A value as a message shows it: as in YAML, and of a long one the beginning."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or brackets without end
        text = f"({type(value).__name__})"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All leaves by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(leaves(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _decode(schema: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(schema), get_args(schema)
    if schema is Any:
        return value
    if dataclasses.is_dataclass(schema):
        return _dataclass(cast(type, schema), value, key)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise _wrong(key, value, _expected(schema))
        return value
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        kinds = (
            list(arguments) if origin is tuple and Ellipsis not in arguments else [arguments[0]] * len(value)
        )
        if len(kinds) != len(value):
            raise _wrong(key, value, _expected(schema))
        return origin(_decode(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))  # noqa: B905
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _decode(arguments[1], item, _join(key, name)) for name, item in value.items()}
    return _scalar(schema, value, key)


def _scalar(schema: Any, value: Any, key: str) -> Any:
    if schema in (None, types.NoneType) and value is None:
        return None
    if schema is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.nan
        if math.isnan(number):
            raise _wrong(key, value, "a number")
        return number
    if schema in (int, str) and isinstance(value, schema) and not isinstance(value, bool):
        return value
    if schema is bool and isinstance(value, bool):
        return value
    raise _wrong(key, value, _expected(schema))


def _union(variants: tuple[Any, ...], value: Any, key: str) -> Any:
    groups = [variant for variant in variants if dataclasses.is_dataclass(variant)]
    if len(groups) == 1 and isinstance(value, Mapping):
        return _decode(groups[0], value, key)  # so that its own messages come through
    if not all(dataclasses.is_dataclass(variant) for variant in variants):
        for variant in variants:
            try:
                return _decode(variant, value, key)
            except ConfigError:
                continue
        raise _wrong(key, value, " or ".join(_expected(variant) for variant in variants))
    if not isinstance(value, Mapping):
        raise _wrong(key, value, "a group of settings")
    by_name = {name: variant for variant in variants for name in get_args(get_type_hints(variant)["name"])}
    if value.get("name") not in list(by_name):  # which may be of any type, also one that cannot be hashed
        raise _wrong(_join(key, "name"), value.get("name"), f"one of {', '.join(sorted(by_name))}")
    return _decode(by_name[value["name"]], value, key)


def _dataclass(schema: type, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(key or "the configuration", value, "a group of settings")
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    for name in value:
        if name not in fields:
            raise ConfigError(unknown_key(_join(key, name), (_join(key, known) for known in fields)))
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if name not in value and not optional:
            raise ConfigError(f"{_join(key, name)} is required: give it as {_join(key, name)}=...")
    given = [name for name in fields if name in value]
    decoded = {name: _decode(hints[name], value[name], _join(key, name)) for name in given}
    try:
        return schema(**decoded)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}" if key else str(error)) from None


def _expected(schema: Any) -> str:
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(variant) for variant in arguments)
    if origin is list or (origin is tuple and Ellipsis in arguments):
        return f"a list, each of them {_expected(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} values"
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names.get(schema, "a group of settings")


def _wrong(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{key}={shown(value)} is wrong: it must be {expected}")


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
