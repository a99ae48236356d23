"""What every step tells: hardness, collapse and speed, measured cheaply and averaged over the ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from distmetric.distributed.replica import Replica
from distmetric.functional.distances import at_least_float32
from distmetric.functional.joint_batch import JointBatch
from distmetric.training.batch_distances import batch_distances
from distmetric.training.ledger import PHASES, StepTimes

_NAMES = (
    "positive_distance_mean",
    "positive_distance_p10",
    "positive_distance_p50",
    "positive_distance_p90",
    "negative_distance_mean",
    "negative_distance_p10",
    "negative_distance_p50",
    "negative_distance_p90",
    "nearest_negative_mean",
    "hardest_gap",
    "embedding_norm_mean",
    "embedding_variance",
)


MAX_SORTED = 4096
"""Most distances that percentiles are taken of, evenly spread over all of a sample: sorting more was half of the cost
of all measurements, and moves a percentile by less than one."""


@torch.no_grad()
def batch_statistics(batch: JointBatch) -> Tensor:
    """Measure a batch from a sample of its anchors.

    Positive and negative distances: mean and 10th, 50th, 90th percentile. Nearest negative and hardest gap: mean over
    anchors of the distance to the nearest negative, and of what remains of it after the farthest positive's (below 0:
    batch-hard still has work; 0 everywhere: collapse). Variance: the sum over dimensions of the variance over columns
    (near 0: collapse; at most 1 on unit vectors).

    Returns:
        (12,) values in the order of `_NAMES`; NaN for distances of which the sample has none.
    """
    seen = batch_distances(batch)
    gaps = seen.nearest_negative - seen.farthest_positive
    columns = at_least_float32(batch.columns.detach())
    return torch.cat(
        [
            _summary(seen.positives, seen.is_positive),
            _summary(seen.negatives, seen.is_negative),
            torch.stack(
                [
                    _mean(seen.nearest_negative, seen.nearest_negative.isfinite()),
                    _mean(gaps, gaps.isfinite()),
                    columns.norm(dim=1).mean(),
                    # A fourth of the time that `var` takes over rows.
                    (columns - columns.mean(0)).square_().sum() / len(columns),
                ]
            ),
        ]
    )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Of those that count; NaN without any."""
    return values.where(counted, 0.0).sum() / counted.sum()


def _summary(distances: Tensor, counted: Tensor) -> Tensor:
    """Mean and 10th, 50th and 90th percentile, interpolated, of those that count; NaN without any."""
    if not distances.numel():
        return distances.new_full((4,), torch.nan)
    # How many count is known to the device alone: those that do not are sorted behind those that do.
    step = -(-distances.numel() // MAX_SORTED) | 1  # odd, so as not to meet the same columns in every row
    some, seen = distances.flatten()[::step], counted.flatten()[::step]
    mean, ordered = _mean(distances, counted), some.where(seen, torch.inf).sort().values
    places = torch.stack([(seen.sum() - 1) * share for share in (0.1, 0.5, 0.9)]).clamp_min(0)
    below = places.floor()
    low, high = (ordered[place.long().clamp_max(len(ordered) - 1)] for place in (below, places.ceil()))
    percentiles = torch.lerp(low, high, (places - below).to(low.dtype))
    return torch.cat([mean[None], percentiles.where(mean.isfinite(), torch.nan)])


class Monitor:
    """Collects the measurements of steps on the device and hands them out, averaged over ranks, a few at a time.

    Args:
        replica: Who this rank is.
        batch_size: Rows of the global batch.
        chunk_size: Rows that a rank takes through the trunk at a time, where it does not take all at once.
    """

    def __init__(self, replica: Replica, batch_size: int, chunk_size: int | None = None) -> None:
        self._replica, self._batch_size, self._chunk_size = replica, batch_size, chunk_size
        self._rows: list[tuple[int, float, Tensor, StepTimes]] = []
        self._loss_metrics: tuple[str, ...] = ()
        self._clock = time.perf_counter()

    def observe(
        self,
        step: int,
        batch: JointBatch,
        loss: Tensor,
        active: Tensor,
        gradient_norm: Tensor,
        learning_rate: float,
        times: StepTimes,
        loss_metrics: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Note a step; nothing is read back from the device.

        `loss_metrics` is what the loss tells of itself (`MetricLoss.metrics`), under the same names at every step.
        """
        extra = {} if loss_metrics is None else loss_metrics
        self._loss_metrics = tuple(extra)
        head, tail = (
            [value.detach().to(loss) for value in values]
            for values in ((loss, active, gradient_norm), extra.values())
        )
        row = torch.cat(
            [torch.stack(head), batch_statistics(batch).to(loss.dtype), *(value[None] for value in tail)]
        )
        self._rows.append((step, learning_rate, row, times))

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """The measurements since the last flush, as (step, metrics); equal on all ranks, which must all call it.

        What is not a finite number is left out.
        """
        if not self._rows:
            return []
        seconds = time.perf_counter() - self._clock
        self._clock = time.perf_counter()
        phases = torch.tensor([times.seconds() for *_, times in self._rows], dtype=torch.float64)
        table = torch.stack([row for _, _, row, _ in self._rows]).double()
        joint = self._mean_over_ranks(torch.cat([table, phases.to(table.device)], dim=1))
        speed = self._batch_size * len(self._rows) / max(seconds, 1e-9)
        flushed = []
        for (step, learning_rate, _, _), values in zip(self._rows, joint.tolist(), strict=True):
            flushed.append((step, self._named(values, learning_rate, speed)))
        self._rows = []
        return flushed

    def _mean_over_ranks(self, table: Tensor) -> Tensor:
        # A rank whose sample had no such pair says nothing about it: the mean is over the ranks that do.
        known = table.isfinite()
        known[:, :3] = True
        sums = torch.stack([torch.where(known, table, torch.zeros_like(table)), known.to(table.dtype)])
        total, count = self._replica.sum_(sums).unbind()
        return total / count

    def _named(self, values: list[float], learning_rate: float, speed: float) -> dict[str, float]:
        names = ("loss", "active_fraction", "gradient_norm", *_NAMES, *self._loss_metrics)
        metrics = {f"train/{name}": value for name, value in zip(names, values, strict=False)}
        metrics |= {f"time/{phase}": value for phase, value in zip(PHASES, values[len(names) :], strict=True)}
        metrics |= {"train/learning_rate": learning_rate, "train/samples_per_second": speed}
        metrics["train/world_size"] = float(self._replica.world_size)
        if self._chunk_size is not None:
            metrics["train/chunk_size"] = float(self._chunk_size)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}
