"""A trained embedder, back from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from distmetric.config.decode import decode, leaves
from distmetric.config.schema import Config
from distmetric.errors import ConfigError, InputError
from distmetric.evaluation.calibration import Calibration
from distmetric.models.build import build_embedder
from distmetric.models.embedder import Embedder
from distmetric.secrets import is_masked
from distmetric.training.checkpoint import Checkpoint


def config_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain containers, which `decode(Config, ...)` turns back."""
    return asdict(config)


def config_of(checkpoint: Checkpoint) -> Config:
    """The configuration that a checkpoint was written with.

    Raises:
        InputError: If this version does not know its settings.
    """
    try:
        return decode(Config, checkpoint.meta["config"])
    except (ConfigError, LookupError, TypeError) as error:
        raise InputError(
            f"{checkpoint.location} was written with settings that this version does not have ({error}): "
            f"use distmetric {checkpoint.meta.get('version')}, which wrote it"
        ) from None


def load_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        InputError: If the checkpoint is of another architecture.
    """
    try:
        model.load_state_dict(checkpoint.tensors("model"))
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = " ".join(str(error).splitlines()[1].split()) if "\n" in str(error) else str(error)
        raise InputError(
            f"{checkpoint.location} holds another architecture than this configuration's model: {detail}"
        ) from None


def calibration_of(checkpoint: Checkpoint) -> Calibration | None:
    """The distance threshold for "same class" that was found with these weights; None in older checkpoints."""
    found = checkpoint.meta.get("calibration")
    try:
        return None if found is None else Calibration.from_dict(found)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{checkpoint.location} has a threshold that this version does not understand: "
            f"use distmetric {checkpoint.meta.get('version')}, which wrote it"
        ) from None


def load_embedder(
    checkpoint: Checkpoint, device: torch.device | str = "cpu", *, allow_custom_targets: bool = False
) -> tuple[Embedder, Config]:
    """Build the checkpoint's embedder with its weights, in evaluation mode, and the configuration it came from.

    Args:
        checkpoint: Of the embedder. It is data: what it says of `allow_custom_targets` does not count.
        device: Where it is to compute.
        allow_custom_targets: Whether its trunk may be code outside this package, which is imported and run.

    Raises:
        ConfigError: If the trunk is such code and that is not allowed, or cannot be built here.
        InputError: If the weights are of another architecture, or a setting of the model was secret and so not stored.
    """
    config = config_of(checkpoint)
    for key, value in leaves(checkpoint.meta["config"]["model"], "model.").items():
        if is_masked(value):
            raise InputError(
                f"{checkpoint.location}: {key} was not stored because it is secret: have the model read it from the "
                "environment, and train it again"
            )
    values = checkpoint.meta.get("attribute_values", {})  # older checkpoints have none
    embedder = build_embedder(
        config.model, seed=config.seed, attribute_values=values, allow_custom_targets=allow_custom_targets
    )
    load_model(embedder, checkpoint)
    return embedder.eval().to(device), config
