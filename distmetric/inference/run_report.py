"""The report of a finished run, from its best checkpoint and its tracked history."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyarrow import fs

from distmetric.config.schema import Config
from distmetric.data.decode import ImageStore, available_cores
from distmetric.locations import open_location
from distmetric.reports.run_report import RunReport, write_run_report
from distmetric.tracking.tracked_run import TrackedRun, git_revision
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.embedding import embed
from distmetric.training.saved_model import config_dict, load_embedder
from distmetric.training.worker import open_data

_MAX_IMAGES = 20_000  # of the test split, in whole classes: enough to search for telling queries


def write_report(config: Config, run_dir: str, checkpoint_location: str, tracked: TrackedRun) -> str:
    """Write report.html into the run's folder and attach it to the tracked run.

    Returns:
        Where the report is.
    """
    checkpoint = read_checkpoint(checkpoint_location)
    embedder, _ = load_embedder(checkpoint)
    catalog = open_data(config.data)
    rows = _whole_classes(catalog.rows(config.data.test_split), catalog.labels)
    images = ImageStore(catalog, config.model.image_size, config.model.channels, rows=rows)
    report = RunReport(
        title=run_dir.rpartition("/")[2],
        metrics=dict(checkpoint.metrics),
        history=tracked.history(),
        config=config_dict(config),
        environment=environment(),
        command=shlex.join(["python", *sys.argv]),
        embeddings=embed(embedder.float(), images, rows, config.eval.batch_size, torch.device("cpu")).numpy(),
        labels=catalog.labels[rows],
        label_names=catalog.label_names,
        images=images.images(rows).numpy(),
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        local = write_run_report(Path(folder) / "report.html", report)
        filesystem, path = open_location(f"{run_dir}/report.html")
        fs.copy_files(
            str(local), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem
        )
        tracked.log_artifact(str(local))
    return f"{run_dir}/report.html"


def environment() -> dict[str, str]:
    """What ran: versions of the packages that matter, and the machine."""
    packages = ("distmetric", "torch", "ray", "mlflow", "pyarrow", "numpy", "pillow")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {available_cores()} CPUs",
        "revision": git_revision(),
    }


def _whole_classes(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(rows) <= _MAX_IMAGES:
        return rows
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    counts = np.cumsum(np.unique(labels[ordered], return_counts=True)[1])
    return ordered[: int(counts[counts <= _MAX_IMAGES].max(initial=_MAX_IMAGES))]
