"""A trained embedder, back from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.errors import InputError
from distmetric.evaluation.calibration import Calibration
from distmetric.models.build import build_embedder
from distmetric.models.embedder import Embedder
from distmetric.training.checkpoint import Checkpoint


def config_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain containers, which `decode(Config, ...)` turns back."""
    return asdict(config)


def load_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        InputError: If the checkpoint is of another architecture.
    """
    try:
        model.load_state_dict(checkpoint.tensors("model"))
    except RuntimeError as error:
        detail = " ".join(str(error).splitlines()[1].split()) if "\n" in str(error) else str(error)
        raise InputError(
            f"{checkpoint.location} holds another architecture than this configuration's model: {detail}"
        ) from None


def calibration_of(checkpoint: Checkpoint) -> Calibration | None:
    """The distance threshold for "same class" that was found with these weights; None in older checkpoints."""
    found = checkpoint.meta.get("calibration")
    return None if found is None else Calibration.from_dict(found)


def load_embedder(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> tuple[Embedder, Config]:
    """Build the checkpoint's embedder with its weights, in evaluation mode, and the configuration it came from."""
    config = decode(Config, checkpoint.meta["config"])
    values = checkpoint.meta.get("attribute_values", {})  # older checkpoints have none
    embedder = build_embedder(config.model, seed=config.seed, attribute_values=values)
    load_model(embedder, checkpoint)
    return embedder.eval().to(device), config
