"""Data-parallel wrapping of the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distmetric.distributed.replica import Replica

# Buffers (running statistics) are averaged when they matter, in `average_buffers`, and not sent at every step; the
# switch for that has been renamed in torch 2.13.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


def parallel(module: nn.Module, replica: Replica, device: torch.device) -> nn.Module:
    """`module` with its gradients averaged over the ranks in backward; as it is where there is one rank only."""
    if replica.world_size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        process_group=replica.group,
        gradient_as_bucket_view=True,
        **_NO_BUFFER_SYNC,
    )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], replica: Replica) -> None:
    """Replace gradients by their mean over the ranks, for parameters that DDP does not look after.

    One all-reduce for all gradients of one type. Every rank must pass the same parameters; one without a gradient
    counts as zeros.
    """
    if replica.world_size == 1:
        return
    kinds: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        kinds.setdefault(parameter.dtype, []).append(parameter.grad)
    for gradients in kinds.values():
        flat = replica.sum_(torch.cat([gradient.flatten() for gradient in gradients])) / replica.world_size
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def average_buffers(module: nn.Module, replica: Replica) -> None:
    """Replace floating-point buffers by their mean over the ranks, so that all ranks hold one and the same model."""
    floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if replica.world_size == 1 or not floating:
        return
    flat = replica.sum_(torch.cat([buffer.double().flatten() for buffer in floating])) / replica.world_size
    means = torch.split(flat, [buffer.numel() for buffer in floating])
    for buffer, mean in zip(floating, means, strict=True):
        buffer.copy_(mean.view_as(buffer))
