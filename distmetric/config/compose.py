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
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distmetric.config.decode import decode, leaves, unknown_key
from distmetric.errors import ConfigError

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"

T = TypeVar("T")


def load(config_name: str, schema: type[T], overrides: Sequence[str]) -> T:
    """Compose conf/<config_name>.yaml with overrides and check it against the dataclass `schema`."""
    return decode(schema, compose(config_name, overrides))


def compose(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose conf/<config_name>.yaml with overrides into plain containers.

    Raises:
        ConfigError: One line naming the key and the fix, for anything that cannot be composed.
    """
    for parsed in _parse(overrides):
        if parsed.is_sweep_override():
            raise ConfigError(f"{parsed.input_line} names several values: a run takes one")
    try:
        return _resolve(_compose(config_name, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(config_name, error)) from None


# What may differ between the stretches of one run: where and how it is computed, not what.
_RESUMABLE = ("trainer.", "eval.", "checkpoint.", "train.steps", "train.log_every", "data.path", "data.cache_dir")
_RESUMABLE += ("data.memory_limit_gib", "report")


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
        if key in groups() or (key in known and not key.startswith(_RESUMABLE)):
            raise ConfigError(
                f"{parsed.input_line} would make it another run: resume without it, or start a new run"
            )
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        OmegaConf.update(merged, key, parsed.value())
    return _resolve(merged)


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
            parsed += OverridesParser.create().parse_overrides([text])
        except HydraException:
            raise ConfigError(f"{text!r} cannot be read: give settings as key=value, quoting odd values") from None
    return parsed


def _explain(config_name: str, error: Exception) -> str:
    while not str(error) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        known = OmegaConf.to_container(_compose(config_name, []))
        return unknown_key(match.group(1).split("@")[0], [*leaves(cast(dict[str, Any], known)), *groups()])
    if match := re.search(r"(?:Could not find|Could not load|Unable to find) '([^']+)'", text):
        group, _, choice = match.group(1).rpartition("/")
        if group in groups():
            return f"{group}={choice} does not exist: choose one of {', '.join(groups()[group])}"
    return " ".join(line.strip() for line in text.strip().splitlines()[:2])
