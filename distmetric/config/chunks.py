"""Batches in chunks, and norms that would see chunks instead of batches."""

from __future__ import annotations

from typing import Literal

from distmetric.config.schema import Config
from distmetric.errors import ConfigError
from distmetric.models.spec import ConvSpec, ResNetSpec


def check_chunks(config: Config) -> None:
    """Check `train.chunk_size`, and as far as it is known from the settings alone whether the model goes with it.

    Raises:
        ConfigError: Naming the keys, their values and the fix.
    """
    wanted = config.train.chunk_size
    if isinstance(wanted, int) and wanted < 1:
        raise ConfigError(f"train.chunk_size={wanted} is too small: set it to 1 or more, to auto, or to null")
    if (
        wanted is not None
        and isinstance(config.model, ConvSpec | ResNetSpec)
        and config.model.norm != "group"
    ):
        check_chunked_norm(wanted, config.model.norm)


def check_chunked_norm(chunk_size: int | Literal["auto"], norm: Literal["batch", "sync_batch"]) -> None:
    """Refuse batch norms in a trunk that must not see chunks; those of a set size they may.

    Args:
        chunk_size: `train.chunk_size`, which is not null.
        norm: What the trunk has.

    Raises:
        ConfigError: Naming the keys, their values and the fix.
    """
    given = f"train.chunk_size={chunk_size} with model.norm={norm}"
    fix = "set model.norm=group where the model has it, or train.chunk_size=null"
    if norm == "sync_batch":
        raise ConfigError(
            f"{given}: the trunk's batch norms would need the whole joint batch at every layer, and see chunks: {fix}"
        )
    if chunk_size == "auto":
        raise ConfigError(
            f"{given}: the trunk's batch norms would see as many rows as memory happens to be free for: "
            f"{fix} or a number of rows"
        )
    if chunk_size == 1:
        raise ConfigError(f"{given}: a batch norm needs two rows or more: {fix} or more rows")


def chunked_norm_notice(chunk_size: int, rows: int) -> str:
    """One line for a run whose trunk has batch norms that see chunks of a set size."""
    return (
        f"train.chunk_size={chunk_size}: the trunk's batch norms see chunks of {chunk_size} rows or fewer instead of a "
        f"worker's {rows}, so this trains another model than one without chunks; model.norm=group sees no difference"
    )
