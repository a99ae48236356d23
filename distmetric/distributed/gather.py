"""Rows of all ranks on every rank, differentiable: forward all-gather, backward reduce-scatter (a sum)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from distmetric.distributed.replica import Replica
from distmetric.functional.joint_batch import HostLabels, JointBatch

# torch 2.13 renamed these; the old names warn there and are the only ones before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, replica: Replica, sizes: Sequence[int]) -> Tensor:
        ctx.replica, ctx.sizes = replica, sizes
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
        longest = max(sizes)
        if min(sizes) != longest:
            grad = torch.cat([_padded(part, longest) for part in torch.split(grad, list(sizes))])
        own = grad.new_empty(longest, *grad.shape[1:])
        _reduce_scatter(own, grad.contiguous(), group=replica.group)
        return own[: sizes[replica.rank]], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, replica: Replica) -> Tensor:
        ctx.replica = replica
        return replica.sum_(values.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.replica.sum_(grad.clone()), None


def sum_ranks(values: Tensor, replica: Replica) -> Tensor:
    """The sum of the ranks' tensors of one shape, on all of them.

    The gradient that reaches a rank's values is the sum of what all ranks' losses send the sum, as with `gather`.
    """
    if replica.world_size == 1:
        return values
    result: Tensor = _Sum.apply(values, replica)  # type: ignore[no-untyped-call]
    return result


def max_ranks(values: Tensor, replica: Replica) -> Tensor:
    """The greatest of the ranks' tensors of one shape, element by element and without gradient, on all of them."""
    values = values.detach()
    if replica.world_size == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX, group=replica.group)
    return values


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
    if replica.world_size == 1:
        return rows
    result: Tensor = _Gather.apply(rows, replica, tuple(sizes))  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class JointRows:
    """What is known of the N rows of a joint batch beside their embeddings, in rank order and equal on all ranks.

    Args:
        sizes: Rows of every rank.
        labels: (N,) int64.
        ids: (N,) int64 catalog ids where known.
        attributes: Name of an attribute -> (N,) int64 true values.
        host_labels: `labels` on the host where they are known there.
    """

    sizes: Sequence[int]
    labels: Tensor
    ids: Tensor | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    host_labels: NDArray[np.int64] | None = None

    def slice_of(self, rank: int) -> slice:
        """Which rows are those of a rank."""
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])

    def moved(self, move: Callable[[Tensor], Tensor]) -> JointRows:
        """The same rows with all tensors passed through `move`."""
        return replace(
            self,
            labels=move(self.labels),
            ids=None if self.ids is None else move(self.ids),
            attributes={name: move(values) for name, values in self.attributes.items()},
        )


def joint_batch(
    embeddings: Tensor, rows: JointRows, replica: Replica, logits: Mapping[str, Tensor] | None = None
) -> JointBatch:
    """The joint batch of all ranks, seen from this one: own anchors, everybody's columns.

    Args:
        embeddings: (B_r, D) this rank's embeddings.
        rows: What is known of all ranks' rows.
        replica: Who this rank is.
        logits: Name of an attribute -> (B_r, V) predicted logits.

    Returns:
        The batch, with columns in rank order. Cost: one collective for the embeddings, which carries their gradient
        back, and one for all logits, if any, whose copies on other ranks have no gradient.
    """
    known, own = tuple(rows.sizes), rows.slice_of(replica.rank)
    logits, host = logits or {}, rows.host_labels
    column_logits = _gather_joined([part.detach() for part in logits.values()], replica, known)
    return JointBatch(
        anchors=embeddings,
        labels=rows.labels[own],
        columns=gather(embeddings, replica, known),
        column_labels=rows.labels,
        anchor_index=torch.arange(own.start, own.stop, device=rows.labels.device),
        gather_rows=lambda values: gather(values, replica, known),
        sum_ranks=lambda values: sum_ranks(values, replica),
        max_ranks=lambda values: max_ranks(values, replica),
        rank=replica.rank,
        world_size=replica.world_size,
        ids=None if rows.ids is None else rows.ids[own],
        column_ids=rows.ids,
        logits=logits,
        column_logits=dict(zip(logits, column_logits, strict=True)),
        attributes={name: values[own] for name, values in rows.attributes.items()},
        column_attributes=rows.attributes,
        host_labels=None if host is None else HostLabels(host[own], host),
    )


def gather_batch(
    embeddings: Tensor,
    labels: Tensor,
    replica: Replica,
    sizes: Sequence[int] | None = None,
    ids: Tensor | None = None,
    logits: Mapping[str, Tensor] | None = None,
    attributes: Mapping[str, Tensor] | None = None,
) -> JointBatch:
    """The joint batch of ranks that know their own rows only; where a plan tells all of them, take `joint_batch`.

    Args:
        embeddings: (B_r, D) this rank's embeddings.
        labels: (B_r,) their int64 labels.
        replica: Who this rank is.
        sizes: Rows of every rank where known.
        ids: (B_r,) int64 catalog ids where known; on all ranks or on none, as are the attributes.
        logits: Name of an attribute -> (B_r, V) predicted logits.
        attributes: Name of an attribute -> (B_r,) int64 true values.

    Returns:
        The batch, with columns in rank order. Cost: beside that of `joint_batch`, one collective for all whole numbers.
    """
    if sizes is None:
        sizes = gather_sizes(len(labels), replica, labels.device)
    attributes = attributes or {}
    numbers = [labels.long(), *attributes.values(), *([] if ids is None else [ids])]
    column_labels, *others = _gather_joined(numbers, replica, tuple(sizes))
    rows = JointRows(
        tuple(sizes),
        column_labels,
        None if ids is None else others[-1],
        dict(zip(attributes, others, strict=False)),
    )
    return joint_batch(embeddings, rows, replica, logits)


def _gather_joined(parts: list[Tensor], replica: Replica, sizes: tuple[int, ...]) -> list[Tensor]:
    """Several tensors (B_r,) or (B_r, S) of one type, each gathered, by one collective."""
    if replica.world_size == 1 or not parts:
        return parts
    joined = gather(torch.column_stack(parts), replica, sizes)
    columns = torch.split(joined, [1 if part.ndim == 1 else part.shape[1] for part in parts], 1)
    return [column.reshape(-1, *part.shape[1:]) for part, column in zip(parts, columns, strict=True)]
