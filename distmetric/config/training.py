"""The configuration of a training run for those who call `fit` themselves."""

from __future__ import annotations

from collections.abc import Sequence

from distmetric.config.compose import load
from distmetric.config.schema import Config


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose conf/config.yaml as `jobs/train.py` does.

    Args:
        overrides: What would stand on its command line, such as "train.steps=100" or "loss=lifted_structure".

    Returns:
        The configuration, for `distmetric.fit`.

    Raises:
        ConfigError: One line naming the key and the fix, for anything that cannot be composed.
    """
    return load("config", Config, overrides)
