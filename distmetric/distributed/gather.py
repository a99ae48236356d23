"""Rows of all ranks on every rank, differentiable: forward all-gather, backward reduce-scatter (a sum)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distmetric.distributed.replica import Replica
from distmetric.functional.joint_batch import JointBatch

# torch 2.13 renamed these; the old names warn there and are the only ones before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, replica: Replica, sizes: Sequence[int]) -> Tensor:
        ctx.replica, ctx.sizes = replica, sizes
        if replica.world_size == 1:
            return rows.view_as(rows)
        # Collectives want equal shapes: shorter ranks are padded, and the padding is dropped on arrival.
        longest = max(sizes)
        gathered = rows.new_empty(longest * len(sizes), *rows.shape[1:])
        _all_gather(gathered, _padded(rows, longest), group=replica.group)
        if min(sizes) == longest:
            return gathered
        return torch.cat([gathered[r * longest : r * longest + size] for r, size in enumerate(sizes)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        replica, sizes = ctx.replica, ctx.sizes
        if replica.world_size == 1:
            return grad, None, None
        longest = max(sizes)
        if min(sizes) != longest:
            grad = torch.cat([_padded(part, longest) for part in torch.split(grad, list(sizes))])
        own = grad.new_empty(longest, *grad.shape[1:])
        _reduce_scatter(own, grad.contiguous(), group=replica.group)
        return own[: sizes[replica.rank]], None, None


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


def gather_sizes(size: int, replica: Replica, device: torch.device) -> list[int]:
    """How many rows each rank has: one small collective, and on a GPU a wait for its result."""
    sizes = torch.zeros(replica.world_size, dtype=torch.int64, device=device)
    sizes[replica.rank] = size
    return list(replica.sum_(sizes).tolist())


def gather(rows: Tensor, replica: Replica, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of all ranks, in rank order and equal on all of them.

    The gradient that reaches rank r's rows is the sum of what all ranks' losses send them, so a mean over ranks
    of parameter gradients (as DDP takes) of per-rank losses W S_r / n is exactly the gradient of (sum S_r) / n.

    Args:
        rows: (B_r, ...) this rank's rows; ranks may have different numbers of them, none included.
        replica: Who this rank is. With a world size of 1 the rows come back as they are.
        sizes: B_r of every rank where they are known (a planned batch); asked of the others otherwise.

    Returns:
        (sum of B_r, ...). Cost: N D values received, and as many sent back in backward.

    Raises:
        ValueError: If `sizes` contradicts the rows.
    """
    if sizes is None:
        sizes = gather_sizes(len(rows), replica, rows.device)
    if len(sizes) != replica.world_size or sizes[replica.rank] != len(rows):
        raise ValueError(f"sizes {list(sizes)} do not fit rank {replica.rank} with {len(rows)} rows")
    result: Tensor = _Gather.apply(rows, replica, tuple(sizes))  # type: ignore[no-untyped-call]
    return result


def gather_batch(
    embeddings: Tensor, labels: Tensor, replica: Replica, sizes: Sequence[int] | None = None
) -> JointBatch:
    """The joint batch of all ranks, seen from this one: own anchors, everybody's columns.

    Args:
        embeddings: (B_r, D) this rank's embeddings.
        labels: (B_r,) their int64 labels.
        replica: Who this rank is.
        sizes: Rows of every rank where known.

    Returns:
        The batch, with columns in rank order.
    """
    if sizes is None:
        sizes = gather_sizes(len(labels), replica, labels.device)
    known = tuple(sizes)
    offset = sum(known[: replica.rank])
    return JointBatch(
        anchors=embeddings,
        labels=labels,
        columns=gather(embeddings, replica, known),
        column_labels=gather(labels, replica, known),
        anchor_index=torch.arange(offset, offset + len(labels), device=labels.device),
        gather_rows=lambda rows: gather(rows, replica, known),
    )
