"""Data-parallel wrapping of the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distmetric.distributed.gather import gather
from distmetric.distributed.replica import Replica
from distmetric.losses.class_shards import ShardedParameter

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
    counts as zeros. Of a sharded one every rank has its own rows: their gradient is divided by W, and nothing is sent.
    """
    if replica.world_size == 1:
        return
    kinds: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if isinstance(parameter, ShardedParameter):
            parameter.grad /= replica.world_size
            continue
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


@contextmanager
def averaged_buffers(module: nn.Module, replica: Replica) -> Iterator[torch.Tensor | None]:
    """Average floating-point buffers for a block; after it every rank has its own again, as if nothing had been.

    Yields:
        (W, n) float64, what each rank's own are, for `restore_buffers`; None where there is one rank, or no buffer.
    """
    own = _floating(module)
    if replica.world_size == 1 or own is None:
        yield None
        return
    average_buffers(module, replica)
    try:
        yield gather(own[None], replica, [1] * replica.world_size)
    finally:
        _put(module, own)


def restore_buffers(module: nn.Module, buffers: torch.Tensor, replica: Replica) -> None:
    """Put back this rank's own buffers; where the number of ranks has changed, they stay as they are.

    Args:
        module: The one they are of.
        buffers: (W, n) as `averaged_buffers` gave them.
        replica: Who this rank is.
    """
    if len(buffers) == replica.world_size:
        _put(module, buffers[replica.rank])


@torch.no_grad()
def _floating(module: nn.Module) -> torch.Tensor | None:
    floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    return torch.cat([buffer.double().flatten() for buffer in floating]) if floating else None


@torch.no_grad()
def _put(module: nn.Module, values: torch.Tensor) -> None:
    floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    for buffer, part in zip(
        floating, torch.split(values, [buffer.numel() for buffer in floating]), strict=True
    ):
        buffer.copy_(part.view_as(buffer))
