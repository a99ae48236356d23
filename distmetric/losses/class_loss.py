"""Losses that compare embeddings with learned vectors of classes instead of with each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distmetric.functional.class_rows import ClassScores, class_cross_entropy
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
        """(B, k) distances of the anchors to the vectors of their own classes, with gradient."""
        k = self._vectors_per_class
        rows = torch.arange(len(batch.labels), device=vectors.device).repeat_interleave(k)
        columns = (batch.labels[:, None] * k + torch.arange(k, device=vectors.device)).flatten()
        classes = JointBatch(batch.anchors, batch.labels, vectors, columns, None)
        return listed_distances(classes, rows, columns, distance).view(-1, k)

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
            vectors: (C k, D), from `unit_vectors`.
            scores: How similarities make logits.
            own_logits: (B,) logits of the anchors' own classes, margin and all.
            only_anchors: Whether a miner's choice weighs rows as anchors only.
        """
        weights = None
        if batch.tuples is not None:
            weights = column_weights(batch, only_anchors)[batch.anchor_index]
        total, terms = class_cross_entropy(batch.anchors, batch.labels, vectors, scores, own_logits, weights)
        number = torch.tensor(len(terms), device=terms.device)
        return self.reduced(RowSums(total, number, (terms > ACTIVE_ABOVE).sum()))

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"num_classes={self.num_classes}, embedding_size={self.embedding_size}"
