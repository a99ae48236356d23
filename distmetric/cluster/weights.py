"""A model's weights on their way through Ray's object store: as plain bytes, which it need not pickle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Packed = dict[str, tuple[NDArray[np.uint8], torch.dtype, tuple[int, ...]]]


def pack_weights(weights: Mapping[str, Tensor]) -> Packed:
    """Bytes, dtype and shape of every tensor.

    Args:
        weights: Tensors of the host, of any dtype.
    """
    return {
        name: (_bytes_of(tensor.contiguous()), tensor.dtype, tuple(tensor.shape))
        for name, tensor in weights.items()
    }


def unpack_weights(packed: Packed) -> dict[str, Tensor]:
    """The tensors that `pack_weights` was given; copies, since the object store's memory cannot be written to."""
    weights = {}
    for name, (values, dtype, shape) in packed.items():
        weights[name] = torch.empty(shape, dtype=dtype)
        _bytes_of(weights[name])[:] = values
    return weights


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return found
