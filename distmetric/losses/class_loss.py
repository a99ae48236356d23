"""Losses that compare embeddings with learned vectors of classes instead of with each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distmetric.functional.class_rows import ClassScores, class_cross_entropy, class_logsumexp
from distmetric.functional.distances import Distance, unit_length
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.listed_pairs import listed_distances
from distmetric.functional.row_sums import RowSums
from distmetric.functional.tuple_weights import column_weights
from distmetric.losses.base import ACTIVE_ABOVE, LossTerm, MetricLoss, Reduction, check_classes


class ClassLoss(MetricLoss):
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

    What a miner has chosen weighs the terms, as in pytorch-metric-learning: a loss over classes has no pairs to leave
    out, so each row counts by how often it was chosen, relative to the row chosen most often. On W ranks these are the
    numbers of one process. Reference embeddings are refused.
    """

    over_pairs = False

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
        self.weight = nn.Parameter(torch.empty(num_classes * vectors_per_class, embedding_size))
        nn.init.normal_(self.weight, std=embedding_size**-0.5)
        self._vectors_per_class = vectors_per_class
        self.own_classes = range(num_classes)

    @property
    def is_sharded(self) -> bool:
        """Whether the vectors of some classes are on other ranks."""
        return len(self.own_classes) < self.num_classes

    @torch.no_grad()
    def shard(self, rank: int, world_size: int) -> None:
        """Keep the vectors of this rank's share of the classes, all of a class on one rank, and drop the others.

        The loss and its gradients stay what they are without: every rank compares the joint batch with its classes, and
        the ranks add up. The gradient of `weight` is then W times that of the joint loss, as embeddings' are, and no
        mean over the ranks follows: divide it by W.

        Raises:
            ValueError: If there are fewer classes than ranks.
        """
        if world_size > self.num_classes:
            raise ValueError(
                f"{self.num_classes} classes cannot be divided among {world_size} ranks: shard no classes"
            )
        k = self._vectors_per_class
        self.own_classes = class_shard(self.num_classes, rank, world_size)
        self.weight = nn.Parameter(
            self.weight[self.own_classes.start * k : self.own_classes.stop * k].clone()
        )

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.parts`.

        Raises:
            ValueError: If a label is not a class, embeddings have another length, or columns are not the batch.
        """
        if batch.gather_rows is None:
            raise ValueError(f"{type(self).__name__} compares with learned vectors: it takes no ref_emb")
        check_classes(batch, self.num_classes, self.embedding_size)
        return super().parts(batch)

    def unit_vectors(self, batch: JointBatch) -> Tensor:
        """The (C k, D) vectors scaled to length one, in the type of the batch's embeddings, with gradient."""
        return unit_length(self.weight.to(batch.anchors.dtype))

    def own_distances(self, batch: JointBatch, vectors: Tensor, distance: Distance) -> Tensor:
        """(B, k) distances of the anchors to the vectors of their own classes, with gradient.

        Sharded: (N, k) of all columns, where those of other ranks' classes mean nothing.
        """
        k = self._vectors_per_class
        rows, classes = batch.anchors, batch.labels
        if self.is_sharded:
            rows, classes = batch.columns, self._shard_labels(batch).clamp(0, len(self.own_classes) - 1)
        places = torch.arange(len(rows), device=vectors.device).repeat_interleave(k)
        columns = (classes[:, None] * k + torch.arange(k, device=vectors.device)).flatten()
        pairs = JointBatch(rows, classes, vectors, columns, None)
        return listed_distances(pairs, places, columns, distance).view(-1, k)

    def cross_entropy(
        self,
        batch: JointBatch,
        vectors: Tensor,
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
        if self.is_sharded:
            terms = self._sharded_terms(batch, vectors, scores, own_logits)
            terms = terms if weights is None else terms * weights
            total, terms = terms.sum(), terms.detach()
        else:
            total, terms = class_cross_entropy(
                batch.anchors, batch.labels, vectors, scores, own_logits, weights
            )
        number = torch.tensor(len(terms), device=terms.device)
        return self.reduced(RowSums(total, number, (terms > ACTIVE_ABOVE).sum()))

    def _shard_labels(self, batch: JointBatch) -> Tensor:
        """(N,) numbers of the columns' classes within the shard; outside of 0 .. len(own_classes) - 1 elsewhere."""
        return batch.column_labels - self.own_classes.start

    def _sharded_terms(
        self, batch: JointBatch, vectors: Tensor, scores: ClassScores, own_logits: Tensor
    ) -> Tensor:
        """(B,) terms of the anchors, of which every rank knows its classes' part for all columns."""
        assert batch.sum_ranks is not None
        assert batch.max_ranks is not None
        labels = self._shard_labels(batch)
        here = (labels >= 0) & (labels < len(self.own_classes))
        logs = class_logsumexp(batch.columns, labels, vectors, scores)
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


def class_shard(num_classes: int, rank: int, world_size: int) -> range:
    """The classes that one rank looks after: as many as the others do, or one more or less."""
    return range(num_classes * rank // world_size, num_classes * (rank + 1) // world_size)
