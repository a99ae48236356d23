"""What the evaluations of a run found, kept in its folder: metrics, intervals, threshold, distances."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from distmetric.errors import ResourceError
from distmetric.evaluation.calibration import PairSurvey
from distmetric.evaluation.retrieval import RetrievalMetrics
from distmetric.locations import open_location, read_document, reason, write_document

_FOLDER = "evaluations"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Args:
        metrics: Retrieval on the test split.
        survey: Distances of its pairs and the threshold; None where it has one class only.
    """

    metrics: RetrievalMetrics
    survey: PairSurvey | None

    def logged(self) -> dict[str, float]:
        """What the tracker shows: metrics, the ends of their intervals, and the threshold with what it reaches."""
        ends = {
            f"{name}_{end}": value
            for name, interval in self.metrics.intervals.items()
            for end, value in zip(("low", "high"), interval, strict=True)
        }
        found = self.calibration() or {}
        threshold = {name: found[name] for name in ("threshold", "tar") if name in found}
        return self.metrics.to_dict() | ends | threshold

    def record(self, step: int) -> dict[str, Any]:
        """Everything, as plain containers."""
        return {
            "step": step,
            "metrics": self.metrics.to_dict(),
            "intervals": {name: list(interval) for name, interval in self.metrics.intervals.items()},
            "calibration": self.calibration(),
            "histogram": None if self.survey is None else self.survey.histogram.to_dict(),
        }

    def calibration(self) -> dict[str, Any] | None:
        """The threshold and what it reaches, as plain containers; None where it has none."""
        return None if self.survey is None else self.survey.calibration.to_dict()


def write_evaluation(run_dir: str, record: dict[str, Any]) -> None:
    """Keep a record as `evaluations/step_00000200.json`; one of the same step is replaced.

    Raises:
        ResourceError: If the run's folder cannot be written.
    """
    location = f"{run_dir}/{_FOLDER}/step_{record['step']:08d}.json"
    try:
        write_document(location, record)
    except OSError as error:
        raise ResourceError(
            f"{location} cannot be written ({reason(error)}): free space or fix access, then resume the run"
        ) from None


def read_evaluations(run_dir: str) -> list[dict[str, Any]]:
    """The records of a run's evaluations by ascending step; empty where there are none.

    Damaged ones are named in a warning and left out: curves and tables do without.
    """
    filesystem, path = open_location(f"{run_dir}/{_FOLDER}")
    records = []
    try:
        listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        log.warning(
            "%s/%s cannot be read (%s): going on without evaluations", run_dir, _FOLDER, reason(error)
        )
        return []
    for name in sorted(info.base_name for info in listed if re.fullmatch(r"step_\d+\.json", info.base_name)):
        location = f"{run_dir}/{_FOLDER}/{name}"
        try:
            record = read_document(location)
            if f"step_{record['step']:08d}.json" != name:
                raise ValueError("it is of another step")
            records.append(record)
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("%s is damaged and left out (%s): delete it", location, reason(error))
    return records
