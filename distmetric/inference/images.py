"""Images to embed, from a catalog, an image folder, an archive or a single image, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.data.catalog import Catalog
from distmetric.data.clips import ClipStore, sample_rows
from distmetric.data.decode import (
    THREADS_PAY_BYTES,
    BadImageError,
    ImageStore,
    available_cores,
    decode_image,
)
from distmetric.data.listing import ImageListing, ImageReader, ListedImage
from distmetric.errors import InputError
from distmetric.models.spec import EmbedderSpec
from distmetric.regular_files import open_regular

BATCH_SIZE = 512

BadImages = list[tuple[str, str]]


@dataclass
class ImageRows:
    """Decoded images with what is known about them.

    Attributes:
        ids: B different numbers; those of the catalog, else the place in the sorted list of all images.
        paths: Of the catalog's images as they were at ingest, else within the source.
        label_names: Class names; "" for an image that is in no folder.
        images: (B, C, H, W) uint8, or (B, T, C, H, W) for clips, as the model takes them. A clip goes by the id and the
            path of its tracklet's first frame.
        extras: Further columns, each B long: `group` (str), and of catalogs that have them `camera` (int, -1 where
            unknown) and `attribute.NAME` (str, None where unknown).
    """

    ids: list[int]
    paths: list[str]
    label_names: list[str]
    images: Tensor
    extras: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


class ImagePart(NamedTuple):
    """Images start .. stop - 1 of a source, to be read here or in another process.

    Attributes:
        start: First place.
        stop: Last place plus one.
        listed: The images, where the reader has no list of its own.
    """

    start: int
    stop: int
    listed: Sequence[ListedImage] = ()


class ImageSource(Protocol):
    """Images that can be read by their places. Pickled it can read parts, but may have forgotten its list."""

    columns: tuple[str, ...]
    """Names of the extras of `ImageRows`."""

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Changes with the images."""
        ...

    def part(self, start: int, stop: int) -> ImagePart:
        """Images start .. stop - 1."""
        ...

    def rows(
        self,
        part: ImagePart,
        model: EmbedderSpec,
        batch_size: int = BATCH_SIZE,
        bad: BadImages | None = None,
        threads: int | None = None,
    ) -> Iterator[ImageRows]:
        """Decode a part.

        Args:
            part: Of this source.
            model: Says the size and the channels of the images.
            batch_size: Places per batch; a batch is shorter by the images in it that cannot be read.
            bad: Gets (path, reason) of images that cannot be read; None stops at the first one instead.
            threads: That decode; by default as many as pay.

        Raises:
            InputError: An image cannot be read and `bad` is None, or it is one of a catalog.
        """
        ...


def image_batches(
    source: str,
    model: EmbedderSpec,
    *,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    bad: BadImages | None = None,
) -> Iterator[ImageRows]:
    """Decode all images of a source, batch by batch.

    Args:
        source: Catalog file, image folder, archive or a single image file; all but a catalog may be URIs.
        model: Says the size and the channels of the images: `config.model` of a checkpoint.
        split: Split of a catalog; None for all of it.
        batch_size: Images per batch; fewer in the last one, and where some cannot be read.
        bad: Gets (path, reason) of images that cannot be read; None stops at the first one instead.

    Yields:
        Batches in the order of the source, none of them empty.

    Raises:
        InputError: The source or the split is not there, it has no images, or one cannot be read.
    """
    opened = open_images(source, split, model.frames_per_clip)
    yield from opened.rows(opened.part(0, len(opened)), model, batch_size, bad)


def open_images(source: str, split: str | None = None, frames: int | None = None) -> ImageSource:
    """Find out what a source is, and list its images.

    Args:
        source: As `image_batches` takes it.
        split: Of a catalog.
        frames: Frames of a clip, into which the tracklets of a catalog are made; None for single images.

    Raises:
        InputError: The source or the split is not there, or it has no images.
    """
    if is_catalog(source):
        return CatalogImages(Catalog.open(Path(source).expanduser()), split, frames)
    if split is not None:
        raise InputError(f"split={split} but source={source} is no catalog: leave split out")
    listing = ImageListing(source)
    if len(listing) == 0:
        raise InputError(f"source={source}: there is no image in it")
    return ListedImages(listing.reader, listing)


def is_catalog(source: str) -> bool:
    """Whether a source is a local Arrow file, whatever its name."""
    path = Path(source).expanduser()
    if "://" in source:
        return False
    try:
        with open_regular(path) as file:
            return file.read(6) == b"ARROW1"
    except OSError:
        return False  # who opens it will say why


class CatalogImages:
    """The images of a catalog, or of one of its splits, in its order; or its tracklets, each as one clip.

    Args:
        catalog: Has to be reachable where this is unpickled; there it is seen to be the same one.
        split: None for all of it.
        frames: Frames of a clip; None for images.

    Raises:
        InputError: If there is no such split.
    """

    def __init__(self, catalog: Catalog, split: str | None, frames: int | None = None) -> None:
        self._catalog, self._split, self._frames = catalog, split, frames
        self._rows = sample_rows(catalog, split, frames)
        camera = () if catalog.cameras is None else ("camera",)
        self.columns = ("group", *camera, *(f"attribute.{name}" for name in catalog.attribute_names))

    def __reduce__(self) -> tuple[Any, ...]:
        return CatalogImages, (self._catalog, self._split, self._frames)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """That of the catalog, and the split."""
        return f"{self._catalog.fingerprint} {self._split or ''}".strip()

    def part(self, start: int, stop: int) -> ImagePart:
        """Rows start .. stop - 1 of the split."""
        return ImagePart(start, stop)

    def rows(
        self,
        part: ImagePart,
        model: EmbedderSpec,
        batch_size: int = BATCH_SIZE,
        bad: BadImages | None = None,  # noqa: ARG002 - ingest has left those out
        threads: int | None = None,
    ) -> Iterator[ImageRows]:
        """Decode a part; see `ImageSource`."""
        images = ImageStore(
            self._catalog, model.image_sides, model.channels, memory_limit_bytes=0, threads=threads
        )
        store = images if self._frames is None else ClipStore(images, self._frames)
        try:
            for start in range(part.start, part.stop, batch_size):
                rows = self._rows[start : min(start + batch_size, part.stop)]
                yield self._described(rows, store.images(rows))
        finally:
            images.close()

    def _described(self, rows: NDArray[np.int64], images: Tensor) -> ImageRows:
        catalog = self._catalog
        extras = {name: catalog.values(name, rows) for name in self.columns}
        names = [catalog.label_names[label] for label in catalog.labels[rows]]
        paths = [catalog.source_path(row) for row in rows]
        return ImageRows(catalog.ids[rows].tolist(), paths, names, images, extras)


class ListedImages:
    """Images by their names in a folder or archive; pickled, those of the parts it is given.

    Args:
        reader: Reads them.
        listing: All of them; None where only given parts are read.
    """

    def __init__(self, reader: ImageReader, listing: ImageListing | None = None) -> None:
        self._reader, self._listing = reader, listing
        self.columns: tuple[str, ...] = ("group",)

    def __reduce__(self) -> tuple[Any, ...]:
        return ListedImages, (self._reader,)

    def __len__(self) -> int:
        return len(self._list)

    @property
    def fingerprint(self) -> str:
        """Changes with names, sizes and times or checksums."""
        return self._list.fingerprint

    def part(self, start: int, stop: int) -> ImagePart:
        """Images start .. stop - 1 in sorted order."""
        return ImagePart(start, stop, self._list.images(start, stop))

    def rows(
        self,
        part: ImagePart,
        model: EmbedderSpec,
        batch_size: int = BATCH_SIZE,
        bad: BadImages | None = None,
        threads: int | None = None,
    ) -> Iterator[ImageRows]:
        """Decode a part; see `ImageSource`."""
        decode = partial(_decode, self._reader, model)
        with ThreadPoolExecutor(threads or available_cores(), thread_name_prefix="decode") as pool:
            for start in range(0, len(part.listed), batch_size):
                images = part.listed[start : start + batch_size]
                # Threads wait for the interpreter with small files, and one of them is as good as another.
                small = not self._reader.is_remote and _size(self._reader, images[0]) < THREADS_PAY_BYTES
                found = list(map(decode, images) if small else pool.map(decode, images))
                yield from _described(part.start + start, images, found, bad)

    @property
    def _list(self) -> ImageListing:
        assert self._listing is not None, "only the process that listed the images knows all of them"
        return self._listing


def _size(reader: ImageReader, image: ListedImage) -> int:
    try:
        return len(reader.read(image))
    except BadImageError:
        return 0


def _decode(
    reader: ImageReader, model: EmbedderSpec, image: ListedImage
) -> NDArray[np.uint8] | BadImageError:
    try:
        return decode_image(reader.read(image), model.image_sides, model.channels)
    except BadImageError as error:
        return error


def _described(
    start: int,
    images: Sequence[ListedImage],
    found: Sequence[NDArray[np.uint8] | BadImageError],
    bad: BadImages | None,
) -> Iterator[ImageRows]:
    """The images that could be read, if there are any."""
    good: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    for place, (image, outcome) in enumerate(zip(images, found, strict=True)):
        if not isinstance(outcome, BadImageError):
            good.append(place)
            pixels.append(outcome)
        elif bad is None:
            raise InputError(f"{image.origin}: {outcome}; remove or mend it") from None
        else:
            bad.append((image.origin, str(outcome)))
    if good:
        kept = [images[place] for place in good]
        yield ImageRows(
            [start + place for place in good],
            [image.path for image in kept],
            [image.class_name for image in kept],
            torch.from_numpy(np.stack(pixels)),
            {"group": [image.group for image in kept]},
        )
