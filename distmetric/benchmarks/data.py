"""Embeddings to measure on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clusters(size: int, dim: int, per_class: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around one center per class, in random order.

    Args:
        size: N.
        dim: D.
        per_class: Rows of a class; the last class has what is left.
        spread: Standard deviation, per coordinate, of a row around its center of length one. The radius of a class
            is about spread * sqrt(D).
        seed: Key of the noise and of the order; the centers are always the same.

    Returns:
        (N, D) float32 embeddings and (N,) int64 labels 0..C-1, where C is N / per_class rounded up.
    """
    num_classes = -(-size // per_class)
    centers = F.normalize(torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.arange(num_classes).repeat_interleave(per_class)[:size]
    labels = labels[torch.randperm(size, generator=generator)]
    noise = torch.randn(size, dim, generator=generator)
    return F.normalize(centers[labels] + spread * noise), labels
