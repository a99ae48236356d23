"""Where the results of a benchmark go: tables as Markdown, everything as JSON, and both into the tracker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyarrow import fs

from distmetric import __version__
from distmetric.config.decode import leaves
from distmetric.config.jobs import BenchmarkJob
from distmetric.config.schema import MLflowConfig
from distmetric.errors import ResourceError
from distmetric.locations import put_in_place
from distmetric.secrets import masked
from distmetric.tracking.address import tracking_uri
from distmetric.tracking.tracked_run import TrackedRun, tracking_server
from distmetric.tracking.tracker import Tracker


@dataclass(frozen=True)
class Report:
    """The files of a benchmark, and its run in the tracker.

    Args:
        folder: Where the files are.
        name: Of the files, without what follows the dot, and of the run.
        tracked: The run.
        tracker: What takes its measurements.
    """

    folder: Path
    name: str
    tracked: TrackedRun
    tracker: Tracker

    @property
    def markdown(self) -> Path:
        """The tables."""
        return self.folder / f"{self.name}.md"

    @property
    def json(self) -> Path:
        """Everything, raw."""
        return self.folder / f"{self.name}.json"

    def write(self, markdown: str, raw: Mapping[str, Any]) -> None:
        """Write both files anew, each of them whole or not at all."""
        texts = {self.markdown: markdown, self.json: json.dumps(masked(dict(raw)), indent=1) + "\n"}
        with _writing(self.folder):
            for path, text in texts.items():
                with put_in_place(fs.LocalFileSystem(), str(path)) as part:
                    Path(part).write_text(text, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Where everything is."""
        return {"markdown": str(self.markdown), "json": str(self.json), "run_id": self.tracked.run_id}


@contextmanager
def open_report(job: BenchmarkJob) -> Iterator[Report]:
    """A new report, whose files are attached to its run when the block ends well.

    Raises:
        UserError: If the tracking server refuses.
    """
    name = f"benchmark-{job.suite}-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(job.out).expanduser().absolute()
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    kept = TemporaryDirectory()  # of what MLflow is to get: the tables are complete without it
    tracked = _open_tracking(job, name, str(out), kept.name)
    report = Report(out, name, tracked, tracked.tracker())
    try:
        with tracked.watch():
            try:
                yield report
                tracked.log_artifact(str(report.markdown))
                tracked.log_artifact(str(report.json))
            finally:
                report.tracker.close()
    finally:
        tracked.close()
        kept.cleanup()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ResourceError(f"out={out} cannot be written ({reason}): choose another folder") from None


def _open_tracking(job: BenchmarkJob, name: str, out: str, kept: str) -> TrackedRun:
    if not isinstance(job.tracking, MLflowConfig):
        return TrackedRun()
    server = tracking_server(tracking_uri(job.tracking.uri, out), job.tracking.experiment, out)
    tags = {"distmetric.version": __version__}
    later = f"it is dropped now, and the tables in {out} are complete without it"
    return TrackedRun.create(kept, server, name, leaves(asdict(job)), tags, later=later)
