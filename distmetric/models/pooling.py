"""From a feature map (B, F, h, w) to a vector (B, F)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distmetric.models.spec import Pooling


class GeMPool(nn.Module):
    """Generalized mean over the pixels with a learned exponent: between average and maximum.

    y_f = (mean over pixels of max(x_f, eps) ** p) ** (1 / p)

    Args:
        p: Initial exponent; 1 is the average of positive features, large values approach the maximum.
        eps: Features below it, negative ones included, count as it.

    Input (B, F, h, w), output (B, F). Half-precision input is pooled in float32; the dtype stays.

    Cost: one logarithm and one exponential per feature. Powers are taken in the log domain, so that no
    exponent overflows.

    Source: Radenovic, Tolias and Chum 2018 (arXiv 1711.02512).
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Pool features (B, F, h, w) to (B, F)."""
        with torch.autocast(features.device.type, enabled=False):
            wide = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
            exponent = self.p.to(wide.dtype)
            logs = wide.flatten(2).clamp(min=self.eps).log()
            pooled = torch.logsumexp(logs * exponent, dim=2) - math.log(logs.shape[2])
            return (pooled / exponent).exp().to(features.dtype)


class _Average(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class _Maximum(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.amax((2, 3))


def pooling_layer(pooling: Pooling) -> nn.Module:
    """The module for a pooling by name: "avg", "max", "gem" or "flatten" (which keeps all pixels)."""
    layers: dict[Pooling, type[nn.Module]] = {
        "avg": _Average,
        "max": _Maximum,
        "gem": GeMPool,
        "flatten": nn.Flatten,
    }
    return layers[pooling]()
