"""A small residual network of our own, for images between glyphs and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from distmetric.errors import ConfigError
from distmetric.models.norm import Norm, kaiming_init_, norm_layer


class SmallResNet(nn.Module):
    """Residual network with a 3x3 stem and basic blocks, without the ImageNet stem's early pooling.

    Every residual branch starts at zero (its last scale is 0), so a fresh network of any depth is a shallow
    one.

    Args:
        in_channels: Channels of the images.
        widths: Channels of each stage; every stage after the first halves the image.
        blocks_per_stage: Residual blocks of each stage, at least 1.
        norm: "batch", or "group" for features that do not depend on the rest of the batch.
        stem_stride: Stride of the first convolution.

    Attributes:
        num_features: Channels F of the feature map.
        min_size: Smallest image side it takes.

    Input (B, C, H, W), output (B, F, h, w) with h = H / (stem_stride * 2 ** (stages - 1)), rounded up.

    Cost: 18 * w^2 multiplications per pixel and block; a stage twice as wide on a quarter of the pixels costs
    the same as the one before.

    Source: He et al. 2016 (arXiv 1512.03385); zero-initialized branches from Goyal et al. 2017
    (arXiv 1706.02677).
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256),
        blocks_per_stage: Sequence[int] = (2, 2, 2),
        norm: Norm = "batch",
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(blocks_per_stage) or min(blocks_per_stage) < 1:
            raise ConfigError(
                f"model.widths={list(widths)} and model.blocks_per_stage={list(blocks_per_stage)} must be "
                "equally long lists of positive numbers"
            )
        self.stem = _ConvNorm(in_channels, widths[0], norm, stride=stem_stride)
        blocks, inputs = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks_per_stage, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_BasicBlock(inputs, width, norm, stride))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.num_features = widths[-1]
        self.min_size = 1
        kaiming_init_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, F, h, w)."""
        features: Tensor = self.blocks(F.relu(self.stem(images)))
        return features


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: Norm, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = norm_layer(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        normalized: Tensor = self.norm(self.conv(x))
        return normalized


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: Norm, stride: int) -> None:
        super().__init__()
        self.first = _ConvNorm(inputs, outputs, norm, stride=stride)
        self.second = _ConvNorm(outputs, outputs, norm)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _ConvNorm(inputs, outputs, norm, kernel=1, stride=stride)
        nn.init.zeros_(self.second.norm.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))
