"""Weighted sum of losses over one and the same batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.base import LossTerm, MetricLoss

# What nn.ModuleDict has as attributes of its own cannot be the name of a module in it.
_TAKEN = frozenset(dir(nn.ModuleDict()))


class WeightedSumLoss(MetricLoss):
    """Weighted sum of losses over the same batch.

    Formula: L = sum_p w_p L_p. Every part keeps its own normalization, distance and reduction, and is exact on any
    number of ranks for itself; the weights are applied last.

    Args:
        parts: Name -> (weight, loss). Names tell the parts apart in state dicts and measurements.

    Attributes:
        weights: Name -> weight; may be changed between steps.
        losses: Name -> loss.

    Raises:
        ValueError: If there is no part, or a name or a weight cannot be used.

    Cost: the sum of the parts' costs; nothing is shared between them but the gathered embeddings.

    Corner cases: a part of weight 0 is still computed, so that its parameters keep a gradient (of 0). What a miner has
    chosen holds for every part.

    Source: any training with more than one criterion; pytorch-metric-learning has it as `MultipleLosses`.
    """

    def __init__(self, parts: Mapping[str, tuple[float, MetricLoss]]) -> None:
        super().__init__(normalize_embeddings=False)
        check_parts({name: weight for name, (weight, _) in parts.items()})
        for name, (_, loss) in parts.items():
            if not isinstance(loss, MetricLoss):
                raise ValueError(
                    f"part {name!r} is a {type(loss).__name__}: parts must be losses of distmetric.losses"
                )
        self.weights = {name: float(weight) for name, (weight, _) in parts.items()}
        self.losses = nn.ModuleDict({name: loss for name, (_, loss) in parts.items()})

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; the terms of all parts, one part after the other."""
        return [
            term for name, loss in self._parts() for term in weighted(loss.parts(batch), self.weights[name])
        ]

    def set_step(self, step: int) -> None:
        """Tell every part which step of the training comes next."""
        for _, loss in self._parts():
            loss.set_step(step)

    def metrics(self) -> dict[str, Tensor]:
        """What the parts tell, each under its own name: part/metric."""
        return {
            f"{name}/{metric}": value
            for name, loss in self._parts()
            for metric, value in loss.metrics().items()
        }

    def _parts(self) -> Iterator[tuple[str, MetricLoss]]:
        for name, loss in self.losses.items():
            assert isinstance(loss, MetricLoss)
            yield name, loss

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return ", ".join(f"{name}: {weight:g}" for name, weight in self.weights.items())


def weighted(terms: Iterable[LossTerm], weight: float) -> list[LossTerm]:
    """The terms of a loss, multiplied by `weight`."""
    return [term._replace(weight=term.weight * weight) for term in terms]


def check_parts(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless there are parts, with usable names and finite weights."""
    if not weights:
        raise ValueError("parts is empty: name at least one loss")
    for name, weight in weights.items():
        if not name or "." in name or "/" in name or name in _TAKEN:
            raise ValueError(
                f"{name!r} cannot be the name of a part: choose another, without dots and slashes"
            )
        if not math.isfinite(weight):
            raise ValueError(f"part {name!r} has weight={weight}: give a finite number")
