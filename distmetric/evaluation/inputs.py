"""What the evaluation accepts: embeddings and labels as NumPy arrays or tensors, checked before any work."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError

Array = Tensor | NDArray[np.generic]


def as_tensor(value: Array) -> Tensor:
    """Give an array or tensor as a tensor without gradient, sharing its memory where torch allows."""
    if isinstance(value, Tensor):
        return value.detach()
    # torch warns about arrays it may not write to; asking for a writable one copies only those.
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def as_embeddings(value: Array, name: str = "embeddings") -> Tensor:
    """Check embeddings and give them as a floating-point tensor of at least single precision.

    Args:
        value: (N, D) real numbers; float16 and bfloat16 become float32, float64 stays.
        name: what the error message calls them.

    Returns:
        (N, D) float32 or float64 tensor on the device it came from, without gradient.

    Raises:
        InputError: when the array is not (N, D) with D >= 1, or holds a value that is not finite.

    Cost: one pass, N * D bytes for the check.
    """
    rows = as_tensor(value)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"{name} must have shape (N, D) with D >= 1, got {tuple(rows.shape)}")
    if rows.is_complex():
        raise InputError(f"{name} must be real numbers, got {rows.dtype}")
    if rows.dtype != torch.float64:
        rows = rows.to(torch.float32)
    finite = rows.isfinite().all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise InputError(f"{name} row {first} is not finite; check the model and the images of that row")
    return rows.contiguous()


def as_labels(value: Array, embeddings: Tensor, name: str = "labels") -> Tensor:
    """Check labels and give them as int64 on the device of their embeddings.

    Args:
        value: (N,) integers, one for each row of `embeddings`.
        embeddings: (N, D).
        name: what the error message calls them.

    Returns:
        (N,) int64 tensor.

    Raises:
        InputError: when the labels are not whole numbers or not one for each row.
    """
    labels = as_tensor(value)
    if labels.ndim != 1 or len(labels) != len(embeddings):
        raise InputError(
            f"{name} must have shape ({len(embeddings)},), one for each embedding, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"{name} must be integers, got {labels.dtype}")
    return labels.to(device=embeddings.device, dtype=torch.int64)
