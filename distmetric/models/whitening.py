"""A map of embeddings after which images of one class differ equally much along every direction."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from distmetric.functional.segments import segment_sum

SHRINKAGE: Final = 0.1
"""How much of the covariance is replaced by its mean variance along every direction."""


@torch.no_grad()
def within_class_whitening(embeddings: Tensor, labels: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """The inverse square root of the covariance within classes: directions in which classes scatter count less.

    W = ((1 - s) C / m + s I) ** -1/2,  C = sum_i (e_i - mu_i) (e_i - mu_i)^T / (N - K),  m = trace(C) / D

    Args:
        embeddings: (N, D) floating point.
        labels: (N,) int64; mu_i is the mean of all that have the label of i, K how many labels there are.
        shrinkage: s, from 0 to 1; 1 gives the identity.

    Returns:
        (D, D) symmetric, float64, on the CPU. Where no class has two images that differ, the identity.

    Cost: N D^2 multiplications in float64 and an eigendecomposition, D^3.

    Corner cases: with s = 0 directions in which nothing differs would be stretched without a limit; they get the least
    variance that float64 tells from 0.

    Source: Hatch et al. 2006, Within-class covariance normalization for SVM-based speaker recognition (Interspeech); of
    covariances shrunk towards a multiple of the identity: Ledoit and Wolf 2004.
    """
    dim = embeddings.shape[1]
    classes, places, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    exact = embeddings.double()
    means = segment_sum(exact, places, len(classes)) / counts[:, None]
    off = exact - means[places]
    covariance = (off.T @ off / max(1, len(off) - len(classes))).cpu()
    mean, eye = covariance.trace() / dim, torch.eye(dim, dtype=torch.float64)
    # Equal images leave rounding, not exactly 0.
    if mean <= torch.finfo(embeddings.dtype).eps ** 2:
        return eye
    values, axes = torch.linalg.eigh((1 - shrinkage) * covariance / mean + shrinkage * eye)
    values = values.clamp_min(torch.finfo(torch.float64).eps * dim)
    inverse_root: Tensor = (axes / values.sqrt()) @ axes.T
    return inverse_root
