"""A trunk compiled for training, and whether this machine can compile at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distmetric.errors import ResourceError

BACKEND = "inductor"
"""What `torch.compile` compiles with."""


def compiled(trunk: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The trunk as `torch.compile` makes it: the same parameters, computed by fused kernels.

    The module itself stays as it is, so that names in checkpoints do, and whatever calls it is not compiled. Every
    shape of batch is compiled for itself, at its first batch: a kernel for all shapes would round differently, and
    which of the two is there would depend on where a run was interrupted. Random numbers are those of torch.

    Args:
        trunk: What is called with images.
        device: Where it computes.

    Returns:
        What takes and gives what the trunk does; from the same parameters, which it looks up at every call.

    Raises:
        ResourceError: If nothing can be compiled on this machine: on a CPU that takes a C++ compiler (g++), on a GPU
            Triton and a C compiler.

    Cost: half a minute or so at the first batches, less where torch finds what it compiled before; some seconds now.
    """
    settings: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    if BACKEND == "inductor":
        settings["options"] = {"fallback_random": True}
    _try_out(settings, device)

    def forward(images: Tensor) -> Tensor:
        features: Tensor = trunk(images)
        return features

    result: Callable[[Tensor], Tensor] = torch.compile(forward, **settings)
    return result


def _try_out(settings: dict[str, Any], device: torch.device) -> None:
    """Compile an addition: what is missing differs between devices and systems, and shows at the first use."""
    try:
        torch.compile(lambda x: x + 1, **settings)(torch.zeros(2, device=device))
    except Exception as error:  # a compiler's own, a missing package, a folder that cannot be written
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ResourceError(
            "train.compile=true, but torch.compile does not work on this machine "
            f"({lines[0][:200] if lines else type(error).__name__}): install what it needs (g++ for a CPU, gcc and "
            "triton for a GPU), or set train.compile=false"
        ) from None
