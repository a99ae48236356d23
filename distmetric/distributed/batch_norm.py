"""Batch normalization whose statistics are those of the joint batch of all ranks, on any backend."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError

_PIXELS = (0, 2, 3)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the images of all ranks instead of this rank's share of them.

    y = weight * (x - mean) / sqrt(var + eps) + bias, mean and var per channel over the (B_r, H, W) of all
    ranks.

    The gradients follow the convention of the sharded losses. With the rank loss W * S_r / n_global (n_global
    over all ranks), the mean over the ranks that DDP takes is the gradient of one process on the joint batch.
    Each rank's input gradient is then that of the sum of the rank losses, W times the joint one, and the
    weight and bias gradients are local sums; no factor is left to apply.

    Args:
        num_features: Number of channels C.
        replica: The ranks to normalize over. With one rank this is `nn.BatchNorm2d` exactly.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics; None for the average over all batches.
        affine: Whether weight and bias are learned.
        track_running_stats: Whether running statistics are kept for evaluation.

    Inputs are (B_r, C, H, W); B_r may differ between ranks and may be 0. Half-precision inputs are reduced in
    float32. In evaluation mode nothing is communicated.

    Cost: one all-gather of 2C + 1 numbers forward, one all-reduce of 2C numbers backward; the input is the
    only activation kept.

    Corner cases: all ranks must call forward and backward equally often. Where the joint batch has one value
    per channel the output is the bias, since finding out would stall the device. No second derivatives.
    Running statistics are bit-equal on all ranks because each merges the same gathered moments in the same
    order.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167); moments merged as in Chan, Golub and LeVeque 1979.
    """

    def __init__(
        self,
        num_features: int,
        replica: Replica,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.replica = replica

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B_r, C, H, W), in training mode by the statistics of all ranks; dtype and shape stay."""
        if not self.training or self.replica.world_size == 1:
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _joint_moments(input.detach(), self.replica)
        self._track(mean, var, count)
        operands = (input, self.weight, self.bias, mean, var, count, self.eps, self.replica)
        return cast(Tensor, _Normalize.apply(*operands))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def convert_sync_batchnorm(module: nn.Module, replica: Replica) -> nn.Module:
    """Replace every `nn.BatchNorm2d` inside a module by one that normalizes over all ranks.

    Args:
        module: Any module; changed in place. Parameters and buffers are kept as objects, so optimizers and
            state_dict keys stay valid. A module used in two places is replaced by one module in both.
        replica: The ranks to normalize over.

    Returns:
        The module, or its replacement where it is a batch norm itself.

    Raises:
        ConfigError: There are several ranks and a batch norm of a kind that cannot be synchronized (1-D, 3-D,
            or a subclass that does more), so that training would depend on the number of ranks.
    """
    return _convert(module, replica, prefix="", done={})


def _convert(module: nn.Module, replica: Replica, prefix: str, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    done[id(module)] = module
    if type(module) is nn.BatchNorm2d:
        done[id(module)] = _synchronized(module, replica)
    elif isinstance(module, SyncBatchNorm2d):
        module.replica = replica
    elif replica.world_size > 1 and _stays_local(module):
        raise ConfigError(
            f"model.norm=sync_batch: {type(module).__name__} at '{prefix or '(root)'}' cannot be "
            "synchronized over the ranks; use a trunk with nn.BatchNorm2d, or group norm"
        )
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = _convert(child, replica, f"{prefix}.{name}" if prefix else name, done)
    return done[id(module)]


def _stays_local(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)


def _synchronized(norm: nn.BatchNorm2d, replica: Replica) -> SyncBatchNorm2d:
    new = SyncBatchNorm2d(
        norm.num_features, replica, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    new._parameters.update(norm._parameters)
    new._buffers.update(norm._buffers)
    return new.train(norm.training)


@torch.no_grad()
def _joint_moments(x: Tensor, replica: Replica) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values per channel () over all ranks."""
    wide = x.to(_wide(x.dtype))
    count = x.numel() // x.shape[1]
    own = wide.new_zeros(2 * x.shape[1] + 1)
    if count:
        var, mean = torch.var_mean(wide, dim=_PIXELS, correction=0)
        own = torch.cat([mean, var, wide.new_full((1,), count)])
    every = _gather_rows(own, replica).double()
    means, variances, counts = every[:, : x.shape[1]], every[:, x.shape[1] : -1], every[:, -1:]
    total = counts.sum().clamp(min=1)
    # E[x^2] - E[x]^2 would cancel: what is added up here are the deviations within and between the ranks.
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean.to(wide.dtype), var.to(wide.dtype), total.to(wide.dtype)


def _gather_rows(row: Tensor, replica: Replica) -> Tensor:
    """The rows (R,) of all ranks as (W, R), in rank order."""
    every = row.new_empty(replica.world_size * row.numel())
    # torch 2.13 renamed the collective and warns at the old name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, row.contiguous(), group=replica.group)
    return every.view(replica.world_size, -1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Normalize(torch.autograd.Function):
    """Normalization by given joint moments; its backward knows that they depend on all ranks' inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        replica: Replica,
    ) -> Tensor:
        """Normalize x (B, C, H, W) by mean and var (C,)."""
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.replica = replica
        scale = None if weight is None else weight.to(mean.dtype)
        shift = None if bias is None else bias.to(mean.dtype)
        return F.batch_norm(x, mean, var, scale, shift, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Input gradient of the sum of all rank losses; weight and bias gradients of this rank's share."""
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        grad_y = grad.to(mean.dtype)
        hat = (x.to(mean.dtype) - _channels(mean)) * _channels(inverse_std)
        sums = torch.stack([grad_y.sum(_PIXELS), (grad_y * hat).sum(_PIXELS)])
        grad_bias, grad_weight = (None, None) if weight is None else (sums[0].to(weight), sums[1].to(weight))
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None, None, None
        means = ctx.replica.sum_(sums.clone()) / count
        scale = inverse_std if weight is None else inverse_std * weight
        grad_x = (grad_y - _channels(means[0]) - hat * _channels(means[1])) * _channels(scale)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None, None


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
