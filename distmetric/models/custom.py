"""A trunk of the user's own, by dotted path."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

from distmetric.errors import ConfigError
from distmetric.models.targets import check_target, in_package


def build_custom(target: str, kwargs: dict[str, Any], allow_custom_targets: bool = False) -> nn.Module:
    """Import a module class (or a function that returns a module) and call it.

    Args:
        target: Dotted path, as in "my_package.trunks.MyTrunk".
        kwargs: Keyword arguments.
        allow_custom_targets: Whether code outside this package may be imported, which runs it.

    Returns:
        The module it builds.

    Raises:
        ConfigError: The target is code of others and that is not allowed, the import fails, the arguments do not fit,
            or the result is not an nn.Module.
    """
    check_target(target, allow_custom_targets)
    factory = _imported(target)
    if not (allow_custom_targets or _is_own_trunk(factory)):
        raise ConfigError(
            f"model.target={target} is no trunk of this package: set allow_custom_targets=true if you trust it"
        )
    if not callable(factory) or (inspect.isclass(factory) and not issubclass(factory, nn.Module)):
        raise ConfigError(f"model.target={target} is not a class derived from torch.nn.Module")
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"model.kwargs do not fit {target}: {error}") from error
    try:
        module = factory(**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"model.target={target} cannot be built with these model.kwargs: {reason}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.target={target} gave a {type(module).__name__} instead of a torch.nn.Module"
        )
    return module


def _is_own_trunk(factory: Any) -> bool:
    """Whether it is a trunk of this package: not a function, which might import what its arguments name."""
    return inspect.isclass(factory) and issubclass(factory, nn.Module) and in_package(factory.__module__)


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
