"""Cross-batch memory: pairs with the embeddings of earlier batches, without computing those again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import LossTerm, MetricLoss
from distmetric.losses.weighted_sum import weighted
from distmetric.miners.base import Miner

# In place of the id of a row whose id nobody knows, or of a row that is not there yet; no catalog counts from there.
_NO_ID = torch.iinfo(torch.int64).min


class CrossBatchMemory(MetricLoss):
    """A loss over pairs of the batch and the newest M embeddings, those of earlier batches and its own.

    Formula: L = loss(batch against memory) + w loss(batch against batch). The batch is put into the memory first; an
    anchor is never paired with its own copy there, which is known by its place, not by its value. Memory rows are
    constants: a pair pulls or pushes its anchor only.

    Args:
        loss: A loss over pairs or triplets; it keeps its own normalization, distance and reduction.
        embedding_size: D.
        memory_size: M, in rows; a batch (of all ranks together) must fit.
        miner: Chooses the pairs, in the memory and in the batch; by default the loss looks at all of them.
        start_step: Before this step only the batch counts; the memory is filled all the same.
        batch_weight: w; 0 as in pytorch-metric-learning, 1 as in the paper. Before `start_step` the weight is 1.

    Attributes:
        embedding_memory: (M, D) ring of rows as the model returned them, float32 or as wide as the embeddings.
        label_memory: (M,) int64 their labels.
        id_memory: (M,) int64 their catalog ids, where they are known.
        last_drift: Scalar, how far the embeddings of images that the memory already held have moved since (mean of
            |new - old|, with the newest copy as old) at the last training step; NaN without such images or ids. It
            includes what random augmentation changes.

    Raises:
        ValueError: If a number is out of its range, or the loss has no use for a memory.

    Cost: the inner loss's, with M columns instead of N: 3 B M D for most, divided among the ranks, and M log M for
    sorting. Memory: M (D + 2) numbers on every rank, once more while a backward is due. Every rank enqueues the rows of
    all ranks in rank order, so that memories are equal and the loss is that of one process; nothing is sent for it.
    Ring, fill level and step are in the state dict: a resumed run continues with the memory it had.

    Corner cases: only rows that were enqueued count; while evaluating (`eval()`) nothing is enqueued, and an empty
    memory leaves the batch alone. Under `torch.no_grad()` rows are enqueued, which is how to fill it beforehand. With
    `ref_emb` those rows are enqueued and no pair is left out, as for a second, slowly moving encoder. On float64
    embeddings the memory becomes float64. Steps are counted here, unless `set_step` tells them.

    Source: Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020, arXiv 1912.06798.
    """

    over_pairs = False
    embedding_memory: Tensor
    label_memory: Tensor
    id_memory: Tensor

    def __init__(
        self,
        loss: MetricLoss,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Miner | None = None,
        *,
        start_step: int = 0,
        batch_weight: float = 0.0,
    ) -> None:
        super().__init__(normalize_embeddings=False)
        check_memory(memory_size, start_step, batch_weight)
        for part in loss.modules():
            if isinstance(part, MetricLoss) and not part.over_pairs:
                raise ValueError(
                    f"{type(part).__name__} has no use for a memory: put it beside this loss, in a WeightedSumLoss"
                )
        if miner is not None and not isinstance(miner, Miner):
            raise ValueError(f"miner={type(miner).__name__} is not known: take one of distmetric.miners")
        self.loss = loss
        self.miner = miner
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.start_step = start_step
        self.batch_weight = batch_weight
        self.register_buffer("embedding_memory", torch.zeros(memory_size, embedding_size))
        self.register_buffer("label_memory", torch.zeros(memory_size, dtype=torch.int64))
        self.register_buffer("id_memory", torch.full((memory_size,), _NO_ID))
        # Plain numbers: which rows are there must be known without waiting for a GPU.
        self._enqueued, self._step = 0, 0
        self.last_drift = torch.full((), torch.nan)

    @property
    def filled(self) -> int:
        """How many rows the memory holds."""
        return min(self._enqueued, self.memory_size)

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; the inner loss's terms over the memory, then those over the batch, if any.

        Raises:
            ValueError: If the batch does not fit into the memory, or comes with chosen pairs that nobody would see.
        """
        if batch.tuples is not None and self.miner is None and self.batch_weight == 0:
            raise ValueError(
                "the chosen pairs are pairs of the batch, and with batch_weight=0 only those with the memory count: "
                "give the miner to CrossBatchMemory(miner=...), or set batch_weight"
            )
        step, places = self._step, None
        if self.training:
            places = self._enqueue(batch)
            self._step += 1
        if step < self.start_step or self.filled == 0:
            return self.loss.parts(self._mined(batch))
        terms = self.loss.parts(self._mined(self._against_memory(batch, places)))
        if self.batch_weight:
            terms = terms + weighted(self.loss.parts(self._mined(batch)), self.batch_weight)
        return terms

    def set_step(self, step: int) -> None:
        """Tell the loss, and loss and miner inside it, which step of the training comes next."""
        self._step = step
        super().set_step(step)
        if self.miner is not None:
            self.miner.set_step(step)

    def metrics(self) -> dict[str, Tensor]:
        """`memory_drift`, see `last_drift`, and `memory_fill`, the fraction of the memory that holds rows."""
        fill = torch.full((), self.filled / self.memory_size, device=self.embedding_memory.device)
        return {**self.loss.metrics(), "memory_drift": self.last_drift, "memory_fill": fill}

    def reset_queue(self) -> None:
        """Forget all rows."""
        self.embedding_memory = torch.zeros_like(self.embedding_memory)
        self.label_memory = torch.zeros_like(self.label_memory)
        self.id_memory = torch.full_like(self.id_memory, _NO_ID)
        self._enqueued = 0

    def get_extra_state(self) -> Tensor:
        """Rows ever enqueued, which says where the ring goes on, and the next step."""
        return torch.tensor([self._enqueued, self._step])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where `get_extra_state` was asked."""
        self._enqueued, self._step = state.tolist()

    def _mined(self, batch: JointBatch) -> JointBatch:
        if self.miner is None or batch.tuples is not None:
            return batch
        return batch.with_tuples(self.miner.mine(batch))

    def _enqueue(self, batch: JointBatch) -> Tensor:
        """Put all columns of the batch into the ring; returns the (N,) places they went to."""
        rows, size = batch.columns.detach(), len(batch.columns)
        if rows.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings have length {rows.shape[1]}, "
                f"but the memory was made with embedding_size={self.embedding_size}"
            )
        if size > self.memory_size:
            raise ValueError(
                f"a batch of {size} rows does not fit into memory_size={self.memory_size}: "
                f"set memory_size to {size} or more"
            )
        ids = (
            torch.full((size,), _NO_ID, device=rows.device) if batch.column_ids is None else batch.column_ids
        )
        memory = self.embedding_memory.to(rows)
        labels, known_ids = (ring.to(rows.device) for ring in (self.label_memory, self.id_memory))
        by_age = (torch.arange(self.memory_size, device=rows.device) + self._enqueued) % self.memory_size
        self.last_drift = rows.new_full((), torch.nan)
        if batch.column_ids is not None:
            self.last_drift = _drift(rows, ids, memory, known_ids, by_age)
        # The oldest rows give way. New tensors, since a backward of the step before may still need the old ones.
        places = by_age[:size]
        self.embedding_memory = memory.index_copy(0, places, rows)
        self.label_memory = labels.index_copy(0, places, batch.column_labels.to(torch.int64))
        self.id_memory = known_ids.index_copy(0, places, ids)
        self._enqueued += size
        return places

    def _against_memory(self, batch: JointBatch, places: Tensor | None) -> JointBatch:
        """The anchors of a batch with the memory as columns; `places` is where the batch's own rows went, if at all."""
        own = None if places is None or batch.anchor_index is None else places[batch.anchor_index]
        everybody = batch.gather_rows is not None
        return JointBatch(
            anchors=batch.anchors,
            labels=batch.labels,
            columns=self.embedding_memory[: self.filled].to(batch.anchors),
            column_labels=self.label_memory[: self.filled].to(batch.labels),
            anchor_index=own,
            rank=batch.rank,
            world_size=batch.world_size,
            ids=batch.ids,
            column_ids=self.id_memory[: self.filled],
            joint_anchors=batch.columns if everybody else None,
            joint_labels=batch.column_labels if everybody else None,
        )

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"memory_size={self.memory_size}, start_step={self.start_step}, batch_weight={self.batch_weight:g}"


def _drift(rows: Tensor, ids: Tensor, memory: Tensor, memory_ids: Tensor, by_age: Tensor) -> Tensor:
    """Mean distance between rows and the newest row of the memory with the same id; NaN without any."""
    # Of places in order of age, a stable sort leaves the newest copy of an id last.
    sorted_ids, order = torch.sort(memory_ids[by_age], stable=True)
    last = (torch.searchsorted(sorted_ids, ids.contiguous(), right=True) - 1).clamp_min(0)
    found = (sorted_ids[last] == ids) & (ids != _NO_ID)
    moved = (rows - memory[by_age[order[last]]]).norm(dim=1)
    return torch.where(found, moved, 0).sum() / found.sum()


def check_memory(memory_size: int, start_step: int, batch_weight: float) -> None:
    """Raise ValueError unless the numbers make sense."""
    if memory_size < 1:
        raise ValueError(f"memory_size={memory_size} is wrong: give a number of rows, from 1 on")
    if start_step < 0:
        raise ValueError(f"start_step={start_step} is wrong: give a step, from 0 on")
    if not 0 <= batch_weight < math.inf:
        raise ValueError(f"batch_weight={batch_weight} is wrong: give a finite number from 0 on")
