"""From conf/*.yaml and command-line overrides to a configuration, or to one line that says what is wrong.

The only module that imports Hydra; `config/decode.py` turns what it composes into dataclasses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distmetric.config.decode import decode, leaves, unknown_key
from distmetric.errors import ConfigError

# Beside the package in a checkout, inside it where it was installed from a wheel.
_PLACES = (Path(__file__).resolve().parents[1] / "conf", Path(__file__).resolve().parents[2] / "conf")
CONF_DIR = next((place for place in _PLACES if place.is_dir()), _PLACES[-1])

T = TypeVar("T")


def load(config_name: str, schema: type[T], overrides: Sequence[str]) -> T:
    """Compose conf/<config_name>.yaml with overrides and check it against the dataclass `schema`."""
    return decode(schema, compose(config_name, overrides))


def compose(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose conf/<config_name>.yaml with overrides into plain containers.

    Raises:
        ConfigError: One line naming the key and the fix, for anything that cannot be composed.
    """
    if not CONF_DIR.is_dir():
        raise ConfigError(f"{CONF_DIR} does not exist: install with pip install -e from a checkout")
    parsed = _parse(overrides)
    for override in _choices(config_name, parsed):
        if not isinstance(override.value(), (str, list, dict)):
            choice = str(override.input_line).partition("=")[2]
            raise ConfigError(_no_choice(str(override.key_or_group), choice))
    try:
        return _resolve(_compose(config_name, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(config_name, parsed, error)) from None
    except ValueError as error:  # of Hydra's own code, which then says nothing about the key
        raise ConfigError(f"{' '.join(overrides)} cannot be applied: {_one_line(error)}") from None


# What may differ between the stretches of one run: where and how it is computed, not what.
_RESUMABLE = (
    *("trainer.", "eval.", "checkpoint.", "index.", "train.steps", "train.log_every"),
    *("data.path", "data.cache_dir", "data.memory_limit_gib", "tracking.register", "report", "concurrent"),
)


def resume(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run that is resumed: its own, with single leaves changed.

    Args:
        config: What the run was started with.
        overrides: The command line, `resume=...` included.

    Raises:
        ConfigError: If an override is not key=value, names a key that is not there, or one that makes another run.
    """
    known = leaves(config)
    merged = OmegaConf.create(dict(config))
    for parsed in _parse(overrides):
        key = str(parsed.key_or_group)
        if key == "resume":
            continue
        if key in groups_of("config") or (key in known and not key.startswith(_RESUMABLE)):
            raise ConfigError(
                f"{parsed.input_line} would make it another run: resume without it, or start a new run"
            )
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        OmegaConf.update(merged, key, parsed.value())
    try:
        return _resolve(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None


def value_of(key: str, overrides: Sequence[str]) -> Any:
    """The value that the overrides give a key; None where they do not."""
    given = [parsed.value() for parsed in _parse(overrides) if parsed.key_or_group == key]
    return given[-1] if given else None


def to_override(key: str, value: Any) -> str:
    """The text that sets a key to a value on the command line of a job."""
    return f"{key}={_override_value(value)}"


def read_settings(path: str) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ConfigError: If the file is not there, or something else.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give a YAML file, or the settings"
        ) from None
    except Exception as error:  # of the YAML parser, or of OmegaConf
        raise ConfigError(f"{path} is not a YAML file of settings: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a YAML file of settings: it must have keys and values")
    return {str(key): value for key, value in values.items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """The configuration as YAML text."""
    return str(OmegaConf.to_yaml(OmegaConf.create(dict(values))))


def groups() -> dict[str, list[str]]:
    """The choices of every group of conf/."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF_DIR.iterdir())
        if folder.is_dir()
    }


def groups_of(config_name: str) -> list[str]:
    """The groups that a file of conf/ chooses from."""
    text = (CONF_DIR / f"{config_name}.yaml").read_text(encoding="utf-8")
    return [name for name in groups() if f"- {name}:" in text]


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    with hydra.initialize_config_dir(config_dir=str(CONF_DIR), version_base=None):
        return hydra.compose(config_name, overrides=list(overrides))


def _resolve(config: DictConfig) -> dict[str, Any]:
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{missing[0]} is required: give it as {missing[0]}=...")
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            override = None
        if override is None or not override.key_or_group:
            raise ConfigError(f"{text!r} cannot be read: give settings as key=value, quoting odd values")
        if override.is_sweep_override():
            raise ConfigError(f"{text} names several values: a run takes one")
        parsed.append(override)
    return parsed


def _choices(config_name: str, parsed: Sequence[Override]) -> list[Override]:
    names = groups_of(config_name)
    return [o for o in parsed if o.key_or_group in names and o.package is None and not o.is_delete()]


def _no_choice(group: str, choice: str) -> str:
    return f"{group}={choice} does not exist: choose one of {', '.join(groups()[group])}"


def _explain(config_name: str, parsed: Sequence[Override], error: Exception) -> str:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key, names = match.group(1), groups_of(config_name)
        # Where a whole section was given, only the cause names the key in it that is wrong.
        inner = re.search(rf"full_key: ({re.escape(key)}\.\S+)", str(error.__cause__))
        chosen = [str(override.input_line) for override in _choices(config_name, parsed)]
        known = cast(dict[str, Any], OmegaConf.to_container(_compose(config_name, chosen)))
        return unknown_key(inner.group(1) if inner else key, [*leaves(known), *([] if "." in key else names)])
    if match := re.search(r"(?:Could not find|Could not load|Unable to find) '([^']+)'", text):
        group, _, choice = match.group(1).rpartition("/")
        if group in groups():
            return _no_choice(group, choice)
    return _one_line(error)


def _override_value(value: Any) -> str:
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and isinstance(
            value_of("a", [f"a={value}"]), str
        )
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_override_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_override_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _one_line(error: Exception) -> str:
    while not str(error) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
