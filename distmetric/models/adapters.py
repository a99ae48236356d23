"""What models of other libraries need to serve as a trunk: their preprocessing, and one output convention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from distmetric.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Token = Literal["cls", "mean"]


@dataclass(frozen=True)
class Preprocessing:
    """How a pretrained model wants its images.

    Args:
        mean: Mean per channel of images in [0, 1].
        std: Standard deviation per channel.
        side: Side of the square images it was trained on in pixels; None where it does not say.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    side: int | None = None


def fit_images(images: Tensor, channels: int, side: int | None) -> Tensor:
    """Repeat a gray channel and resize to a square.

    Args:
        images: (B, C, H, W), floating point.
        channels: Channels the model takes.
        side: Side in pixels; None or 0 keeps the size. Images that are not square are squeezed.

    Returns:
        (B, channels, side, side).
    """
    if images.shape[1] == 1 and channels > 1:
        images = images.expand(-1, channels, -1, -1)
    if side and images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return images


def pool_tokens(tokens: Tensor, prefix: int, token: Token) -> Tensor:
    """One vector per image from the tokens of a vision transformer.

    Args:
        tokens: (B, T, F).
        prefix: How many of the first tokens are no patches: class token, then registers.
        token: "cls" for the class token, "mean" for the mean of the patches.

    Returns:
        (B, F).

    Raises:
        ConfigError: There is no class token.
    """
    if token == "mean":
        return tokens[:, prefix:].mean(dim=1)
    if prefix == 0:
        raise ConfigError("model.token=cls, but this model has no class token: set model.token=mean")
    return tokens[:, 0]


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of an exception of another library on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit].rstrip() + "..."
