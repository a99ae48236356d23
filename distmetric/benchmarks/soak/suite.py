"""The suite soak: a training with faults, the same without, what both have in common, and the tables of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distmetric.benchmarks.soak.equality import (
    HistoryDifference,
    compare_histories,
    different_parts,
    state_of,
)
from distmetric.benchmarks.soak.plan import Planned
from distmetric.benchmarks.soak.reference import train_reference
from distmetric.benchmarks.soak.training import DisturbedTraining, Hit
from distmetric.errors import ResourceError
from distmetric.tracking.journal import read_history
from distmetric.training.run_folder import read_run

ROUND_STEPS, CHECKPOINT_EVERY, EVALUATE_EVERY = 5, 20, 100
_ENDLESS = 10**7
SETTINGS = (
    *("debug=two_ranks", "data.max_classes=60", "model.widths=[8, 8]", "model.embedding_dim=16"),
    *("sampler=hard_neighbors", "sampler.classes_per_batch=8", "sampler.samples_per_class=4"),
    *(f"sampler.round_steps={ROUND_STEPS}", "sampler.warmup_steps=10", "sampler.max_lead=6"),
    *("index=stream", "index.refresh_steps=15"),
    # A loss with parameters and one with a memory, so that their state is at stake too.
    *("loss=weighted_sum", "loss@loss.parts.triplet.loss=proxy_anchor"),
    *("loss@loss.parts.contrastive.loss=cross_batch_memory", "loss.parts.contrastive.loss.memory_size=256"),
    *("schedule=constant", f"train.steps={_ENDLESS}", "train.log_every=5", "report=false"),
    *(f"eval.every_steps={EVALUATE_EVERY}", "eval.resamples=100"),
    *(f"checkpoint.every_steps={CHECKPOINT_EVERY}", "checkpoint.keep_last=5", "trainer.max_failures=1000000"),
    "trainer.start_timeout_s=600",
)
"""What is trained: small, so that it is at risk often. A constant learning rate, since nobody knows its last step."""


@dataclass(frozen=True)
class SoakResult:
    """What a soak has found.

    Args:
        seconds: Of training, faults included.
        attempts: How often the driver was started.
        steps: Steps at the end.
        hits: The faults.
        mishaps: What went wrong unasked.
        corrupted: Checkpoints that were complete and damaged.
        tensors: How many parts of the final state were compared.
        different: Names of those that are not equal bit for bit.
        history: How the history differs.
        dropped_pushes: Batches of embeddings that the index never got.
        reference_seconds: What the training without faults took.
    """

    seconds: float
    attempts: int
    steps: int
    hits: list[Hit]
    mishaps: list[str]
    corrupted: list[str]
    tensors: int
    different: list[str]
    history: HistoryDifference
    dropped_pushes: int
    reference_seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether the run has ended as if there had been no faults."""
        return self.tensors > 0 and not self.different and self.history.is_none

    @property
    def is_sound(self) -> bool:
        """Whether all faults were survived, nothing else happened, and nothing was damaged."""
        return (
            self.is_equal and all(hit.survived for hit in self.hits) and not (self.mishaps or self.corrupted)
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain containers."""
        return {**asdict(self), "is_equal": self.is_equal, "is_sound": self.is_sound}


def run_soak(faults: Iterator[Planned], seconds: float, folder: Path) -> SoakResult:
    """Train with faults, then without, and compare.

    Args:
        faults: What to inject.
        seconds: How long to train, from the first step on.
        folder: Where everything goes; what equal runs leave in it is removed, but for logs.

    Raises:
        ResourceError: If the training does not even start, or its reference does not end.
    """
    folder.mkdir(parents=True)
    tracking = ("tracking=mlflow", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}")
    training = DisturbedTraining([*SETTINGS, *tracking], folder, ROUND_STEPS)
    try:
        training.disturb(faults, seconds)
        taken = training.seconds
        steps = training.finish()
    finally:
        training.close()
    result = _compared(training, folder, steps, taken)
    if result.is_sound:
        for name in ("run", "reference", "index"):
            shutil.rmtree(folder / name)
    return result


def _compared(training: DisturbedTraining, folder: Path, steps: int, seconds: float) -> SoakResult:
    if missing := training.watch.missing(steps // ROUND_STEPS + 1):
        raise ResourceError(
            f"the note of round {missing[0]} was gone before it was copied, so there is no reference to compare "
            "with: the machine is too busy for this suite; run it again"
        )
    config, reference = read_run(str(training.run_dir)).config, folder / "reference"
    taken = train_reference(config, steps, reference, training.watch.kept, timeout_s=10 * seconds + 300)
    ours, whole = (state_of(f"{run}/checkpoints/step_{steps:08d}") for run in (training.run_dir, reference))
    history = read_history(str(training.run_dir))
    return SoakResult(
        seconds,
        training.attempts,
        steps,
        training.hits,
        training.mishaps,
        sorted(training.corrupted),
        len(whole),
        different_parts(ours, whole),
        compare_histories(history, read_history(str(reference)), steps),
        _dropped(history.get("index/dropped_pushes", [])),
        taken,
    )


def _dropped(points: list[tuple[int, float]]) -> int:
    """The sum of a count that starts anew with every process."""
    values = [value for _, value in points]
    starts = zip([0.0, *values], values, strict=False)
    return int(sum(value - before if value >= before else value for before, value in starts))
