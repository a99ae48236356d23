"""A trunk of the user's own, by dotted path."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from distmetric.errors import ConfigError


def build_custom(target: str, kwargs: dict[str, Any]) -> nn.Module:
    """Import a module class (or a function that returns a module) and call it.

    Args:
        target: Dotted path, as in "my_package.trunks.MyTrunk".
        kwargs: Keyword arguments.

    Returns:
        The module it builds.

    Raises:
        ConfigError: The import fails, the arguments do not fit, or the result is not an nn.Module.
    """
    factory = _imported(target)
    if not callable(factory) or (inspect.isclass(factory) and not issubclass(factory, nn.Module)):
        raise ConfigError(f"model.target={target} is not a class derived from torch.nn.Module")
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"model.kwargs do not fit {target}: {error}") from error
    module = factory(**kwargs)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.target={target} gave a {type(module).__name__} instead of a torch.nn.Module"
        )
    return module


def _imported(target: str) -> Any:
    path, _, name = target.rpartition(".")
    if not path:
        raise ConfigError(f"model.target={target!r} is not a dotted path such as my_package.trunks.MyTrunk")
    try:
        return getattr(importlib.import_module(path), name)
    except AttributeError as error:
        raise ConfigError(f"model.target={target}: {path} has no {name}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"model.target={target} cannot be imported: {reason}") from error
