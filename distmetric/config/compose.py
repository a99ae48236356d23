"""From conf/*.yaml and command-line overrides to a configuration, or to one line that says what is wrong.

The only module that imports Hydra; `config/decode.py` turns what it composes into dataclasses. Hydra chooses files of
conf/ and reads overrides. What a user writes stands for itself: nothing in it is looked up, imported or called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distmetric.config.decode import decode, leaves, shown, unknown_key
from distmetric.config.settings import Settings
from distmetric.errors import ConfigError
from distmetric.secrets import is_masked

# Beside the package in a checkout, inside it where it was installed from a wheel.
_PLACES = (Path(__file__).resolve().parents[1] / "conf", Path(__file__).resolve().parents[2] / "conf")
CONF_DIR = next((place for place in _PLACES if place.is_dir()), _PLACES[-1])

# Of an override: characters, and brackets in brackets. Of a file: characters.
_LONGEST, _DEEPEST, _LARGEST = 20_000, 20, 1_000_000

_TRUST = "allow_custom_targets"

T = TypeVar("T")


def load(config_name: str, schema: type[T], overrides: Sequence[str]) -> T:
    """Compose conf/<config_name>.yaml with overrides and check it against the dataclass `schema`."""
    return decode(schema, compose(config_name, overrides))


def compose(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose conf/<config_name>.yaml with overrides into plain containers.

    Raises:
        ConfigError: One line naming the key and the fix, for anything that cannot be composed.

    Cost: 0.1 s where the choice of files is new to this process, else 10 ms.
    """
    if not CONF_DIR.is_dir():
        raise ConfigError(f"{CONF_DIR} does not exist: install with pip install -e from a checkout")
    parsed, names = _parse(overrides), groups_of(config_name)
    choices = [str(each.input_line) for each in parsed if _is_choice(each, names)]
    settings = Settings(_chosen_files(config_name, choices), names)
    for override in parsed:
        if not _is_choice(override, names):
            _change(settings, override)
    return _resolved(settings.values)


# What may differ between the stretches of one run: where and how it is computed, not what.
_RESUMABLE = (
    *("trainer.", "eval.", "checkpoint.", "index.", "train.steps", "train.log_every"),
    *("train.non_finite", "train.max_skipped"),
    *("data.path", "data.cache_dir", "data.memory_limit_gib", "tracking.register", "report", "concurrent"),
    _TRUST,
)


def resume(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run that is resumed: its own, with single leaves changed.

    Args:
        config: What the run was started with, as its folder says. It is data: whether code of others may be imported is
            not taken from it.
        overrides: The command line, `resume=...` included.

    Raises:
        ConfigError: If an override is not key=value, names a key that is not there, or one that makes another run; or
            if a setting that was not stored because it is secret is not given again.
    """
    settings = Settings(deepcopy({**config, _TRUST: False}))
    known = leaves(settings.values)
    for parsed in _parse(overrides):
        key = str(parsed.key_or_group)
        if key == "resume":
            continue
        may_change = key.startswith(_RESUMABLE) or is_masked(known.get(key))
        if key in groups_of("config") or (key in known and not may_change) or not _is_plain(parsed):
            raise ConfigError(
                f"{_text(parsed)} would make it another run: resume without it, or start a new run"
            )
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        settings.set(key, parsed.value())
    for key, value in leaves(settings.values).items():
        if is_masked(value):
            raise ConfigError(f"{key} was not stored because it is secret: give it again as {key}=...")
    return settings.values


def value_of(key: str, overrides: Sequence[str]) -> Any:
    """The value that the overrides give a key; None where they do not."""
    given = [parsed.value() for parsed in _parse(overrides) if parsed.key_or_group == key]
    return given[-1] if given else None


def resumed_folder(overrides: Sequence[str]) -> str | None:
    """The folder that the overrides ask to resume; None where they do not.

    Raises:
        ConfigError: If it is no text.
    """
    value = value_of("resume", overrides)
    if value is not None and not (isinstance(value, str) and value):
        raise ConfigError(f"resume={shown(value)} is wrong: it must be the folder of a run")
    return value


def to_override(key: str, value: Any) -> str:
    """The text that sets a key to a value on the command line of a job."""
    return f"{key}={_override_value(value)}"


def read_settings(path: str) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ConfigError: If the file is not there, or something else.
    """
    no_settings = f"{path} is not a YAML file of settings"
    try:
        with Path(path).expanduser().open(encoding="utf-8") as stream:
            text = stream.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give a YAML file, or the settings"
        ) from None
    except (ValueError, RuntimeError):  # of other bytes than UTF-8, or of a name that cannot be one
        raise ConfigError(f"{no_settings}: it must be a text in UTF-8") from None
    if len(text) > _LARGEST or "${" in text:
        raise ConfigError(f"{no_settings}: it must be shorter than 1 MB and give values, not ${{...}}")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{no_settings}: write out what its aliases (*...) stand for")
        # By OmegaConf, since numbers are then read as on the command line: 1e-3 is one.
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{no_settings}: line {line}: {_one_line(Exception(error.problem))}") from None
    except Exception as error:  # of YAML that is not text, of brackets without end, or of OmegaConf
        raise ConfigError(f"{no_settings}: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{no_settings}: it must have keys and values")
    return {str(key): value for key, value in values.items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """The configuration as YAML text."""
    return str(OmegaConf.to_yaml(OmegaConf.create(dict(values))))


@lru_cache(maxsize=4)
def _groups(conf: Path) -> dict[str, list[str]]:
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(conf.iterdir())
        if folder.is_dir()
    }


def groups() -> dict[str, list[str]]:
    """The choices of every group of conf/."""
    return dict(_groups(CONF_DIR))


def groups_of(config_name: str) -> list[str]:
    """The groups that a file of conf/ chooses from."""
    text = (CONF_DIR / f"{config_name}.yaml").read_text(encoding="utf-8")
    return [name for name in groups() if f"- {name}:" in text]


def _chosen_files(config_name: str, choices: Sequence[str]) -> dict[str, Any]:
    """What conf/ says with a choice of files, its interpolations as they stand there.

    Raises:
        ConfigError: If there is no such file, or no place for it.
    """
    for override in _parse(choices):
        _check_choice(override)
    try:
        return cast(dict[str, Any], json.loads(_composed(CONF_DIR, config_name, tuple(choices))))
    except (HydraException, OmegaConfBaseException) as error:
        if match := re.search(r"Could not override '([^']+)'", str(error)):
            known = leaves(json.loads(_composed(CONF_DIR, config_name, ())))
            raise ConfigError(unknown_key(match.group(1), [*known, *groups_of(config_name)])) from None
        raise ConfigError(_one_line(error)) from None


@lru_cache(maxsize=64)
def _composed(conf: Path, config_name: str, choices: tuple[str, ...]) -> str:
    with hydra.initialize_config_dir(config_dir=str(conf), version_base=None):
        composed = hydra.compose(config_name, overrides=list(choices))
    return json.dumps(OmegaConf.to_container(composed, resolve=False))


def _check_choice(override: Override) -> None:
    group, value = str(override.key_or_group), override.value()
    written = str(override.input_line).partition("=")[2]
    if "hydra" in str(override.package or ""):
        raise ConfigError(f"{_text(override)} is wrong: Hydra itself has no settings here")
    if override.is_delete():
        raise ConfigError(f"~{group} is wrong: choose one of {', '.join(groups()[group])} with {group}=NAME")
    for choice in value if isinstance(value, list) and value else [value]:
        if choice not in groups()[group]:
            raise ConfigError(
                f"{group}={written[:200]} does not exist: choose one of {', '.join(groups()[group])}"
            )


def _change(settings: Settings, override: Override) -> None:
    key = str(override.key_or_group)
    if override.package is not None:
        raise ConfigError(f"{_text(override)} is wrong: only groups of conf/ have a place after @")
    if override.is_delete():
        settings.delete(key)
    elif override.is_add() or override.is_force_add():
        settings.add(key, override.value(), anew=override.is_force_add())
    else:
        settings.set(key, override.value())


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    try:
        config = OmegaConf.create(values)
        missing = sorted(OmegaConf.missing_keys(config))
        found = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(_one_line(error)) from None
    if missing:
        raise ConfigError(f"{missing[0]} is required: give it as {missing[0]}=...")
    return cast(dict[str, Any], found)


def _parse(overrides: Sequence[str]) -> list[Override]:
    return [_parsed(text) for text in overrides]


def _parsed(text: str) -> Override:
    """Read an override; whatever comes back has a key, and a value that can be asked for."""
    if "${" in text:
        raise ConfigError(f"{shown(text)} has ${{...}}, which is not looked up: give the value itself")
    override = None
    with suppress(HydraException, OmegaConfBaseException, ValueError):
        if len(text) <= _LONGEST and _depth(text) <= _DEEPEST:
            override = OverridesParser.create().parse_override(text)
    if override is None or not override.key_or_group:
        raise ConfigError(f"{shown(text)} cannot be read: give settings as key=value, quoting odd values")
    if override.is_sweep_override():
        raise ConfigError(f"{_text(override)} names several values: a run takes one")
    if re.match(r"hydra\b", str(override.key_or_group)):
        raise ConfigError(f"{_text(override)} is wrong: Hydra itself has no settings here")
    return override


def _is_choice(override: Override, names: Sequence[str]) -> bool:
    """Whether it chooses a file of a group, or tries to: settings of a group are given as a mapping."""
    return override.key_or_group in names and not isinstance(override.value(), dict)


def _is_plain(override: Override) -> bool:
    adds = override.is_add() or override.is_force_add()
    return override.package is None and not override.is_delete() and not adds


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "[{(") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _text(override: Override) -> str:
    text = str(override.input_line)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
