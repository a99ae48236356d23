"""Whether a run is well: steps that were left out, and signs of collapse, judged where measurements are read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distmetric.config.schema import Config
from distmetric.data.catalog import Catalog
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.collapse import Collapse
from distmetric.training.finite_steps import FiniteSteps
from distmetric.training.non_finite import NonFinite
from distmetric.training.notices import Notices

Measured = list[tuple[int, dict[str, float]]]


class Health:
    """Judges what was measured, on all ranks alike; what there is to write waits until rank 0 writes it.

    Args:
        config: The whole run.
        run_dir: Its folder, a path or URI.
        catalog: What it trains on.
        store: Its checkpoints.
        steps: Takes its steps.
    """

    def __init__(
        self, config: Config, run_dir: str, catalog: Catalog, store: CheckpointStore, steps: FiniteSteps
    ) -> None:
        self._steps, self._notices = steps, Notices(run_dir)
        self._non_finite = NonFinite(config.train, config.seed, run_dir, catalog, store, self._notices)
        self._collapse = Collapse(config)
        self._found: list[tuple[str, int, str]] = []

    def judged(self, measured: Measured) -> Measured:
        """Judge the steps since the last time, by what was measured of them.

        Args:
            measured: (step counted from 0, metrics) of all of them, equal on all ranks, which all call it.

        Returns:
            The same with what is added: train/collapsed and, where steps are left out, train/skipped_steps.
        """
        added = self._non_finite.judge(*self._steps.flush())
        told = []
        for step, metrics in measured:
            self._found += [(kind, step + 1, said) for kind, said in self._collapse.observe(step, metrics)]
            told.append((step, metrics | added.get(step, {}) | self._collapse.metrics()))
        return told

    def tell(self, kind: str, step: int, message: str) -> None:
        """Have a notice written the next time; see `Notices.add`. All ranks call it alike."""
        self._found.append((kind, step, message))

    def write(self) -> None:
        """Write notices, and the batches of steps that were left out; rank 0 only."""
        self._non_finite.write()
        for notice in self._found:
            self._notices.add(*notice)
        self._found = []

    def check(self) -> None:
        """End the training if it cannot go on, on all ranks, which all call it after `write`.

        Raises:
            NonFiniteError: With the step, its numbers, its batch and the checkpoint to go on from.
        """
        self._found = []
        self._non_finite.check()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain numbers."""
        return {"non_finite": self._non_finite.state_dict(), "collapse": self._collapse.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood."""
        self._non_finite.load_state_dict(state["non_finite"])
        self._collapse.load_state_dict(state["collapse"])
