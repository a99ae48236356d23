"""A plain stack of convolutions: the usual trunk for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distmetric.errors import ConfigError
from distmetric.models.norm import Norm, kaiming_init_, norm_layer


class ConvTrunk(nn.Module):
    """Blocks of convolution 3x3, normalization, ReLU and max pooling 2x2 (the "conv-4" of few-shot learning).

    Args:
        in_channels: Channels of the images.
        widths: Channels of each block.
        norm: "batch", or "group" for features that do not depend on the rest of the batch.
        pool_last: Whether the last block pools too; without it the feature map keeps twice the side.

    Attributes:
        num_features: Channels F of the feature map.
        min_size: Smallest image side that leaves a pixel after all pooling.

    Input (B, C, H, W), output (B, F, h, w) with h = H // 2 ** pools.

    Cost: 9 * w_in * w_out multiplications per pixel and block, each block on a quarter of the pixels.

    Source: Vinyals et al. 2016, Matching Networks (arXiv 1606.04080).
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 64, 64, 64),
        norm: Norm = "batch",
        pool_last: bool = True,
    ) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("model.widths is empty: give the channels of at least one block")
        pools = [True] * (len(widths) - 1) + [pool_last]
        inputs = [in_channels, *widths]
        self.blocks = nn.Sequential(
            *(_block(inputs[i], width, norm, pools[i]) for i, width in enumerate(widths))
        )
        self.num_features = widths[-1]
        self.min_size = 2 ** sum(pools)
        kaiming_init_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, F, h, w)."""
        features: Tensor = self.blocks(images)
        return features


def _block(inputs: int, outputs: int, norm: Norm, pool: bool) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        norm_layer(norm, outputs),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)
