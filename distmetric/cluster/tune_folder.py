"""The folder of a search: how it was set up, and what came of the trials that have ended."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pyarrow import fs

from distmetric.config.decode import decode
from distmetric.config.jobs.study import StudyJob
from distmetric.config.jobs.tune import TuneJob
from distmetric.errors import ConfigError, InputError
from distmetric.locations import absolute, make_folder, open_location, write_text, writing
from distmetric.secrets import is_masked, masked

_TUNE_FILE, _TRIALS_FILE, _TABLE_FILE = "tune.json", "trials.json", "trials.csv"
_FIX = "free space or fix access, then resume"


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Args:
        trial: Its name.
        status: finished; stopped by the scheduler; or failed, for the reason in `error`.
        settings: What distinguishes it, by dotted key.
        run_dir: Folder of its run.
        run_id: Of its run in the tracker; None without one.
        step: Steps that were trained.
        seconds: Time of training, its evaluation included; None if it has not come to the end.
        metrics: Its best evaluation; empty before the first.
        checkpoint: Folder of its best checkpoint, or None.
        error: Why it failed; empty otherwise.
    """

    trial: str
    status: str
    settings: dict[str, Any]
    run_dir: str
    run_id: str | None = None
    step: int = 0
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str = ""


@dataclass(frozen=True)
class TuneFolder:
    """What `tune.json` in a search's folder says.

    Args:
        location: The folder, an absolute path or a URI.
        name: Name of the search.
        job: Its settings.
        drawn: The settings of its trials, by dotted key.
        version: The distmetric that started it.
        tracking_uri: Where it is tracked, or None.
        run_id: Its identity there, or None.
        study: What its trials are the runs of; None for a search.
    """

    location: str
    name: str
    job: TuneJob
    drawn: list[dict[str, Any]]
    version: str
    tracking_uri: str | None = None
    run_id: str | None = None
    study: StudyJob | None = None

    def write(self) -> None:
        """Write `tune.json`, making the folder."""
        with writing(self.location):
            make_folder(*open_location(self.location))
        write_text(f"{self.location}/{_TUNE_FILE}", json.dumps(masked(asdict(self)), indent=1), _FIX)

    def results(self) -> list[Result]:
        """Of the trials that have ended, in their order."""
        text = _read(f"{self.location}/{_TRIALS_FILE}")
        try:
            return [] if text is None else [Result(**row) for row in json.loads(text)]
        except (ValueError, TypeError):
            raise InputError(f"{self.location}/{_TRIALS_FILE} is damaged: delete it, then resume") from None

    def write_results(self, results: Sequence[Result], metric: str) -> dict[str, str]:
        """Write the tables of the trials.

        Args:
            results: Of the trials that have ended.
            metric: What they are compared by: the best one comes first in the CSV table.

        Returns:
            By file name the contents.
        """
        rows = [masked(asdict(each)) for each in sorted(results, key=lambda each: each.trial)]
        tables = {
            _TRIALS_FILE: json.dumps(rows, indent=1),
            _TABLE_FILE: masked(_csv(ranked(results, metric))),
        }
        for name, text in tables.items():
            write_text(f"{self.location}/{name}", text, _FIX)
        return tables


def ranked(results: Sequence[Result], metric: str) -> list[Result]:
    """Trials by metric, the best one first; those without, which failed early, at the end."""
    return sorted(results, key=lambda each: (-each.metrics.get(metric, float("-inf")), each.trial))


def read_tuning(location: str, kind: Literal["tune", "study"] = "tune") -> TuneFolder:
    """Read the folder of a search, or of a study.

    Raises:
        InputError: If it is the folder of something else, or its `tune.json` cannot be understood.
    """
    text = _read(f"{location}/{_TUNE_FILE}")
    if text is None:
        what = "search" if kind == "tune" else "study"
        raise InputError(f"resume={location} is not the folder of a {what}: it has no {_TUNE_FILE}")
    try:
        content = json.loads(text)
        secret = is_masked(content["job"]) or is_masked(content["drawn"])
        content["job"] = decode(TuneJob, content["job"])
        if content.get("study") is not None:
            content["study"] = decode(StudyJob, content["study"])
        folder = TuneFolder(**{**content, "location": absolute(location)})
    except (ValueError, TypeError, KeyError, ConfigError):
        raise InputError(f"{location}/{_TUNE_FILE} is damaged: start a new search") from None
    of = "tune" if folder.study is None else "study"
    if of != kind:
        raise InputError(f"resume={location} was started by jobs/{of}.py: continue it with that")
    if secret:
        raise InputError(
            f"{location}/{_TUNE_FILE} lacks a setting, which was not stored because it is secret: start a new search, "
            "whose models read secrets from the environment"
        )
    return folder


def is_tuning(location: str) -> bool:
    """Whether a folder is one of a search."""
    return _read(f"{location}/{_TUNE_FILE}") is not None


def _csv(results: Sequence[Result]) -> str:
    settings = list(dict.fromkeys(key for each in results for key in each.settings))
    metrics = list(dict.fromkeys(name for each in results for name in each.metrics))
    others = ("step", "seconds", "run_id", "run_dir", "checkpoint", "error")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "status", *settings, *metrics, *others])
    for each in results:
        writer.writerow(
            [
                *(each.trial, each.status),
                *(each.settings.get(key) for key in settings),
                *(each.metrics.get(name) for name in metrics),
                *(getattr(each, name) for name in others),
            ]
        )
    return stream.getvalue()


def _read(location: str) -> str | None:
    filesystem, path = open_location(location)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read()).decode()
