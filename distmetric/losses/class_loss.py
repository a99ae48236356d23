"""Losses that compare embeddings with learned vectors of classes instead of with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmetric.functional.class_rows import ClassScores, class_cross_entropy, class_logsumexp
from distmetric.functional.class_sampling import kept_classes
from distmetric.functional.counter_random import hashes
from distmetric.functional.distances import Distance, unit_length
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.row_sums import RowSums
from distmetric.functional.tuple_weights import column_weights
from distmetric.losses.base import ACTIVE_ABOVE, LossTerm, MetricLoss, Reduction, check_classes
from distmetric.losses.class_shards import ClassSharded, ShardedParameter

_DRAWN_AT_ONCE = 256


@dataclass(kw_only=True, frozen=True)
class ClassLossConfig:
    """Settings of every loss with learned vectors of classes."""

    sharded: bool = False
    """Each worker holds the vectors of its share of the classes, with their moments, instead of all of them."""
    negative_sample_rate: float = 1.0
    """Fraction of the classes that a step compares with: those of the global batch, and others up to it; 1.0: all."""
    negatives: Literal["random", "hard"] = "random"
    """Which others: drawn evenly, or first the nearest of the batch's classes (hard; needs sampler=hard_neighbors)."""

    def __post_init__(self) -> None:
        """Check the rate.

        Raises:
            ValueError: If it is not a fraction.
        """
        _check_rate(self.negative_sample_rate)


def _check_rate(negative_sample_rate: float) -> None:
    if not 0 < negative_sample_rate <= 1:
        raise ValueError(
            f"negative_sample_rate={negative_sample_rate} is wrong: give a fraction above 0, or 1 for all classes"
        )


class ClassVectors(NamedTuple):
    """The vectors that a batch is compared with, of the c classes that are here and were kept.

    Attributes:
        rows: (c k, D) of length one, those of a class next to each other, with gradient.
        labels: (N,) int64 places of the columns' classes among the c; -1 where they are not here.
        number: c.
        host_labels: `labels` on the host, where they are known there.
    """

    rows: Tensor
    labels: Tensor
    number: int
    host_labels: NDArray[np.int64] | None = None


class ClassLoss(ClassSharded, MetricLoss):
    """A loss with a vector, or a few, for every class.

    Args:
        num_classes: C; labels are 0 .. C - 1.
        embedding_size: D.
        vectors_per_class: k, vectors of a class, next to each other in `weight`.
        reduction: Over anchors.

    Attributes:
        weight: (C k, D) parameter, compared as unit vectors; trained with the model. It starts with directions drawn
            uniformly and lengths of about one. Lengths do not matter for the value, only for how far a step turns.
            After `shard` the rows of this rank's classes only.
        own_classes: The classes whose vectors are here; all of them unless sharded.

    Raises:
        ValueError: If there is no class or no vector.

    What a class starts with depends on the state of torch's generator and on its number, not on the classes beside it.
    Made on the device "meta", the loss has no vectors until `shard`, which draws those of the rank's classes: no
    process then ever holds all of them.

    What a miner has chosen weighs the terms, as in pytorch-metric-learning: a loss over classes has no pairs to leave
    out, so each row counts by how often it was chosen, relative to the row chosen most often. On W ranks these are the
    numbers of one process. Reference embeddings are refused.
    """

    over_pairs = False
    row_names = ("weight",)

    def __init__(
        self, num_classes: int, embedding_size: int, vectors_per_class: int = 1, reduction: Reduction = "mean"
    ) -> None:
        super().__init__("cosine", True, reduction)
        sizes = {"num_classes": num_classes, "embedding_size": embedding_size}
        for name, size in {**sizes, "vectors per class": vectors_per_class}.items():
            if size < 1:
                raise ValueError(f"{name}={size} is wrong: give a number from 1 on")
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self._vectors_per_class = vectors_per_class
        self.own_classes = range(num_classes)
        self._key = int(torch.randint(1 << 62, (), generator=torch.default_generator, device="cpu"))
        self.weight = nn.Parameter(torch.empty(num_classes * vectors_per_class, embedding_size))
        if not self.weight.is_meta:
            self._draw(self.weight)
        self._rate, self._step = 1.0, 0
        self._nearest: Callable[[], NDArray[np.int32] | None] | None = None

    @torch.no_grad()
    def shard(self, rank: int, world_size: int) -> None:
        """Keep the vectors of this rank's share of the classes, all of a class on one rank, and drop the others.

        The loss and its gradients stay what they are without: every rank compares the joint batch with its classes, and
        the ranks add up. The gradient of `weight` is then W times that of the joint loss, as embeddings' are, and no
        mean over the ranks follows but a division by W: `distmetric.distributed.average_gradients` does either.

        Raises:
            ValueError: If there are fewer classes than ranks.
        """
        self._take_share(rank, world_size)
        k, own = self._vectors_per_class, self.own_classes
        if self.weight.is_meta:
            rows = torch.empty(len(own) * k, self.embedding_size, device="cpu")
            self._draw(rows)
        else:
            rows = self.weight[own.start * k : own.stop * k].clone()
        self.weight = ShardedParameter(rows)

    def sample_negatives(
        self, rate: float, nearest: Callable[[], NDArray[np.int32] | None] | None = None
    ) -> None:
        """Compare each training batch with its own classes and with some of the others, as if there were no more.

        Args:
            rate: Fraction of all classes that is kept, see `kept_classes`; 1 for all, which is the loss itself.
            nearest: Asked at every step for the nearest classes of each, (C, k); None of them: random ones only.

        Raises:
            ValueError: If `rate` is none.

        Sums over classes and their denominators are over those kept, without a correction. The same ones are kept on
        any number of ranks, and in a run that is resumed, as `set_step` tells the step; without it, steps are counted
        from 0. In `eval()` all classes count. Vectors that are left out get a gradient of 0, and an optimizer with
        momentum still moves them by what is left of it.
        """
        _check_rate(rate)
        self._rate, self._nearest = rate, nearest

    def set_step(self, step: int) -> None:
        """Tell which step of the training comes next."""
        self._step = step

    @torch.no_grad()
    def _draw(self, rows: Tensor) -> None:
        """Fill the rows of the own classes with what these start with."""
        k, own = self._vectors_per_class, self.own_classes
        for first in range(own.start - own.start % _DRAWN_AT_ONCE, own.stop, _DRAWN_AT_ONCE):
            seed = int(hashes(self._key, 0, torch.tensor([first]), 1)[0, 0])
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(
                _DRAWN_AT_ONCE * k, self.embedding_size, generator=generator, device="cpu", dtype=rows.dtype
            )
            classes = range(max(first, own.start), min(first + _DRAWN_AT_ONCE, own.stop))
            source = slice((classes.start - first) * k, (classes.stop - first) * k)
            target = slice((classes.start - own.start) * k, (classes.stop - own.start) * k)
            rows[target] = drawn[source].mul_(self.embedding_size**-0.5)

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.parts`.

        Raises:
            ValueError: If a label is not a class, embeddings have another length, or columns are not the batch.
        """
        if batch.gather_rows is None:
            raise ValueError(f"{type(self).__name__} compares with learned vectors: it takes no ref_emb")
        check_classes(batch, self.num_classes, self.embedding_size)
        return super().parts(batch)

    def unit_vectors(self, batch: JointBatch) -> ClassVectors:
        """The vectors to compare the batch with, in the type of its embeddings; takes a step where some are drawn."""
        k, own = self._vectors_per_class, self.own_classes
        weight, labels = self.weight, batch.column_labels - own.start
        if self._rate == 1 or not self.training:
            labels = torch.where((labels >= 0) & (labels < len(own)), labels, -1)
            known = None
            if batch.host_labels is not None:
                known = batch.host_labels.columns - own.start
                known = np.where((known >= 0) & (known < len(own)), known, -1)
            return ClassVectors(unit_length(weight.to(batch.anchors.dtype)), labels, len(own), known)
        nearest = None if self._nearest is None else self._nearest()
        kept = kept_classes(
            *(batch.column_labels, own, self.num_classes, self._rate, self._key, self._step), nearest=nearest
        )
        self._step += 1
        kept = kept - own.start
        # So that there is something to compare with; nobody's label, it counts for nothing.
        chosen = kept if len(kept) else kept.new_zeros(1)
        rows = weight.view(len(own), k, -1).index_select(0, chosen).flatten(0, 1)
        places = torch.searchsorted(kept, labels.contiguous()).clamp_max(max(len(kept) - 1, 0))
        labels = torch.where(chosen[places] == labels, places, -1) if len(kept) else labels.new_full((), -1)
        return ClassVectors(
            unit_length(rows.to(batch.anchors.dtype)), labels.expand(len(batch.columns)), len(kept)
        )

    def own_distances(self, batch: JointBatch, vectors: ClassVectors, distance: Distance) -> Tensor:
        """(B, k) distances of the anchors to the vectors of their own classes, with gradient.

        Where classes are on other ranks: (N, k) of all columns, where those of other ranks' classes mean nothing.
        """
        k = self._vectors_per_class
        rows, classes = batch.columns, vectors.labels.clamp_min(0)
        if self.has_all_classes:
            rows, classes = batch.anchors, classes[batch.anchor_index]
        places = torch.arange(len(rows), device=classes.device).repeat_interleave(k)
        columns = (classes[:, None] * k + torch.arange(k, device=classes.device)).flatten()
        pairs = JointBatch(rows, classes, vectors.rows, columns, None)
        return listed_distances(pairs, places, columns, distance).view(-1, k)

    def cross_entropy(
        self,
        batch: JointBatch,
        vectors: ClassVectors,
        scores: ClassScores,
        own_logits: Tensor,
        only_anchors: bool = False,
    ) -> LossTerm:
        """The term of a cross entropy over classes, one for each anchor.

        Args:
            batch: Anchors (B, D).
            vectors: From `unit_vectors`.
            scores: How similarities make logits.
            own_logits: Logits of the own classes, margin and all, of what `own_distances` has measured.
            only_anchors: Whether a miner's choice weighs rows as anchors only.
        """
        weights = None
        if batch.tuples is not None:
            weights = column_weights(batch, only_anchors)[batch.anchor_index]
        if self.has_all_classes:
            labels = vectors.labels[batch.anchor_index]
            total, terms = class_cross_entropy(
                batch.anchors, labels, vectors.rows, scores, own_logits, weights
            )
        else:
            terms = self._sharded_terms(batch, vectors, scores, own_logits)
            terms = terms if weights is None else terms * weights
            total, terms = terms.sum(), terms.detach()
        number = torch.full((), len(terms), device=terms.device)
        return self.reduced(RowSums(total, number, (terms > ACTIVE_ABOVE).sum()))

    def _sharded_terms(
        self, batch: JointBatch, vectors: ClassVectors, scores: ClassScores, own_logits: Tensor
    ) -> Tensor:
        """(B,) terms of the anchors, of which every rank knows its classes' part for all columns."""
        assert batch.sum_ranks is not None
        assert batch.max_ranks is not None
        here = vectors.labels >= 0
        # Where no class of this rank was kept, the one vector that stands in for them is no other class to anybody.
        labels = vectors.labels if vectors.number else torch.zeros_like(vectors.labels)
        logs = class_logsumexp(batch.columns, labels, vectors.rows, scores)
        top = batch.max_ranks(logs)
        top = torch.where(top.isfinite(), top, torch.zeros_like(top))
        parts = torch.stack(
            [torch.exp(logs - top), torch.where(here, own_logits, torch.zeros_like(own_logits))]
        )
        others, own = batch.sum_ranks(parts)[:, batch.anchor_index].unbind()
        # A single class has no others, and a logarithm of 0 no derivative.
        some = others > 0
        excess = torch.where(some, others, torch.ones_like(others)).log() + top[batch.anchor_index] - own
        return torch.logaddexp(torch.where(some, excess, -torch.inf), torch.zeros_like(excess))

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"num_classes={self.num_classes}, embedding_size={self.embedding_size}"
