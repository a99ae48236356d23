"""What is made of steps whose loss, gradient or embeddings are not finite: the run stops, or goes on without them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pyarrow import fs

from distmetric.config.schema import TrainConfig
from distmetric.data.catalog import Catalog
from distmetric.errors import NonFiniteError, UserError
from distmetric.locations import open_location, read_document, reason, write_document
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.finite_steps import REMEDY, StepNumbers
from distmetric.training.notices import Notices

FOLDER = "non_finite"
_MOST_FILES = 1000

log = logging.getLogger(__name__)


class NonFinite:
    """Judges steps in their order, equally on all ranks, and keeps what there is to write until rank 0 writes it.

    Steps are counted as the tracker does: the first one is step 1.

    Args:
        config: What to do, and how often in a row.
        seed: Of the run, for the record.
        run_dir: Folder of the run, a path or URI.
        catalog: Where the rows of batches are from.
        store: Checkpoints of the run, to name the one to resume from.
        notices: Where to say it.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        run_dir: str,
        catalog: Catalog,
        store: CheckpointStore,
        notices: Notices,
    ) -> None:
        self._config, self._seed, self._run_dir = config, seed, run_dir
        self._catalog, self._store, self._notices = catalog, store, notices
        self._skipped = self._in_a_row = 0
        self._failure: Callable[[], str] | None = None
        self._to_write: list[Callable[[], None]] = []

    def judge(self, steps: list[StepNumbers], intact: bool) -> dict[int, dict[str, float]]:
        """Take note of steps.

        Args:
            steps: Since the last time.
            intact: Whether weights, moments and buffers are finite after them.

        Returns:
            By step, counted from 0, what is to be logged of it: with skip, train/skipped_steps so far.
        """
        told = {}
        for numbers in steps:
            if self._failure is None:
                self._look_at(numbers)
            if self._config.non_finite == "skip":
                told[numbers.step] = {"train/skipped_steps": float(self._skipped)}
        if self._failure is None and not intact:
            self._note_lost_weights(steps)
        return told

    def write(self) -> None:
        """Write the batches and notices of what was judged; rank 0 only."""
        pending, self._to_write = self._to_write, []
        for write in pending:
            write()

    def check(self) -> None:
        """End the training on all ranks if it cannot go on; called after `write`.

        Raises:
            NonFiniteError: With the step, its numbers, its batch and the checkpoint to go on from.
        """
        self._to_write = []
        if self._failure is not None:
            raise NonFiniteError(self._failure())

    def state_dict(self) -> dict[str, int]:
        """Steps left out, and how many of them are the last ones."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where another run stood."""
        self._skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])

    def _look_at(self, numbers: StepNumbers) -> None:
        if numbers.are_finite:
            self._in_a_row = 0
            return
        step, what = numbers.step + 1, _what(numbers)
        skips = self._config.non_finite == "skip"
        self._skipped += skips
        self._in_a_row += skips
        place = f"{self._run_dir}/{FOLDER}/step_{step:08d}.json"
        if self._skipped <= _MOST_FILES:
            self._to_write.append(lambda: self._write_batch(place, numbers, what))
        if not skips:
            self._fail(
                step, f"{what}; its batch is in {place}", f"resume={self._run_dir} train.non_finite=skip"
            )
        elif self._in_a_row >= self._config.max_skipped:
            count = f"train.max_skipped={self._config.max_skipped} steps in a row were left out"
            self._fail(step, f"{count}, the last one because {what}; its batch is in {place}")
        elif math.log10(self._skipped).is_integer():
            so_far = "" if self._skipped == 1 else f", the {self._skipped}th so far"
            more = f"if many follow, {REMEDY}"
            self._notice(step, f"{what}: the step was left out{so_far}; its batch is in {place}; {more}")

    def _note_lost_weights(self, steps: list[StepNumbers]) -> None:
        step = steps[-1].step + 1 if steps else 0
        rate = f" (learning rate {steps[-1].learning_rate:.3g})" if steps else ""
        self._fail(
            step, f"weights, moments or running statistics are not finite any more at step {step}{rate}"
        )

    def _fail(self, step: int, what: str, resumption: str = "") -> None:
        self._notice(step, f"the run stopped: {what}")
        self._failure = lambda: f"{what}; {self._where_to_go_on(resumption)}{REMEDY}"

    def _notice(self, step: int, message: str) -> None:
        self._to_write.append(lambda: self._notices.add("non_finite", step, message))

    def _where_to_go_on(self, resumption: str) -> str:
        try:
            good = self._store.latest()
        except (UserError, OSError):  # what made the run stop matters more than this
            good = None
        if good is None:
            return ""
        if resumption:
            return f"{resumption} goes on from {good.location} without such steps, or "
        return f"the last good checkpoint is {good.location}; "

    def _write_batch(self, place: str, numbers: StepNumbers, what: str) -> None:
        document = {
            "step": numbers.step + 1,
            "what": what,
            "loss": _plain(numbers.loss),
            "gradient_norm": _plain(numbers.gradient_norm),
            "learning_rate": numbers.learning_rate,
            "seed": self._seed,
            "skipped": self._config.non_finite == "skip",
            "rows": self._rows(numbers),
        }
        try:
            write_document(place, document)
        except OSError as error:  # what made the run stop matters more than this
            log.warning("%s cannot be written (%s)", place, reason(error))

    def _rows(self, numbers: StepNumbers) -> list[dict[str, Any]]:
        if numbers.ids is None:
            return []
        ids, bad = numbers.ids.cpu().numpy(), numbers.bad_rows.cpu().tolist()
        order = np.argsort(self._catalog.ids)
        rows = order[np.searchsorted(self._catalog.ids[order], ids)].tolist()
        names, labels = self._catalog.label_names, self._catalog.labels
        return [
            {
                "id": int(self._catalog.ids[row]),
                "path": self._catalog.source_path(row),
                "label": names[labels[row]],
                "finite": not is_bad,
            }
            for row, is_bad in zip(rows, bad, strict=True)
        ]


def read_batches(run_dir: str) -> list[dict[str, Any]]:
    """What was kept of batches that were not finite, by ascending step; damaged files are named and passed over.

    Returns:
        Each with step, what, loss and gradient_norm (as text where not finite), learning_rate, seed, skipped and rows:
        id, path, label (its name) and whether the embedding was finite, of every image of the global batch.
    """
    filesystem, path = open_location(f"{run_dir}/{FOLDER}")
    listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in listed if re.fullmatch(r"step_\d+\.json", info.base_name))
    found = []
    for name in names:
        try:
            found.append(read_document(f"{run_dir}/{FOLDER}/{name}"))
        except (OSError, ValueError) as error:
            log.warning("%s/%s/%s is damaged and left out (%s)", run_dir, FOLDER, name, reason(error))
    return found


def _what(numbers: StepNumbers) -> str:
    """What was not finite first in a step, and its numbers."""
    told = f"loss {numbers.loss:.3g}, gradient norm {numbers.gradient_norm:.3g}"
    if numbers.num_bad_rows:
        what = f"the embeddings of {numbers.num_bad_rows} of {len(numbers.bad_rows)} images were not finite"
    elif not math.isfinite(numbers.loss):
        what = f"the loss became {numbers.loss}"
    else:
        what = f"the gradient became {numbers.gradient_norm}"
    return f"{what} at step {numbers.step + 1} ({told}, learning rate {numbers.learning_rate:.3g})"


def _plain(value: float) -> float | str:
    """A number as JSON has it, and a text where that has none."""
    return value if math.isfinite(value) else str(value)
