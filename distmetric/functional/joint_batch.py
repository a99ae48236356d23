"""The batch as a pair loss sees it: some anchors, and all the columns they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.functional.distances import at_least_float32, unit_length
from distmetric.functional.tuples import Tuples


class HostLabels(NamedTuple):
    """The labels of a batch on the host, where looking at them waits for no device.

    Attributes:
        anchors: (B,) int64.
        columns: (N,) int64.
    """

    anchors: NDArray[np.int64]
    columns: NDArray[np.int64]


@dataclass(frozen=True)
class JointBatch:
    """Own anchors against all columns: the shape in which every row-decomposable loss is computed.

    In one process anchors and columns are the same tensor. On W ranks the anchors are this rank's embeddings and
    the columns everybody's, in rank order, so that each rank does 1/W of the pair work.

    Args:
        anchors: (B, D) embeddings of this rank.
        labels: (B,) int64 labels of the anchors.
        columns: (N, D) embeddings that the anchors are compared with.
        column_labels: (N,) int64 labels of the columns.
        anchor_index: (B,) int64 column that holds each anchor itself, which is never its own pair; None where
            anchors and columns are different sets.
        gather_rows: Turns a (B, ...) tensor of per-anchor values into the (N, ...) tensor of all ranks' values,
            with gradient; None where the columns are not the anchors of all ranks.
        sum_ranks: Adds up tensors of equal shape of all ranks, with gradient, equal on all of them; None where the
            columns are not the anchors of all ranks.
        max_ranks: Their greatest elements, without gradient.
        tuples: Pairs or triplets that a miner has chosen, indices of own anchors and of columns; None for all.
        rank: Which share of work that is not tied to anchors (classes, proxies) is this one's.
        world_size: How many shares there are.
        ids: (B,) int64 catalog ids of the anchors, where they are known.
        column_ids: (N,) int64 catalog ids of the columns, where they are known.
        logits: Name of an attribute -> (B, V) logits that the model predicts for the anchors, with gradient.
        column_logits: The same for the columns, (N, V), without gradient.
        attributes: Name of an attribute -> (B,) int64 true values of the anchors, -1 where unknown.
        column_attributes: The same for the columns, (N,).
        joint_anchors: (A, D) anchors of all ranks, with gradient, where the columns are other rows (a memory); None
            where `gather_rows` is given, or nobody else has anchors.
        joint_labels: (A,) int64 labels of `joint_anchors`.
        host_labels: `labels` and `column_labels` once more, where the host knows them; `on_host` has them in any case.
        narrow: What `prepared` has made wider: anchors and columns as they came, then as they are now.
    """

    anchors: Tensor
    labels: Tensor
    columns: Tensor
    column_labels: Tensor
    anchor_index: Tensor | None
    gather_rows: Callable[[Tensor], Tensor] | None = None
    sum_ranks: Callable[[Tensor], Tensor] | None = None
    max_ranks: Callable[[Tensor], Tensor] | None = None
    tuples: Tuples | None = None
    rank: int = 0
    world_size: int = 1
    ids: Tensor | None = None
    column_ids: Tensor | None = None
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    column_logits: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    column_attributes: Mapping[str, Tensor] = field(default_factory=dict)
    joint_anchors: Tensor | None = None
    joint_labels: Tensor | None = None
    host_labels: HostLabels | None = None
    narrow: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    @classmethod
    def alone(cls, embeddings: Tensor, labels: Tensor, host_labels: HostLabels | None = None) -> JointBatch:
        """The batch of a process that is on its own: its embeddings (B, D) are anchors and columns."""
        index = torch.arange(len(labels), device=labels.device)

        def same(values: Tensor) -> Tensor:
            return values

        return cls(
            *(embeddings, labels, embeddings, labels, index, same, same, same), host_labels=host_labels
        )

    def on_host(self) -> HostLabels:
        """The labels on the host; where they are not known there, a GPU is waited for."""
        if self.host_labels is not None:
            return self.host_labels
        return HostLabels(self.labels.cpu().numpy(), self.column_labels.cpu().numpy())

    def with_embeddings(self, change: Callable[[Tensor], Tensor]) -> JointBatch:
        """The same batch with all embeddings changed row by row; the anchors stay the columns where they were."""
        anchors = change(self.anchors)
        columns = anchors if self.columns is self.anchors else change(self.columns)
        everyone = self.joint_anchors
        if everyone is not None:
            everyone = anchors if everyone is self.anchors else change(everyone)
        return replace(self, anchors=anchors, columns=columns, joint_anchors=everyone)

    def whole(self) -> JointBatch:
        """The joint batch as one process would have it: all columns as anchors, for work that cannot be divided."""
        known = self.host_labels and HostLabels(self.host_labels.columns, self.host_labels.columns)
        return JointBatch.alone(self.columns, self.column_labels, known)

    def alone_with(self, rows: slice) -> JointBatch:
        """Some of the anchors as a process would have them that knows of no others."""
        known = self.host_labels and HostLabels(
            self.host_labels.anchors[rows], self.host_labels.anchors[rows]
        )
        ids = None if self.ids is None else self.ids[rows]
        logits, attributes = (
            {name: values[rows] for name, values in named.items()} for named in (self.logits, self.attributes)
        )
        return replace(
            JointBatch.alone(self.anchors[rows], self.labels[rows], known),
            ids=ids,
            column_ids=ids,
            logits=logits,
            column_logits={name: values.detach() for name, values in logits.items()},
            attributes=attributes,
            column_attributes=attributes,
        )

    def with_tuples(self, tuples: Tuples) -> JointBatch:
        """The same batch with what a miner has chosen."""
        return replace(self, tuples=tuples)

    def prepared(self, normalize: bool) -> JointBatch:
        """The batch in float32 or wider and, where asked, with embeddings of length one."""
        batch = self.with_embeddings(at_least_float32)
        batch = batch.with_embeddings(unit_length) if normalize else batch
        if self.anchors.dtype == batch.anchors.dtype or self.columns.dtype != self.anchors.dtype:
            return batch
        came = self.anchors.detach(), self.columns.detach()
        return replace(batch, narrow=(came, (batch.anchors, batch.columns)))

    def narrow_rows(self) -> tuple[Tensor, Tensor] | None:
        """Anchors and columns in half precision, if these are they but for a factor for each row.

        A product of such numbers is exact in float32, and much faster than one of what became of them.
        """
        if self.narrow is None:
            return None
        came, became = self.narrow
        return came if became[0] is self.anchors and became[1] is self.columns else None


def single_batch(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    tuples: Tuples | None = None,
) -> JointBatch:
    """The batch of one process, from what users of losses and miners pass.

    Raises:
        ValueError: If shapes do not fit together.
    """
    check_batch(embeddings, labels, "embeddings", "labels")
    labels = labels.to(embeddings.device).long()
    if (ref_emb is None) != (ref_labels is None):
        raise ValueError("ref_emb and ref_labels belong together: give both or neither")
    if ref_emb is None or ref_labels is None:
        alone = JointBatch.alone(embeddings, labels)
        return alone if tuples is None else alone.with_tuples(tuples)
    check_batch(ref_emb, ref_labels, "ref_emb", "ref_labels")
    if ref_emb.shape[1:] != embeddings.shape[1:] or ref_emb.dtype != embeddings.dtype or not len(ref_emb):
        raise ValueError(
            f"ref_emb {tuple(ref_emb.shape)}, {ref_emb.dtype}, cannot be compared with embeddings "
            f"{tuple(embeddings.shape)}, {embeddings.dtype}: give one or more rows of equal length and type"
        )
    return JointBatch(embeddings, labels, ref_emb, ref_labels.to(ref_emb.device).long(), None, tuples=tuples)


def check_batch(embeddings: Tensor, labels: Tensor, embeddings_name: str, labels_name: str) -> None:
    """Raise ValueError unless embeddings are (B, D) and labels (B,)."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{embeddings_name} must be (B, D) and {labels_name} (B,), "
            f"not {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
