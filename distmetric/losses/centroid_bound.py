"""Fixed-centroid upper bound on the triplet loss: every class gathers at a point that is given and stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distmetric.functional.centroids import Placement, place_centroids
from distmetric.functional.distances import paired_distances
from distmetric.functional.joint_batch import HostLabels, JointBatch
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, RowSums, sum_rows
from distmetric.losses.base import LossTerm, MetricLoss, Reduction, check_classes
from distmetric.losses.class_shards import ClassSharded


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
    sharded: bool = False
    """Each worker holds the centroids of its share of the classes instead of all of them."""


class CentroidBoundLoss(ClassSharded, MetricLoss):
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
        centroids: (C, D) buffer, saved with the loss and never trained. After `shard` the rows of this rank's classes
            only.
        own_classes: The classes whose centroids are here; all of them unless sharded.

    Raises:
        ValueError: If there are fewer than 2 classes, more than the placement has room for, or shapes do not fit.

    Cost: 2 B C D in one pass; memory O((B + C) D) beside three blocks. Sharded: N and C / W in place of B and C, which
    is the same work. Centroids are placed once, see `place_centroids`: all of them, also where a few are kept.

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
    row_names = ("centroids",)
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
        self.own_classes = range(num_classes)
        self.register_buffer("centroids", centroids.detach().clone())
        weights = _balanced_weights(num_classes)
        if class_counts is not None:
            weights = _weights(class_counts, num_classes)
        for name, weight in zip(("_pull", "_push", "_share"), weights, strict=True):
            self.register_buffer(name, weight.to(self.centroids.device), persistent=False)

    def shard(self, rank: int, world_size: int) -> None:
        """Keep the centroids of this rank's share of the classes, and drop the others.

        What a row's own class pushes with, a number a class, stays whole: rows of all classes are compared here.

        Loss and gradients stay what they are without: every rank compares the joint batch with its centroids.

        Raises:
            ValueError: If there are fewer classes than ranks.
        """
        self._take_share(rank, world_size)
        own = slice(self.own_classes.start, self.own_classes.stop)
        for name in ("centroids", "_pull", "_share"):
            setattr(self, name, self.get_buffer(name)[own].clone())

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
        rows, labels, on_host = batch.anchors, batch.labels, batch.on_host().anchors
        if not self.has_all_classes:
            rows, labels, on_host = batch.columns, batch.column_labels, batch.on_host().columns
        places = labels - self.own_classes.start
        here = (places >= 0) & (places < len(centroids))
        nearest = places.clamp(0, len(centroids) - 1)
        classes = torch.arange(len(centroids), device=rows.device)
        known = HostLabels(on_host - self.own_classes.start, np.arange(len(centroids)))
        against = JointBatch(rows, places, centroids, classes, None, host_labels=known)
        pushes = sum_rows(against, self.distance, partial(self._pushes, self._push[labels]))
        # By differences: a product rounds, and the direction to a centroid that is all but reached would be lost.
        near = paired_distances(rows, centroids[nearest], self.distance)
        pull = torch.where(here, near * self._pull.to(near.dtype)[nearest], 0.0).sum()
        number = torch.full((), len(batch.anchors), dtype=torch.float64, device=rows.device)
        return [self.reduced(RowSums(pushes.total + pull, number, number))]

    def _pushes(self, pushes: Tensor, block: PairBlock) -> Row:
        # Columns are sorted by label: the centroid of the m-th class that is here is column m.
        own = (block.first + block.band.start).clamp_max(len(self._share) - 1)[:, None]
        is_here = block.num_same[:, None] > 0
        push, share = (weight.to(block.distances.dtype) for weight in (pushes[block.rows], self._share))
        with torch.autocast(share.device.type, enabled=False):
            nearest = torch.where(is_here, block.distances.gather(1, own) * share[own], 0.0)
            far = torch.mv(block.distances, share)[:, None] - nearest
        if block.gradient is not None:
            gradient = torch.mul(-push[:, None], share, out=block.gradient)
            gradient.scatter_(1, own, torch.where(is_here, 0.0, gradient.gather(1, own)))
        values = -push * far[:, 0]
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
