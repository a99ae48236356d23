"""Modules of the user's own, by dotted path: a trunk or a loss, and whose code may be named."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from distmetric.errors import ConfigError

_PACKAGE = "distmetric"


def check_target(key: str, target: str, allow_custom_targets: bool) -> None:
    """Refuse code of others unless it was allowed; nothing is imported for that.

    Args:
        key: Where the target stands, as in "model".
        target: Dotted path of a module class.
        allow_custom_targets: What the one who started this process has said; never what a checkpoint or a run says.

    Raises:
        ConfigError: If the target lies outside this package.
    """
    if not (allow_custom_targets or _in_package(target)):
        raise ConfigError(
            f"{key}.target={target} is code outside this package, which would be imported and run: "
            "set allow_custom_targets=true if you trust it"
        )


def build_target(
    key: str, target: str, kwargs: dict[str, Any], allow_custom_targets: bool = False
) -> nn.Module:
    """Import a module class (or a function that returns a module) and call it.

    Args:
        key: Where the target stands, as in "model".
        target: Dotted path, as in "my_package.trunks.MyTrunk".
        kwargs: Keyword arguments.
        allow_custom_targets: Whether code outside this package may be imported, which runs it.

    Returns:
        The module it builds.

    Raises:
        ConfigError: The target is code of others and that is not allowed, the import fails, the arguments do not fit,
            or the result is not an nn.Module.
    """
    check_target(key, target, allow_custom_targets)
    factory = _imported(key, target)
    if not (allow_custom_targets or _is_own_module(factory)):
        raise ConfigError(
            f"{key}.target={target} is no module of this package: set allow_custom_targets=true if you trust it"
        )
    if not callable(factory) or (inspect.isclass(factory) and not issubclass(factory, nn.Module)):
        raise ConfigError(f"{key}.target={target} is not a class derived from torch.nn.Module")
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}.kwargs do not fit {target}: {error}") from error
    try:
        module = factory(**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{key}.target={target} cannot be built with these {key}.kwargs: {reason}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{key}.target={target} gave a {type(module).__name__} instead of a torch.nn.Module"
        )
    return module


def _in_package(path: str) -> bool:
    return path.partition(".")[0] == _PACKAGE


def _is_own_module(factory: Any) -> bool:
    """Whether it is a module of this package: not a function, which might import what its arguments name."""
    return inspect.isclass(factory) and issubclass(factory, nn.Module) and _in_package(factory.__module__)


def _imported(key: str, target: str) -> Any:
    path, _, name = target.rpartition(".")
    if not path:
        raise ConfigError(f"{key}.target={target!r} is not a dotted path such as my_package.modules.MyModule")
    try:
        return getattr(importlib.import_module(path), name)
    except AttributeError as error:
        raise ConfigError(f"{key}.target={target}: {path} has no {name}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{key}.target={target} cannot be imported: {reason}") from error
