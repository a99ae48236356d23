"""Embeddings to evaluate, with what is known about each: from images by a checkpoint, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.index.embedding_file import read_embedding_file
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.images import BadImages, is_catalog, open_images
from distmetric.progress import Progress

_PARQUET = (".parquet", ".parq")
_ARROW = (".arrow", ".feather")


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """N embeddings, and what a protocol may ask about them.

    Attributes:
        name: What messages call it: key=value.
        ids: (N,) int64, different.
        paths: (N,) strings.
        label_names: (C,) class names; "" is no class.
        labels: (N,) int64 places in `label_names`.
        embeddings: (N, D) float32 on the CPU.
        cameras: (N,) int64, -1 where unknown; None if no row has one.
        groups: (N,) strings, None where unknown; None if no row has one.
        model: `checkpoint` and `step` that a file says its embeddings are of.
    """

    name: str
    ids: NDArray[np.int64]
    paths: Sequence[str]
    label_names: list[str]
    labels: NDArray[np.int64]
    embeddings: Tensor
    cameras: NDArray[np.int64] | None = None
    groups: Sequence[str | None] | NDArray[np.object_] | None = None
    model: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.embeddings)

    def known_labels(self) -> NDArray[np.int64]:
        """The labels, where every row has one.

        Raises:
            InputError: If an image is in no class.
        """
        if "" in self.label_names:
            unknown = np.flatnonzero(self.labels == self.label_names.index(""))
            raise InputError(
                f"{self.name}: {len(unknown)} of {len(self)} images have no class (the first: "
                f"{self.paths[int(unknown[0])]}): put each into a folder that is named like its class"
            )
        return self.labels


def matched_labels(
    query: EvaluationSet, gallery: EvaluationSet
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Labels of two sets that are equal where the names of the classes are.

    Returns:
        (Q,) and (G,) int64 places in the sorted names of both, and those names.

    Raises:
        InputError: If an image has no class, or no class is in both.
    """
    own, others = query.known_labels(), gallery.known_labels()
    names = sorted({*query.label_names, *gallery.label_names})
    if gallery is not query and len(names) == len(query.label_names) + len(gallery.label_names):
        raise InputError(
            f"{query.name} and {gallery.name} have no class in common: classes are matched by name, and those of the "
            f"query are called {_some(query.label_names)}, those of the gallery {_some(gallery.label_names)}"
        )
    place = {name: number for number, name in enumerate(names)}
    places = [np.array([place[name] for name in each.label_names], np.int64) for each in (query, gallery)]
    return places[0][own], places[1][others], names


def holds_embeddings(source: str) -> bool:
    """Whether a source is a file of embeddings, as jobs/embed.py writes them, rather than images."""
    suffix = Path(source).suffix.lower()
    if suffix in _PARQUET:
        return True
    if not is_catalog(source):
        return "://" in source and suffix in _ARROW  # catalogs are local
    try:
        with pa.memory_map(str(Path(source).expanduser())) as stream:
            return "embedding" in pa.ipc.open_file(stream).schema.names
    except (OSError, pa.ArrowException):
        return False  # who opens it as a catalog will say what is wrong with it


def lacking(column: str, name: str) -> InputError:
    """The error that a set does not know cameras or groups."""
    if column == "camera":
        return InputError(
            f"{name} says nothing about cameras: give protocol.camera_pattern=..., or ingest the images with a "
            "manifest that has a column camera"
        )
    return InputError(f"{name} says nothing about groups: give protocol.within_groups=false")


def set_of_file(source: str, key: str) -> EvaluationSet:
    """Read a file of embeddings.

    Args:
        source: Parquet or Arrow; a path or URI.
        key: The setting that named it.

    Raises:
        InputError: As `read_embedding_file`.
    """
    try:
        found = read_embedding_file(source)
    except InputError as error:
        raise InputError(str(error).replace(f"embeddings={source}", f"{key}={source}", 1)) from None
    return EvaluationSet(
        f"{key}={source}",
        found.ids,
        found.paths,
        found.label_names,
        found.labels,
        found.embeddings,
        found.cameras,
        found.groups,
        {name: found.metadata[name] for name in ("checkpoint", "step") if name in found.metadata},
    )


def set_of_images(
    embedder: CheckpointEmbedder,
    source: str,
    key: str,
    split: str | None,
    batch_size: int,
    bad: BadImages,
    needs: Sequence[str] = (),
) -> EvaluationSet:
    """Embed images, batch by batch.

    Args:
        embedder: Of a checkpoint.
        source: Catalog, image folder or archive.
        key: The setting that named it.
        split: Of a catalog; None for all of it.
        batch_size: Images per forward pass.
        bad: Gets (path, reason) of images that cannot be read.
        needs: What has to be known about the images: camera, group.

    Raises:
        InputError: If the source or the split is not there, it does not say what is needed, or nothing in it can be
            read.
    """
    try:
        images = open_images(source, split, embedder.config.model.frames_per_clip)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    for column in needs:
        if column not in images.columns:
            raise lacking(column, f"{key}={source}")
    progress = Progress("images embedded", len(images))
    embeddings: list[Tensor] = []
    ids: list[int] = []
    paths: list[str] = []
    labels: list[int] = []
    number: dict[str, int] = {}
    extras: dict[str, list[Any]] = {name: [] for name in ("camera", "group") if name in images.columns}
    batches = images.rows(images.part(0, len(images)), embedder.config.model, batch_size, bad)
    for rows, vectors in embedder.embedded(batches):
        embeddings.append(torch.from_numpy(vectors))
        ids += rows.ids
        paths += rows.paths
        labels += [number.setdefault(name, len(number)) for name in rows.label_names]
        for name, values in extras.items():
            values += rows.extras[name]
        progress.update(len(rows))
    progress.close()
    if not embeddings:
        raise InputError(f"{key}={source}: none of its {len(images)} images can be read")
    cameras = extras.get("camera")
    return EvaluationSet(
        f"{key}={source}",
        np.array(ids, np.int64),
        paths,
        list(number),
        np.array(labels, np.int64),
        torch.cat(embeddings),
        None if cameras is None else np.array(cameras, np.int64),
        extras.get("group"),
    )


def check_one_model(query: EvaluationSet, gallery: EvaluationSet) -> None:
    """See whether two sets can have been embedded by one model.

    Raises:
        InputError: If their embeddings differ in length, or the files name different checkpoints.
    """
    sizes = [each.embeddings.shape[1] for each in (query, gallery)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{query.name} has embeddings of {sizes[0]} numbers and {gallery.name} of {sizes[1]}: embed both with one "
            "checkpoint"
        )
    if query.model and gallery.model and query.model != gallery.model:
        shown = [
            f"{each.model.get('checkpoint')} (step {each.model.get('step')})" for each in (query, gallery)
        ]
        raise InputError(
            f"{query.name} is of checkpoint {shown[0]} and {gallery.name} of {shown[1]}: embed both with one checkpoint"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
