"""The normalization layer of the in-house trunks, and their initial weights."""

from __future__ import annotations

from math import gcd
from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]


def norm_layer(kind: Norm, channels: int, groups: int = 8) -> nn.Module:
    """Batch norm, or group norm with at most `groups` groups that divide the channels (Wu and He 2018).

    Args:
        kind: "batch" depends on the other images of the batch, "group" does not.
        channels: Number of channels of the feature map.
        groups: Number of groups wanted; the greatest common divisor with the channels is taken.

    Returns:
        A module (B, C, h, w) -> (B, C, h, w).
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(gcd(groups, channels), channels)


def kaiming_init_(module: nn.Module) -> None:
    """Draw the weights of every convolution for ReLU networks, in place (He et al. 2015, fan-out)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
