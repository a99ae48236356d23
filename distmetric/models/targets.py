"""Whose code `model.target` may name."""

from __future__ import annotations

from distmetric.errors import ConfigError

_PACKAGE = "distmetric"


def in_package(path: str) -> bool:
    """Whether a dotted path leads into this package."""
    return path.partition(".")[0] == _PACKAGE


def check_target(target: str, allow_custom_targets: bool) -> None:
    """Refuse code of others unless it was allowed; nothing is imported for that.

    Args:
        target: Dotted path of the trunk.
        allow_custom_targets: What the one who started this process has said; never what a checkpoint or a run says.

    Raises:
        ConfigError: If the target lies outside this package.
    """
    if not (allow_custom_targets or in_package(target)):
        raise ConfigError(
            f"model.target={target} is code outside this package, which would be imported and run: "
            "set allow_custom_targets=true if you trust it"
        )
