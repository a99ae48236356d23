"""The report of a run, from its folder and its tracked history."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore
from distmetric.errors import InputError
from distmetric.index.audit import NearDuplicates
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.index.suspects import coinciding_classes, coinciding_rows
from distmetric.inference.bad_batches import bad_batches, with_images
from distmetric.inference.device import best_device
from distmetric.locations import make_folder, open_location, put_in_place, writing
from distmetric.reports.run_report import RunReport, write_run_report
from distmetric.reports.suspects import SHOWN, Coincidence
from distmetric.secrets import masked
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.checkpoint import Checkpoint, read_checkpoint
from distmetric.training.embedding import embed
from distmetric.training.evaluations import read_evaluations
from distmetric.training.notices import read_notices
from distmetric.training.run_data import open_data, sample_store, split_rows, training_labels
from distmetric.training.run_folder import RunFolder, read_run
from distmetric.training.saved_model import config_dict, load_embedder

_MAX_IMAGES = 20_000  # of the test split, in whole classes: enough to search for telling queries


def write_report(config: Config, run_dir: str, checkpoint_location: str, tracked: TrackedRun) -> str:
    """Write report.html into the run's folder and attach it, and its figures, to the tracked run.

    Args:
        config: Of the run, as it was last started.
        run_dir: Its folder.
        checkpoint_location: Its best checkpoint.
        tracked: Its tracking.

    Returns:
        Where the report is.
    """
    folder = replace(read_run(run_dir), config=config_dict(config))
    report = collect(
        *(folder, tracked, read_checkpoint(checkpoint_location)),
        allow_custom_targets=config.allow_custom_targets,
    )
    return publish(report, f"{run_dir}/report.html", tracked if tracked.server else None)


def collect(
    folder: RunFolder,
    tracked: TrackedRun,
    checkpoint: Checkpoint | None,
    notes: Sequence[str] = (),
    *,
    allow_custom_targets: bool = False,
) -> RunReport:
    """Gather what a report is made of.

    Args:
        folder: The run's folder, with the configuration to show.
        tracked: Where its history comes from.
        checkpoint: Whose embeddings are shown; None where the run has none yet.
        notes: What has to be said first.
        allow_custom_targets: Whether the checkpoint's trunk may be code outside this package, whatever the folder says.

    Returns:
        The contents; without anything that takes images where there is no checkpoint, or where the data are no longer
        those of the run or are damaged, which a note says.

    Cost: one forward pass over at most 20,000 images of the test split.
    """
    batches, num_batches = bad_batches(folder.location)
    report = RunReport(
        title=folder.name,
        history=tracked.history(),
        config=masked(folder.config),
        environment=masked(folder.environment or {"distmetric": folder.version}),
        command=masked(folder.command),
        evaluations=read_evaluations(folder.location),
        notes=notes,
        notices=read_notices(folder.location),
        bad_batches=batches,
        num_bad_batches=num_batches,
    )
    if checkpoint is None:
        return report
    config = decode(Config, {**folder.config, "allow_custom_targets": allow_custom_targets})
    report = replace(report, metrics=dict(checkpoint.metrics), step=checkpoint.step, seed=config.seed)
    try:
        catalog = _catalog(config, folder)
        shown = _examples(config, checkpoint, catalog) | _coincidences(config, folder, catalog)
        shown["bad_batches"] = with_images(config, catalog, folder.location)
    except InputError as error:
        return replace(report, notes=[*notes, f"Without pictures, maps and confused classes: {error}"])
    return replace(report, **shown)


class TakesFiles(Protocol):
    """Whatever files can be attached to; without a server that is nothing."""

    def log_artifact(self, path: str) -> None:
        """Attach a local file."""

    def log_artifacts(self, folder: str, name: str) -> None:
        """Attach the files of a local folder, as a folder of that name."""


def publish(report: RunReport, location: str, tracked: TakesFiles | None) -> str:
    """Write a report to a path or URI and attach it, and its figures, to a tracked run.

    Returns:
        The location.

    Raises:
        ResourceError: If it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        local, figures = Path(folder) / "report.html", Path(folder) / "figures"
        try:
            with writing(f"{local}, a part of the report,"):
                write_run_report(local, report, None if tracked is None else figures)
        finally:
            # A report that lacks a section, since that one could not be made, is there all the same.
            if local.exists():
                with writing(location):
                    _copy(local, location)
                if tracked is not None:
                    tracked.log_artifact(str(local))
            if figures.exists() and tracked is not None:
                tracked.log_artifacts(str(figures), "figures")
    return location


def _copy(local: Path, location: str) -> None:
    filesystem, path = open_location(location)
    make_folder(filesystem, path.rpartition("/")[0])
    with put_in_place(filesystem, path) as target, filesystem.open_output_stream(target) as stream:
        stream.write(local.read_bytes())


def _catalog(config: Config, folder: RunFolder) -> Catalog:
    """The data of the run.

    Raises:
        InputError: If they are not there, or others are in their place.
    """
    catalog = open_data(config.data)
    if folder.fingerprint and catalog.fingerprint != folder.fingerprint:
        raise InputError(f"the data in {catalog.path} have changed since the run was started")
    return catalog


def _examples(config: Config, checkpoint: Checkpoint, catalog: Catalog) -> dict[str, Any]:
    """What a report shows of the evaluated images: embeddings, labels, pictures, names."""
    device = best_device()
    trusted = config.allow_custom_targets
    embedder, _ = load_embedder(checkpoint, device, allow_custom_targets=trusted)
    rows = _whole_classes(split_rows(config, catalog, config.data.test_split), catalog.labels, config.seed)
    store = pictures = sample_store(config, catalog, rows)
    if not isinstance(pictures, ImageStore):  # clips are shown by their first frames
        pictures = ImageStore(catalog, config.model.image_sides, config.model.channels, memory_limit_bytes=0)
    embeddings = embed(embedder.float(), store, rows, config.eval.batch_size, device)
    attributes = {name: catalog.attribute(name)[rows].tolist() for name in catalog.attribute_names}
    return {
        "embeddings": embeddings.cpu().numpy(),
        "labels": catalog.labels[rows],
        "label_names": catalog.label_names,
        "images": _Pictures(pictures, rows),
        "attributes": {"group": catalog.groups[rows].tolist(), **attributes},
        "paths": [catalog.source_path(row) for row in rows],
    }


@dataclass(frozen=True)
class _Pictures:
    """The images of some catalog rows, read when they are asked for."""

    store: ImageStore
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.asarray(self.store.images(self.rows[chosen]).numpy())


def _coincidences(config: Config, folder: RunFolder, catalog: Catalog) -> dict[str, Any]:
    """What the newest snapshot of the run's index takes for the same thing under two labels, as the sampler does."""
    sampler = config.sampler
    if sampler.name != "hard_neighbors":
        return {}
    snapshot = SnapshotStore(f"{folder.location}/index").newest()
    if snapshot is None:
        return {}
    rows = split_rows(config, catalog, config.data.train_split)
    classes = training_labels(catalog, config.data.train_split, config.model.frames_per_clip)
    if snapshot.has_rows:
        found, places = coinciding_rows(snapshot, classes, sampler.guard), None
    else:
        found = coinciding_classes(snapshot, sampler.guard)
        places = np.unique(classes, return_index=True)[1]
    store = ImageStore(catalog, config.model.image_sides, config.model.channels, memory_limit_bytes=0)
    pairs = _pairs(found, rows if places is None else rows[places])
    shown = [
        _coincidence(catalog, store, pair, distance, ratio, of_classes=places is not None)
        for pair, distance, ratio in pairs[:SHOWN]
    ]
    return {"coincidences": shown, "num_coincidences": len(pairs)}


def _pairs(found: NearDuplicates, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], float, float]]:
    """Catalog rows of each pair, its distance and its ratio."""
    both = torch.stack([found.rows, found.others], dim=1).numpy()
    return list(zip(rows[both], found.distances.tolist(), found.ratios.tolist(), strict=True))


def _coincidence(
    catalog: Catalog,
    store: ImageStore,
    pair: NDArray[np.int64],
    distance: float,
    ratio: float,
    *,
    of_classes: bool,
) -> Coincidence:
    first, second = pair.tolist()
    names, labels = catalog.label_names, catalog.labels
    return Coincidence(
        names=(names[labels[first]], names[labels[second]]),
        paths=(catalog.source_path(first), catalog.source_path(second)),
        images=np.asarray(store.images(pair).numpy()),
        distance=distance,
        ratio=ratio,
        of_classes=of_classes,
    )


def _whole_classes(rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """All rows, or those of random classes, as many as fit into `_MAX_IMAGES`; ascending."""
    if len(rows) <= _MAX_IMAGES:
        return rows
    random = np.random.default_rng(seed)
    _, group, sizes = np.unique(labels[rows], return_inverse=True, return_counts=True)
    order = random.permutation(len(sizes))
    fitting = int((np.cumsum(sizes[order]) <= _MAX_IMAGES).sum())
    if fitting == 0:  # one class alone is too large
        return np.sort(random.permutation(rows)[:_MAX_IMAGES])
    return rows[np.isin(group, order[:fitting])]
