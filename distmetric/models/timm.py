"""Models of the timm library as trunks; the library is imported on first use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distmetric.errors import ConfigError, ResourceError
from distmetric.models.adapters import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    Token,
    fit_images,
    one_line,
    pool_tokens,
)
from distmetric.models.probe import freeze_unused

_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class TimmTrunk(nn.Module):
    """Any model that `timm.create_model` knows, as a trunk.

    Models with a feature map give (B, F, h, w); vision transformers give (B, F), the class token or the mean
    of the patches.

    Args:
        model: Name of the model.
        pretrained: Whether to load the weights; otherwise they are drawn afresh from the global generator.
        token: "cls" or "mean"; only read where the model gives tokens.
        resize_to: Side that images are resized to; None takes the model's own, 0 keeps them as they are.
        image_size: Height and width of the images that will come, for the dry run.

    Attributes:
        num_features: Number of features F.
        preprocessing: Mean, deviation and side of the pretrained weights.

    Raises:
        ResourceError: timm cannot be imported; it needs torchvision.
        ConfigError: The model cannot be loaded, or does not take such images.

    Cost: construction runs one image forward and backward, and freezes parameters that take no part.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = True,
        token: Token = "cls",
        resize_to: int | None = None,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        self.model = _load(model, pretrained)
        self.token = token
        self.num_features = int(self.model.num_features)
        self.preprocessing = _preprocessing(getattr(self.model, "pretrained_cfg", None) or {})
        self.channels = len(self.preprocessing.mean)
        self.side = self.preprocessing.side if resize_to is None else resize_to
        try:
            freeze_unused(self, (self.channels, *image_size))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"model.model={model} does not work as a trunk: {one_line(error)}") from error

    def forward(self, images: Tensor) -> Tensor:
        """Map standardized images (B, C, H, W) to (B, F, h, w) or (B, F)."""
        features: Tensor = self.model.forward_features(fit_images(images, self.channels, self.side))
        if features.dim() == 3:
            return pool_tokens(features, int(getattr(self.model, "num_prefix_tokens", 0)), self.token)
        if features.dim() == 4 and features.shape[1] != self.num_features:
            return features.permute(0, 3, 1, 2)
        return features


def _load(name: str, pretrained: bool) -> Any:
    try:
        import timm
    except Exception as error:
        raise ResourceError(
            f"models of timm need timm, which needs torchvision, and one of them cannot be imported "
            f"({one_line(error)}): pip install timm torchvision, or use model.name=transformers"
        ) from error
    try:
        with _tensors_only():
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:
        raise ConfigError(f"model.model={name} cannot be loaded: {one_line(error)}") from error


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Have torch read nothing but tensors from files of weights, also where timm would let it unpickle any code."""
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        os.environ.pop(_TENSORS_ONLY)
        if before is not None:
            os.environ[_TENSORS_ONLY] = before


def _preprocessing(options: dict[str, Any]) -> Preprocessing:
    size = options.get("input_size")
    return Preprocessing(
        tuple(options.get("mean", IMAGENET_MEAN)),
        tuple(options.get("std", IMAGENET_STD)),
        int(size[-1]) if size else None,
    )
