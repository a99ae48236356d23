"""The six points on which METHODS' values of the losses were computed by hand."""

from __future__ import annotations

import torch

_P6 = [(0.0, 0.0), (1.0, 0.0), (0.0, 2.0), (3.0, 0.0), (3.0, 1.0), (1.0, 2.0)]


def p6() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (6, 2) in float64 and labels 0, 0, 0, 1, 1, 1."""
    return torch.tensor(_P6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 0, 1, 1, 1])
