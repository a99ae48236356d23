"""Whether all embeddings have become one point, or there is nothing left to learn from the batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distmetric.config.schema import Config
from distmetric.losses.triplet import TripletLossConfig
from distmetric.samplers.collapse_signs import VARIANCE, LargestVariance, relative_variance
from distmetric.samplers.hard_neighbors import HardNeighborSamplerConfig

# On glyphs (32 runs of 150 steps: 12 losses, normalized and raw embeddings, heads with and without batch normalization)
# five runs whose loss stayed where it is for equal embeddings came to below 0.003, two that were on their way there to
# 0.005 and 0.01, and those that learned stayed above 0.02, however far their scale moved.
RELATIVE_VARIANCE = 0.005
"""Variance over the squared mean norm, below which embeddings are taken for one point."""
VARIANCE_FRACTION = 0.001
"""The same of the variance over its largest so far: embeddings that all go to 0 keep their relative variance."""
ACTIVE = 0.9
"""Fraction of active terms below which a loss is content with distances that small."""
PATIENCE = 30
"""Steps in a row with a sign before it is taken for one."""


class Collapse:
    """Watches the measurements of a run, step by step; equal measurements give equal messages.

    - Collapsed: the embeddings' variance is all but nothing beside their size, or beside what it was, while the loss
      is not content: `PATIENCE` steps in a row, warm-up left out, since embeddings may begin that close.
    - Nothing left: no term of the loss was active, or the gradient was 0, for as many steps.

    Steps that were left out say nothing. Each kind is told once in a run.

    Args:
        config: The run, for its warm-up and for what to advise.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._largest = LargestVariance()
        self._streaks = {"collapse": 0, "idle": 0}
        self._told: set[str] = set()

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Look at the measurements of a step; steps come in order, every one once.

        Args:
            step: Counted from 0.
            metrics: With the names of the monitor, as far as they are known.

        Returns:
            What to tell, as (kind, message), at the step at which it becomes known.
        """
        if "train/loss" not in metrics:
            return []
        self._largest.observe(metrics)
        told = []
        for kind, sign in (("collapse", self._is_one_point(step, metrics)), ("idle", _is_idle(metrics))):
            self._streaks[kind] = self._streaks[kind] + 1 if sign else 0
            if self._streaks[kind] == PATIENCE and kind not in self._told:
                self._told.add(kind)
                told.append((kind, self._collapsed(metrics) if kind == "collapse" else _idle(self._config)))
        return told

    def metrics(self) -> dict[str, float]:
        """train/collapsed: 1 while embeddings are taken for one point."""
        return {"train/collapsed": float(self._streaks["collapse"] >= PATIENCE)}

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain containers."""
        return {
            "largest_variance": self._largest.value,
            "streaks": dict(self._streaks),
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stood."""
        self._largest.value = float(state["largest_variance"])
        self._streaks = {kind: int(state["streaks"][kind]) for kind in self._streaks}
        self._told = set(state["told"])

    def _is_one_point(self, step: int, metrics: Mapping[str, float]) -> bool:
        if step < self._config.schedule.warmup_steps or metrics["train/active_fraction"] < ACTIVE:
            return False
        near = relative_variance(metrics) < RELATIVE_VARIANCE
        return near or self._largest.is_far_below(metrics, VARIANCE_FRACTION)

    def _collapsed(self, metrics: Mapping[str, float]) -> str:
        share = 100 * relative_variance(metrics)
        return (
            f"the embeddings have collapsed: for {PATIENCE} steps their variance was all but 0 (it is {share:.2g} % of "
            f"their squared length, {metrics[VARIANCE]:.2g} after {self._largest.value:.2g} at its largest), and "
            f"the loss does not get on; start again and {', or '.join(_advice(self._config))}"
        )


def _is_idle(metrics: Mapping[str, float]) -> bool:
    return metrics["train/active_fraction"] == 0 or metrics.get("train/gradient_norm") == 0


def _advice(config: Config) -> list[str]:
    """What keeps embeddings apart, the surest first."""
    loss, sampler, advice = config.loss, config.sampler, []
    if config.model.head != "linear_bn":
        advice.append("set model.head=linear_bn")
    if isinstance(loss, TripletLossConfig) and loss.strategy == "batch_hard":
        advice.append("set loss.strategy=batch_all")
    if isinstance(sampler, HardNeighborSamplerConfig):
        advice.append("lower sampler.hard_fraction")
    if config.miner.name != "none":
        advice.append(f"set miner=none in place of {config.miner.name}")
    advice.append(f"lower optim.lr={config.optim.lr:g}")
    if config.schedule.warmup_steps < PATIENCE:
        advice.append(f"lengthen schedule.warmup_steps={config.schedule.warmup_steps}")
    return advice


def _idle(config: Config) -> str:
    """What to do about a loss of 0."""
    advice = "raise the margin of the loss, or plan harder batches with sampler=hard_neighbors"
    if config.miner.name != "none":
        advice += f", or set miner=none in place of {config.miner.name}"
    return (
        f"there is nothing left to learn from the batches: for {PATIENCE} steps no term of the loss was active; "
        f"{advice}, or stop here"
    )
