"""From folders, archives and Parquet to a catalog: read once, checked, and never unpacked to disk."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from distmetric.data import splits as splitting
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.decode import (
    MAX_PIXELS,
    THREADS_PAY_BYTES,
    BadImageError,
    available_cores,
    check_image,
)
from distmetric.data.items import Item
from distmetric.data.joined import GROUP, Joiner
from distmetric.data.sources import MAX_IMAGE_BYTES, Sources
from distmetric.data.tally import IngestResult, Tally
from distmetric.data.turned import turned
from distmetric.errors import InputError
from distmetric.progress import Progress

__all__ = ["IngestResult", "ingest"]

_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20


def ingest(
    sources: Sequence[str],
    out: str | os.PathLike[str],
    *,
    layout: str | Sequence[str] | None = None,
    manifest: str | None = None,
    tracklet_folders: bool = False,
    split_by: str | None = None,
    test_fraction: float = 0.5,
    validation_fraction: float = 0.0,
    test_groups: Collection[str] = (),
    validation_groups: Collection[str] = (),
    seed: int = 0,
    turned_classes: bool = False,
    joined_classes: int = 0,
    allow_shared_classes: bool = False,
    on_bad_image: str = "skip",
    max_image_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
) -> IngestResult:
    """Read images with their classes from one or more sources into one catalog.

    A source is an image folder, a zip file, a tar file (plain or compressed by gzip), a Parquet file or a folder of
    Parquet files; a local path or any URI that `pyarrow.fs` opens. Sources are read in the given order, each in
    sorted order; classes of the same name are one class, and an image that an earlier source held under the same path
    with the same bytes is skipped.

    Folders and archives: the class of an image is its folder's path within the source (`Greek/character01`),
    the group the first part of it (`Greek`; with one level the class itself). A single folder at the top that
    holds everything is left out of both, as long as a folder remains below it. With `tracklet_folders` the innermost
    folder is a tracklet (`person7/walk1/0012.jpg`), the class is what is above it, and the number at the end of a
    file's name tells the place of the frame.

    Parquet: columns `image` (binary, or struct with `bytes` and `path` as Hugging Face writes it) and `label`
    (string or integer; integers get the names that Hugging Face metadata lists), optionally `split`, `group`,
    `camera`, `path`, `attributes` (struct), and `tracklet` (string or integer) with `frame` (integer).

    Args:
        sources: Where the images are.
        out: Catalog to write; an existing one is replaced when the new one is complete.
        layout: Name of a published data set (one of `LAYOUTS`) whose archive the source is, one for all sources or
            one for each: its own files say classes, splits, cameras and attributes. None: the folders do.
        manifest: CSV file for other layouts, columns path (within the source) and label, optionally split,
            group, camera, tracklet with frame, and attribute.NAME. Only images it names are read. With a layout, the
            file of the data set that lists the images, where it is not in the source.
        tracklet_folders: Whether the innermost folders of folders and archives are tracklets.
        split_by: "ratio" (a random share of the classes), "group" (named groups) or "given" (the split column
            of manifest or Parquet, or as the data set was published); None: given with a layout, else ratio.
        test_fraction: Share of the classes for testing, with "ratio".
        validation_fraction: Share of the classes for validation, with "ratio".
        test_groups: Groups for testing, with "group".
        validation_groups: Groups for validation, with "group".
        seed: Seed of the split, with "ratio", and of joined classes.
        turned_classes: Whether every class for training is there four times: as it is, and turned by 90, 180 and 270
            degrees as the classes NAME@90 ...; with "group" or "given", which say beforehand what is for training.
        joined_classes: How many classes for training are added that are made of others, see `Joiner`; with "group" or
            "given".
        allow_shared_classes: Accept a class in train and in test, with "given".
        on_bad_image: "skip" lists unusable images in the result, "error" stops at the first one.
        max_image_bytes: Most bytes of one image file, counted while unpacking.
        max_pixels: Most pixels of one image.
        threads: Threads that check images; by default the CPU cores that this process may use.

    Returns:
        What was written and what was left out.

    Raises:
        InputError: A source cannot be read, an option contradicts the data, fewer than two classes are left,
            or an image is unusable and `on_bad_image` is "error". The catalog at `out` is then as it was.
        ResourceError: The disk is full.
    """
    layouts = [layout] if isinstance(layout, str) else list(layout or ())
    split_by = split_by or ("given" if layouts else "ratio")
    _check_options(split_by, test_groups, on_bad_image, layouts, turned_classes, joined_classes)
    splitting.check_fractions(test_fraction, validation_fraction)
    started = time.monotonic()
    tally, joiner = Tally(on_bad_image == "error"), Joiner(joined_classes, seed)
    with CatalogWriter(out) as writer:
        listed = [sources] if isinstance(sources, str) else sources
        opened = Sources(listed, manifest, max_image_bytes, layouts, tracklet_folders)
        progress = Progress("images read", opened.total)
        for item, size in _checked(opened.items(tally), max_pixels, threads or available_cores()):
            # Reading counts duplicates too, which do not arrive here.
            progress.update(tally.read - progress.done, f"{len(tally.bad)} unusable" if tally.bad else "")
            if isinstance(size, BadImageError):
                tally.reject(item.origin, size)
            else:
                _write(writer, item, size, tally, split_by == "given")
                if _is_training(item, (*test_groups, *validation_groups)):
                    joiner.keep(item)
                    for copy, copy_size in turned(item) if turned_classes else ():
                        _write(writer, copy, copy_size, tally, split_by == "given")
        progress.update(tally.read - progress.done)
        progress.close()
        _join(writer, joiner, tally)
        if len(tally.classes) < 2:
            raise InputError(_too_few(tally))
        if split_by == "ratio":
            splits = splitting.by_ratio(tally.classes, test_fraction, seed, validation_fraction)
        elif split_by == "group":
            splits = splitting.by_group(tally.group_of_class(), test_groups, validation_groups)
        else:
            splitting.check_given(tally.given, allow_shared_classes, needs_training=not layouts)
            splits = None
        fingerprint = writer.finish(splits)
    return tally.result(writer, splits, fingerprint, time.monotonic() - started)


def _check_options(
    split_by: str,
    test_groups: Collection[str],
    on_bad_image: str,
    layouts: Collection[str],
    turned_classes: bool,
    joined_classes: int,
) -> None:
    if split_by not in ("ratio", "group", "given"):
        raise InputError(f"split_by={split_by!r}: choose ratio, group or given")
    if layouts and split_by != "given":
        raise InputError(f"split_by={split_by}: layout={','.join(layouts)} has splits; leave split_by out")
    if split_by == "group" and not test_groups:
        raise InputError("split_by=group needs test_groups: name the groups to test on")
    if joined_classes < 0:
        raise InputError(f"joined_classes={joined_classes} is wrong: give a number of classes, or 0")
    for setting, wanted in (
        ("turned_classes=true", turned_classes),
        (f"joined_classes={joined_classes}", joined_classes),
    ):
        if wanted and split_by == "ratio":
            raise InputError(
                f"{setting} needs to know beforehand which classes are for training: set split_by=group with "
                "test_groups, or split_by=given"
            )
    if on_bad_image not in ("skip", "error"):
        raise InputError(f"on_bad_image={on_bad_image!r}: choose skip or error")


def _is_training(item: Item, other_groups: Collection[str]) -> bool:
    split = item.labels.split
    return item.group not in other_groups if split is None else split == "train"


def _too_few(tally: Tally) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.bad_counts.most_common())
    found = f"one class only ({next(iter(tally.classes))!r})" if tally.classes else "no usable image"
    return (
        f"the sources hold {found}; unusable: {reasons or 'none'}; ignored files: {tally.ignored}; "
        "put each class in a folder of its own, or name a manifest"
    )


def _write(writer: CatalogWriter, item: Item, size: tuple[int, int], tally: Tally, given: bool) -> None:
    if given and not item.labels.split:
        raise InputError(f"{item.origin}: has no split; fill the split column, or use split_by=ratio")
    tally.accept(item)
    writer.add(
        item.data,
        item.class_name,
        group=item.group,
        path=item.origin,
        width=size[0],
        height=size[1],
        split=item.labels.split,
        camera=item.labels.camera,
        attributes=item.labels.attributes,
        tracklet=item.labels.tracklet,
        frame=item.labels.frame,
    )


def _join(writer: CatalogWriter, joiner: Joiner, tally: Tally) -> None:
    """Write the classes that are made of others.

    Raises:
        InputError: If a class has the name of one, or there is nothing to join.
    """
    if joiner.count == 0:
        return
    if taken := next((name for name in tally.classes if name.startswith(f"{GROUP}/")), None):
        raise InputError(f"class {taken!r} is named like a joined one: rename it, or set joined_classes=0")
    progress = Progress("classes joined", joiner.count)
    for images in joiner.joined():
        for item, size in images:
            _write(writer, item, size, tally, given=True)
        progress.update(1)
    progress.close()


def _checked(
    items: Iterable[Item], max_pixels: int, threads: int
) -> Iterator[tuple[Item, tuple[int, int] | BadImageError]]:
    """Every item with its width and height or what is wrong with it, in order, checked by several threads."""

    def check(item: Item) -> tuple[int, int] | BadImageError:
        try:
            return item.problem or check_image(item.data, max_pixels)
        except BadImageError as error:
            return error

    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        for batch in _batches(items):
            # Threads only get in each other's way where an image takes less time than passing it to one.
            large = sum(len(item.data) for item in batch) >= THREADS_PAY_BYTES * len(batch)
            yield from zip(batch, pool.map(check, batch) if large else map(check, batch), strict=True)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += len(item.data)
        if len(batch) >= _BATCH_ROWS or held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    yield batch
