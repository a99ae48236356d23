"""Vision models of the transformers library as trunks; the library is imported on first use."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
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

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class TransformersTrunk(nn.Module):
    """Any vision model that `AutoModel` knows, as a trunk.

    Models with a feature map (ResNet, ConvNeXt, ...) give (B, F, h, w); vision transformers give (B, F), the
    class token or the mean of the patches. Of models of images and text (CLIP, SigLIP) the vision part is
    taken.

    Args:
        model: Name on the Hugging Face Hub or path of a local folder.
        pretrained: Whether to load the weights; otherwise they are drawn afresh from the global generator.
        local_files_only: Whether to do without the network.
        token: "cls" or "mean"; only read where the model gives tokens.
        resize_to: Side that images are resized to; None takes the model's own, 0 keeps them as they are.
        image_size: Height and width of the images that will come, for the dry run.

    Attributes:
        num_features: Number of features F.
        preprocessing: Mean, deviation and side that the model's image processor asks for.

    Raises:
        ResourceError: transformers is not installed.
        ConfigError: The model cannot be loaded, or has no features that fit.

    Nothing here needs torchvision, but transformers itself imports it where it is installed. Code that comes
    with a model is never run, and weights are read from safetensors alone. Parameters that take no part in the
    features are frozen.

    Cost: construction runs one image forward and backward.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = True,
        local_files_only: bool = False,
        token: Token = "cls",
        resize_to: int | None = None,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        self.model = _load(model, pretrained, local_files_only)
        self.token = token
        self.channels = int(getattr(self.model.config, "num_channels", 3))
        self.preprocessing = _preprocessing(model, local_files_only, self.model.config, self.channels)
        self.side = self.preprocessing.side if resize_to is None else resize_to
        parameters = inspect.signature(self.model.forward).parameters
        self._interpolates = "interpolate_pos_encoding" in parameters
        try:
            features = freeze_unused(self, (self.channels, *image_size))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"model.model={model} does not work as a trunk: {one_line(error)}") from error
        self.num_features: int = features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Map standardized images (B, C, H, W) to (B, F, h, w) or (B, F)."""
        images = fit_images(images, self.channels, self.side)
        options: dict[str, Any] = {}
        if self._interpolates and images.shape[-2:] != _pair(getattr(self.model.config, "image_size", None)):
            options["interpolate_pos_encoding"] = True
        features: Tensor = self.model(pixel_values=images, **options).last_hidden_state
        if features.dim() != 3:
            return features
        return pool_tokens(features, self._prefix(images, features.shape[1]), self.token)

    def _prefix(self, images: Tensor, tokens: int) -> int:
        """How many tokens are no patches; a model that merges patches has none that stand before them."""
        patch = _pair(getattr(self.model.config, "patch_size", None))
        if patch is None:
            return 1 if self.token == "cls" else 0
        return max(0, tokens - (images.shape[2] // patch[0]) * (images.shape[3] // patch[1]))


def _load(name: str, pretrained: bool, local_files_only: bool) -> nn.Module:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ResourceError(
            "models of transformers need the package: pip install 'distmetric[hf]'"
        ) from error
    options = {"local_files_only": local_files_only, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if pretrained:
            # Of weights in other files than safetensors, some are pickled code.
            model = AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, use_safetensors=True, **options
            )
        else:
            model = AutoModel.from_config(config, trust_remote_code=False)
    except ImportError as error:
        raise ResourceError(
            f"transformers cannot import what {name} needs: {one_line(_root(error))}"
        ) from error
    except Exception as error:
        raise ConfigError(f"model.model={name} cannot be loaded: {one_line(error)}") from error
    vision: nn.Module = getattr(model, "vision_model", model)
    return vision.train()


def _root(error: BaseException) -> BaseException:
    """What went wrong first: transformers wraps a failed import in one that does not say why."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _preprocessing(name: str, local_files_only: bool, config: Any, channels: int) -> Preprocessing:
    """Read from the processor's file: its classes would import torchvision."""
    options = _processor_options(name, local_files_only)
    mean, std = options.get("image_mean"), options.get("image_std")
    side = _side(options.get("crop_size")) or _side(options.get("size"))
    if not options.get("do_normalize", True):
        mean, std = [0.0] * channels, [1.0] * channels
    elif mean is None or std is None or len(mean) != channels:
        imagenet = channels == len(IMAGENET_MEAN)
        mean = IMAGENET_MEAN if imagenet else [0.5] * channels
        std = IMAGENET_STD if imagenet else [0.5] * channels
    if side is None:
        declared = _pair(getattr(config, "image_size", None))
        side = declared[0] if declared else None
    return Preprocessing(tuple(mean), tuple(std), side)


def _processor_options(name: str, local_files_only: bool) -> dict[str, Any]:
    from transformers.utils import cached_file

    for file in _PROCESSOR_FILES:
        path = cached_file(
            name,
            file,
            local_files_only=local_files_only,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            options: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
            nested = options.get("image_processor")
            return nested if isinstance(nested, dict) else options
    return {}


def _side(size: Any) -> int | None:
    """The side that a processor's `size` or `crop_size` means: a number or a mapping."""
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return size if isinstance(size, int) else None


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if size is not None else None
