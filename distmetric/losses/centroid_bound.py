"""Fixed-centroid upper bound on the triplet loss: every class gathers at a point that is given and stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.centroids import Placement, place_centroids
from distmetric.functional.distances import paired_distances
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, sum_rows
from distmetric.losses.base import LossTerm, MetricLoss, Reduction, check_classes


@dataclass(kw_only=True, frozen=True)
class CentroidBoundLossConfig:
    """Settings of `CentroidBoundLoss`."""

    name: Literal["centroid_bound"] = "centroid_bound"
    placement: Placement = "auto"
    """Where centroids are: axes (one_hot, up to D classes), a regular simplex (simplex, up to D + 1), k-means of random
    points (kmeans), as far apart as can be found (uniform), or simplex where it has room, else uniform (auto)."""
    weighted: bool = False
    """Weights that keep the bound exact for classes of different sizes, if images are drawn evenly and not by class."""
    reduction: Reduction = "mean"
    """Mean over images (mean; nonzero_mean is the same), or sum."""


class CentroidBoundLoss(MetricLoss):
    """Upper bound on the sum of all triplets, against one fixed centroid per class: linear in images and classes.

    Formula, with n_y images in class y and c_1 .. c_C the centroids:

        L = mean_i [ |x_i - c_{y_i}| - 1 / (3 (C - 1)) sum_{m != y_i} |x_i - c_m| ]

    By two triangle inequalities, 3 L over a data set of balanced classes is at least the mean of |x_i - x_j| -
    |x_i - x_k| over all its triplets (no margin, no hinge), and exceeds it by at most 4 times the largest
    |x_i - c_{y_i}|. With `class_counts` that holds for unbalanced classes, too: with N images and H triplets the pull
    weighs [2 (n_y - 1) (N - n_y) + sum_{m != y} n_m (n_m - 1)] N / (3 H) instead of 1, and the push from c_m
    (n_y - 1) n_m N / (3 H) instead of 1 / (3 (C - 1)). That is a mean over images; a sampler that draws classes evenly
    (pk) shows images of small classes more often than the weights assume, and goes without them.

    Args:
        num_classes: C, at least 2; labels are 0 .. C - 1.
        embedding_size: D.
        placement: Where centroids are, see `place_centroids`.
        class_counts: n_1 .. n_C, images of every class in the data set; none for balanced classes.
        centroids: (C, D) centroids to take instead, of any length.
        seed: Key of the placement.
        normalize_embeddings: Whether to compare unit vectors, as the paper does.
        reduction: Over anchors.

    Attributes:
        centroids: (C, D) buffer, saved with the loss and never trained.

    Raises:
        ValueError: If there are fewer than 2 classes, more than the placement has room for, or shapes do not fit.

    Cost: 2 B C D in one pass; memory O((B + C) D) beside three blocks. Centroids are placed once, see
    `place_centroids`.

    Corner cases: L has its minimum -1 / (3 (C - 1)) sum_m |c_y - c_m|, -0.471405 for one_hot, where all images sit at
    their centroids, which are distinct: collapsing does not pay. On the way there the gradient of an anchor's term has
    a norm between 2/3 and 4/3 and does not fade, as that of a hinge or a square would: embeddings circle their
    centroids at a distance that the learning rate sets, so let it decay (schedule cosine or exponential). At the
    centroid itself the pull is 0. Every anchor counts as active, also without positives or negatives in the batch.
    Reference embeddings and what a miner has chosen have no meaning here and are refused.

    Source: Do, Tran, Reid, Kumar, Hoang, Carneiro, "A Theoretically Sound Upper Bound on the Triplet Loss for
    Improving the Efficiency of Deep Distance Metric Learning", CVPR 2019, arXiv 1904.08720. Weights of unbalanced
    classes: the same sums with n_y instead of n.
    """

    over_pairs = False
    centroids: Tensor
    _pull: Tensor
    _push: Tensor
    _share: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        placement: Placement = "auto",
        *,
        class_counts: Sequence[int] | None = None,
        centroids: Tensor | None = None,
        seed: int = 0,
        normalize_embeddings: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__("euclidean", normalize_embeddings, reduction)
        if centroids is None:
            centroids = place_centroids(num_classes, embedding_size, placement, seed)
            centroids = centroids.to(torch.get_default_dtype())
            self.placement: str = placement
        elif num_classes < 2 or centroids.shape != (num_classes, embedding_size):
            raise ValueError(
                f"centroids must be (num_classes, embedding_size), at least 2 of them: "
                f"{tuple(centroids.shape)} is not ({num_classes}, {embedding_size})"
            )
        else:
            self.placement = "given"
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.register_buffer("centroids", centroids.detach().clone())
        weights = _balanced_weights(num_classes)
        if class_counts is not None:
            weights = _weights(class_counts, num_classes)
        for name, weight in zip(("_pull", "_push", "_share"), weights, strict=True):
            self.register_buffer(name, weight.to(self.centroids.device), persistent=False)

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.parts`.

        Raises:
            ValueError: If a label is not a class, embeddings have another length, or pairs are given.
        """
        if batch.tuples is not None or batch.gather_rows is None:
            what = "no ref_emb" if batch.tuples is None else "no indices_tuple of a miner"
            raise ValueError(f"CentroidBoundLoss compares with fixed centroids: it takes {what}")
        check_classes(batch, self.num_classes, self.embedding_size)
        return super().parts(batch)

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; one term per anchor."""
        centroids = self.centroids.to(batch.anchors.dtype)
        classes = torch.arange(self.num_classes, device=centroids.device)
        against = JointBatch(batch.anchors, batch.labels, centroids, classes, None)
        pushes = sum_rows(against, self.distance, self._pushes)
        # By differences: a product rounds, and the direction to a centroid that is all but reached would be lost.
        near = paired_distances(batch.anchors, centroids[batch.labels], self.distance)
        pull = (near * self._pull.to(near.dtype)[batch.labels]).sum()
        return [self.reduced(pushes._replace(total=pushes.total + pull))]

    def _pushes(self, block: PairBlock) -> Row:
        # Columns are sorted by label: the centroid of class m is column m.
        own = (block.first + block.band.start)[:, None]
        push, share = (weight.to(block.distances.dtype) for weight in (self._push, self._share))
        with torch.autocast(share.device.type, enabled=False):
            far = torch.mv(block.distances, share)[:, None] - block.distances.gather(1, own) * share[own]
        if block.gradient is not None:
            torch.mul(-push[own], share, out=block.gradient).scatter_(1, own, 0.0)
        values = (-push[own] * far)[:, 0]
        one_each = torch.ones_like(values)
        return Row(values, one_each, one_each)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, placement={self.placement!r}"


def _balanced_weights(num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `_weights` are for classes of equal size."""
    ones = torch.ones(num_classes, dtype=torch.float64)
    return ones, ones / (3 * (num_classes - 1)), ones


def _weights(class_counts: Sequence[int], num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (C,) in float64 of the pull to the own centroid, and of the push, own class's times other class's."""
    if len(class_counts) != num_classes:
        raise ValueError(f"class_counts has {len(class_counts)} classes, but num_classes={num_classes}")
    counts = torch.tensor(class_counts, dtype=torch.float64)
    images, others = counts.sum(), (counts - 1).clamp_min(0)
    pairs = counts * others
    triplets = (pairs * (images - counts)).sum()
    if triplets == 0:
        raise ValueError("class_counts has no triplet: give at least 2 classes, one of them with 2 images")
    scale = images / (3 * triplets)
    pull = (2 * others * (images - counts) + pairs.sum() - pairs) * scale
    return pull, others * counts.mean() * scale, counts / counts.mean()
