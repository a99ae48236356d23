"""How hard a batch really is: what is planned beside what a random batch would be, under the same weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.distributed.gather import JointRows, joint_batch
from distmetric.distributed.replica import Replica
from distmetric.functional.joint_batch import JointBatch
from distmetric.samplers.slices import rank_slice, slice_sizes
from distmetric.training.batch_distances import batch_distances

Rows = NDArray[np.int64]


class HardnessProbe:
    """Embeds two global batches as they are, without augmentation, and compares how hard they are.

    violating fraction = share of anchors i with  min_n d(i, n) < max_p d(i, p) + margin

    Args:
        embed: (B,) places in the training split -> (B, D) embeddings in evaluation mode.
        labels: (M,) training labels by place.
        margin: Of the violation.
        replica: Whose slices are embedded.
        device: Where the embeddings are.
    """

    def __init__(
        self,
        embed: Callable[[Rows], Tensor],
        labels: NDArray[np.int64],
        margin: float,
        replica: Replica,
        device: torch.device,
    ) -> None:
        self._embed, self._labels, self._margin = embed, labels, margin
        self._replica, self._device = replica, device

    def compare(self, hard: Rows, random: Rows) -> tuple[dict[str, float], list[tuple[Rows, Tensor]]]:
        """Measure both batches; all ranks must call it.

        Args:
            hard: (N,) places of the planned batch, equal on all ranks.
            random: (N',) places of a random one.

        Returns:
            Measurements, equal on all ranks, and what this rank embedded for them as (places, embeddings).

        Cost: (N + N') / W images embedded per rank, and two gathers.
        """
        measured, embedded, sums = {}, [], []
        for rows in (hard, random):
            own, joint = self._batch(rows)
            embedded.append((own, joint.anchors))
            sums.append(_sums(joint, self._margin))
        totals = self._replica.sum_(torch.stack(sums)).tolist()
        for (violating, anchors, nearest, distance, negatives), name in zip(
            totals, ("", "_random"), strict=True
        ):
            measured[f"hard/violating_fraction{name}"] = violating / max(anchors, 1)
            measured[f"hard/nearest_negative_distance{name}"] = nearest / max(anchors, 1)
            measured[f"hard/negative_distance{name}"] = distance / max(negatives, 1)
        return measured, embedded

    def _batch(self, rows: Rows) -> tuple[Rows, JointBatch]:
        own = rank_slice(rows, self._replica.rank, self._replica.world_size)
        labels, sizes = self._labels[rows], slice_sizes(len(rows), self._replica.world_size)
        known = JointRows(sizes, torch.from_numpy(labels).to(self._device), host_labels=labels)
        with torch.no_grad():
            return own, joint_batch(self._embed(own), known, self._replica)


def _sums(batch: JointBatch, margin: float) -> Tensor:
    """Violating anchors, anchors, their nearest negatives' distances, distances of negatives, and their number."""
    seen = batch_distances(batch)
    counted = seen.nearest_negative.isfinite() & seen.farthest_positive.isfinite()
    values = [
        (counted & (seen.nearest_negative < seen.farthest_positive + margin)).sum(),
        counted.sum(),
        seen.nearest_negative.where(counted, 0.0).sum(),
        seen.negatives.where(seen.is_negative, 0.0).sum(),
        seen.is_negative.sum(),
    ]
    return torch.stack([value.double() for value in values])
