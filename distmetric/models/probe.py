"""What a trunk tells about itself when it is shown one blank image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distmetric.errors import ConfigError
from distmetric.models.adapters import one_line


@torch.no_grad()
def dry_run(trunk: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """The features of one blank image.

    Args:
        trunk: Module (1, C, H, W) -> features; its mode and running statistics stay as they are.
        image_shape: (C, H, W).

    Returns:
        Features (1, F, h, w) or (1, F).

    Raises:
        ConfigError: The trunk does not take such an image, or gives something else.
    """
    with _evaluating(trunk):
        try:
            features = trunk(_blank(trunk, image_shape))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the trunk {type(trunk).__name__} fails on an image of shape {image_shape}: "
                f"{one_line(error)}"
            ) from error
    if not isinstance(features, Tensor) or features.dim() not in (2, 4):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"the trunk {type(trunk).__name__} gives {shape}; it must give a tensor "
            "(batch, channels, height, width) or (batch, channels)"
        )
    return features


def freeze_unused(trunk: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Turn off the gradients of parameters that the features do not depend on.

    Pooling layers and mask tokens that only pretraining uses would otherwise make DistributedDataParallel
    wait for gradients that never come.

    Args:
        trunk: Module (1, C, H, W) -> features; its mode and running statistics stay as they are.
        image_shape: (C, H, W).

    Returns:
        The features of the blank image.

    Cost: one image forward and backward.
    """
    learned = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    with _evaluating(trunk), torch.enable_grad():
        features: Tensor = trunk(_blank(trunk, image_shape))
        gradients: Sequence[Tensor | None] = torch.autograd.grad(features.sum(), learned, allow_unused=True)
    for parameter, gradient in zip(learned, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
    return features.detach()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _blank(trunk: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    like = next(trunk.parameters(), torch.empty(0))
    return torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype)
