"""The two sides of a search: embeddings with what tells their images apart and shows them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.data.catalog import Catalog
from distmetric.errors import InputError
from distmetric.index.embedding_file import read_embedding_file
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.evaluation_sets import set_of_images
from distmetric.inference.images import BadImages, ImageSource, is_catalog, open_images
from distmetric.locations import absolute, open_location
from distmetric.models.spec import ConvSpec, EmbedderSpec

PICTURE_SIDE = 128
"""Pixels of a picture in a grid."""


@dataclass(frozen=True, eq=False)
class SourceMark:
    """What embeddings were made of, so that it can be recognized.

    Attributes:
        source: Absolute path or URI.
        split: Of a catalog; None for all of it.
        fingerprint: Changes with its content.
        identity: Equal for two sets in which equal ids are the same images.
        has_files: Whether paths are those of image files, which any other folder may name as well.
        is_file: Whether it is a file of embeddings.
    """

    source: str
    split: str | None
    fingerprint: str
    identity: str
    has_files: bool
    is_file: bool


@dataclass(frozen=True, eq=False)
class SearchSet:
    """Images by row.

    Attributes:
        name: What messages call it: key=value.
        mark: What it was made of.
        ids: (N,) int64: of a catalog, or of a file of embeddings; else the place in the sorted list of images.
        paths: (N,) Arrow strings: where each image is, or was at ingest; of a file of embeddings what that says.
        label_names: (N,) Arrow strings; "" where an image has no class.
    """

    name: str
    mark: SourceMark
    ids: NDArray[np.int64]
    paths: Any
    label_names: Any

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> str:
        """Where the image of a row is."""
        return str(self.paths[row])

    def label_name(self, row: int) -> str | None:
        """The class of a row; None where it has none."""
        return str(self.label_names[row]) or None

    @cached_property
    def known_names(self) -> frozenset[str]:
        """Names of all classes."""
        return frozenset(self.label_names.unique().to_pylist()) - {""}

    def rows_of(self, others: SearchSet) -> Tensor:
        """(len(others),) int64: the row here that is the same image, -1 where there is none.

        The same is what has the same id in the same source, or is the same file. Equal pixels do not count.
        """
        found = np.full(len(others), -1, np.int64)
        if self.mark.has_files and others.mark.has_files:
            place = {path: row for row, path in enumerate(self.paths.to_pylist())}
            found[:] = [place.get(path, -1) for path in others.paths.to_pylist()]
        elif self.mark.identity == others.mark.identity:
            order = np.argsort(self.ids, kind="stable")
            at = np.searchsorted(self.ids[order], others.ids).clip(max=len(self) - 1)
            same = self.ids[order][at] == others.ids
            found[same] = order[at][same]
        return torch.from_numpy(found)


def mark_of_images(source: str, split: str | None) -> SourceMark:
    """Look at a catalog, image folder, archive or image, without reading images.

    Raises:
        InputError: If it is not there, or has no images.
    """
    location = absolute(source)
    fingerprint = open_images(location, split).fingerprint
    if not is_catalog(location):
        return SourceMark(location, split, fingerprint, location, has_files=True, is_file=False)
    identity = f"catalog {Catalog.open(location).fingerprint}"
    return SourceMark(location, split, fingerprint, identity, has_files=False, is_file=False)


def mark_of_file(source: str) -> SourceMark:
    """Look at a file of embeddings.

    Raises:
        InputError: If it is not there.

    Cost: reads it once.
    """
    location = absolute(source)
    filesystem, path = open_location(location)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path) as stream:
            while part := stream.read(1 << 22):
                digest.update(part)
    except OSError:
        raise InputError(f"{source} does not exist, or cannot be read") from None
    found = digest.hexdigest()
    return SourceMark(location, None, found, f"embeddings {found}", has_files=False, is_file=True)


def embedded_images(
    embedder: CheckpointEmbedder, mark: SourceMark, key: str, batch_size: int, bad: BadImages
) -> tuple[SearchSet, Tensor]:
    """Embed a catalog, image folder, archive or image.

    Args:
        embedder: Of a checkpoint.
        mark: Of the images.
        key: The setting that named them.
        batch_size: Images per forward pass.
        bad: Gets (path, reason) of images that cannot be read.

    Returns:
        The images that could be read, and their embeddings (N, D) float32.

    Raises:
        InputError: If none can be read.
    """
    found = set_of_images(embedder, mark.source, key, mark.split, batch_size, bad)
    paths = list(found.paths)
    if mark.has_files:
        images = open_images(mark.source)
        listed = images.part(0, len(images)).listed
        paths = [listed[place].origin for place in found.ids]
    names = pa.array(found.label_names, pa.large_string()).take(pa.array(found.labels))
    return (
        SearchSet(found.name, mark, found.ids, pa.array(paths, pa.large_string()), names),
        found.embeddings,
    )


def embeddings_of_file(mark: SourceMark, key: str) -> tuple[SearchSet, Tensor, str | None]:
    """Read a file of embeddings.

    Returns:
        Its rows, their embeddings (N, D) float32, and the checkpoint that the file says it is from.

    Raises:
        InputError: If it is none.
    """
    found = read_embedding_file(mark.source)
    names = pa.array(found.label_names, pa.large_string()).take(pa.array(found.labels))
    paths = pa.array(found.paths.to_pylist(), pa.large_string())
    rows = SearchSet(f"{key}={mark.source}", mark, found.ids, paths, names)
    return rows, found.embeddings, found.metadata.get("checkpoint")


class Pictures:
    """Pictures of rows, read from the images that they were made from.

    Args:
        source: Catalog, image folder, archive or image; absolute.
        ids: (N,) of the rows, as `SearchSet` has them.

    Raises:
        InputError: If it is not there, or has no images.
    """

    def __init__(self, source: str, ids: NDArray[np.int64]) -> None:
        self._images: ImageSource = open_images(source)
        self._ids = ids
        self._catalog_ids = Catalog.open(source).ids if is_catalog(source) else None
        self._model: EmbedderSpec = ConvSpec(image_size=PICTURE_SIDE, channels=3)

    def __len__(self) -> int:
        return len(self._ids)

    def picture(self, row: int) -> NDArray[np.uint8] | None:
        """(3, H, W), stretched to a square as the model sees it; None where there is none."""
        place = int(self._ids[row])
        if self._catalog_ids is not None:
            found = np.flatnonzero(self._catalog_ids == place)
            place = int(found[0]) if len(found) else -1
        if not 0 <= place < len(self._images):
            return None
        part = self._images.part(place, place + 1)
        for read in self._images.rows(part, self._model, 1, bad=[], threads=1):
            pixels: NDArray[np.uint8] = read.images[0].numpy()
            return pixels
        return None


def tiles(of: Pictures | None, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Pictures by row; a gray tile where there is none."""
    blank = np.full((3, PICTURE_SIDE, PICTURE_SIDE), 190, np.uint8)
    found = {}
    for row in sorted(set(rows)):
        picture = None if of is None else of.picture(row)
        found[row] = blank if picture is None else picture
    return found
