"""From folders, zip files and Parquet to a catalog: read once, checked, and never extracted to disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from distmetric.data import splits as splitting
from distmetric.data.catalog import CatalogWriter
from distmetric.data.decode import (
    MAX_PIXELS,
    THREADS_PAY_BYTES,
    BadImageError,
    available_cores,
    check_image,
)
from distmetric.errors import InputError
from distmetric.progress import Progress

MAX_IMAGE_BYTES = 64 << 20
_FORMATS = "bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
_PARQUET_SUFFIXES = (".parquet", ".parq")
_MANIFEST_COLUMNS = ("path", "label", "split", "group", "camera")
_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did.

    Args:
        path: The catalog.
        rows: Images in it.
        classes: Classes in it.
        splits: Images by split.
        split_classes: Classes by split.
        bad_images: (path, reason) of every image that was left out.
        bad_counts: How many were left out, by kind of reason.
        duplicates_skipped: Images that an earlier source held under the same path with the same bytes.
        files_ignored: Files that are no images by their names, or that the manifest does not name.
        fingerprint: Fingerprint of the catalog; equal input gives equal fingerprints.
        seconds: How long it took.
    """

    path: str
    rows: int
    classes: int
    splits: dict[str, int]
    split_classes: dict[str, int]
    bad_images: tuple[tuple[str, str], ...]
    bad_counts: dict[str, int]
    duplicates_skipped: int
    files_ignored: int
    fingerprint: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values that JSON can hold."""
        return asdict(self) | {"bad_images": [list(pair) for pair in self.bad_images]}


def ingest(
    sources: Sequence[str],
    out: str | os.PathLike[str],
    *,
    manifest: str | None = None,
    split_by: str = "ratio",
    test_fraction: float = 0.5,
    validation_fraction: float = 0.0,
    test_groups: Collection[str] = (),
    validation_groups: Collection[str] = (),
    seed: int = 0,
    allow_shared_classes: bool = False,
    on_bad_image: str = "skip",
    max_image_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
) -> IngestResult:
    """Read images with their classes from one or more sources into one catalog.

    A source is an image folder, a zip file, a Parquet file or a folder of Parquet files; a local path or any
    URI that `pyarrow.fs` opens. Sources are read in the given order, each in sorted order; classes of the
    same name are one class, and an image that an earlier source held under the same path with the same bytes
    is skipped.

    Folders and zip files: the class of an image is its folder's path within the source (`Greek/character01`),
    the group the first part of it (`Greek`; with one level the class itself). A single folder at the top that
    holds everything is left out of both, as long as a folder remains below it.

    Parquet: columns `image` (binary, or struct with `bytes` and `path` as Hugging Face writes it) and `label`
    (string or integer; integers get the names that Hugging Face metadata lists), optionally `split`, `group`,
    `camera`, `path` and `attributes` (struct).

    Args:
        sources: Where the images are.
        out: Catalog to write; an existing one is replaced when the new one is complete.
        manifest: CSV file for other layouts, columns path (within the source) and label, optionally split,
            group, camera and attribute.NAME. Only images it names are read.
        split_by: "ratio" (a random share of the classes), "group" (named groups) or "given" (the split column
            of manifest or Parquet).
        test_fraction: Share of the classes for testing, with "ratio".
        validation_fraction: Share of the classes for validation, with "ratio".
        test_groups: Groups for testing, with "group".
        validation_groups: Groups for validation, with "group".
        seed: Seed of the split, with "ratio".
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
    _check_options(split_by, test_groups, on_bad_image)
    splitting.check_fractions(test_fraction, validation_fraction)
    started = time.monotonic()
    tally = _Tally(on_bad_image == "error")
    items = _read_sources(
        [sources] if isinstance(sources, str) else sources, manifest, max_image_bytes, tally
    )
    progress = Progress("images read")
    with CatalogWriter(out) as writer:
        for item, size in _checked(items, max_pixels, threads or available_cores()):
            progress.update(note=f"{len(tally.bad)} unusable" if tally.bad else "")
            if isinstance(size, BadImageError):
                tally.reject(item.origin, size)
            else:
                _write(writer, item, size, tally, split_by == "given")
        progress.close()
        if len(tally.classes) < 2:
            raise InputError(_too_few(tally))
        if split_by == "ratio":
            splits = splitting.by_ratio(tally.classes, test_fraction, seed, validation_fraction)
        elif split_by == "group":
            splits = splitting.by_group(tally.group_of_class(), test_groups, validation_groups)
        else:
            splitting.check_given(tally.given, allow_shared_classes)
            splits = None
        fingerprint = writer.finish(splits)
    return tally.result(writer, splits, fingerprint, time.monotonic() - started)


def iterate_images(
    source: str, max_image_bytes: int = MAX_IMAGE_BYTES, bad: list[tuple[str, str]] | None = None
) -> Iterator[tuple[str, str, bytes]]:
    """Read the images of a folder or zip file one by one, in sorted order and without decoding them.

    Args:
        source: Image folder or zip file; a local path or any URI that `pyarrow.fs` opens.
        max_image_bytes: Most bytes of one image file, counted while unpacking.
        bad: Gets (path, reason) of every image that cannot be read; None stops at the first one instead.

    Yields:
        Path within the source (less a single folder at the top that holds everything), class name ("" for an
        image that is in no folder), encoded image.

    Raises:
        InputError: The source cannot be read, or an image cannot and `bad` is None.
    """
    tally = _Tally(stop_at_bad=bad is None)
    place = _locate(source)
    if place.kind == "parquet":
        raise InputError(f"{place.shown}: holds Parquet; name a folder of images or a zip file")
    for item in _tree_items(_open_tree(place), None, max_image_bytes, tally):
        if item.problem is None or item.problem.reason == _NO_FOLDER:
            yield item.path, item.class_name, item.data
        else:
            tally.reject(item.origin, item.problem)
            if bad is not None:
                bad.append(tally.bad[-1])


_NO_FOLDER = "in no class folder"


@dataclass(frozen=True)
class _Labels:
    """What is said about an image."""

    class_name: str
    group: str | None = None
    split: str | None = None
    camera: int | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Item:
    """An image on its way from a source to the catalog; `problem` says why there is no data."""

    path: str
    origin: str
    labels: _Labels = _Labels("")
    data: bytes = b""
    problem: BadImageError | None = None

    @property
    def class_name(self) -> str:
        return self.labels.class_name

    @property
    def group(self) -> str:
        return self.labels.group or self.class_name.partition("/")[0]


class _Tally:
    """Everything an ingest counts."""

    def __init__(self, stop_at_bad: bool) -> None:
        self._stop_at_bad = stop_at_bad
        self.bad: list[tuple[str, str]] = []
        self.bad_counts: Counter[str] = Counter()
        self.duplicates = 0
        self.ignored = 0
        self.classes: Counter[str] = Counter()
        self.groups: dict[str, set[str]] = {}
        self.given: Counter[tuple[str, str]] = Counter()

    def reject(self, origin: str, error: BadImageError) -> None:
        if self._stop_at_bad:
            raise InputError(
                f"{origin}: {error}; remove or mend it, or set on_bad_image=skip to leave it out"
            )
        self.bad.append((origin, str(error)))
        self.bad_counts[error.reason] += 1

    def accept(self, item: _Item) -> None:
        self.classes[item.class_name] += 1
        self.groups.setdefault(item.class_name, set()).add(item.group)
        if item.labels.split is not None:
            self.given[item.class_name, item.labels.split] += 1

    def group_of_class(self) -> dict[str, str]:
        for name, groups in self.groups.items():
            if len(groups) > 1:
                listed = ", ".join(sorted(groups)[:3])
                raise InputError(
                    f"class {name!r} is in several groups ({listed}); give it one, or use split_by=ratio"
                )
        return {name: next(iter(groups)) for name, groups in self.groups.items()}

    def result(
        self, writer: CatalogWriter, splits: Mapping[str, str] | None, fingerprint: str, seconds: float
    ) -> IngestResult:
        rows, classes = Counter[str](), Counter[str]()
        pairs = self.given if splits is None else {(n, splits[n]): count for n, count in self.classes.items()}
        for (_, split), count in pairs.items():
            rows[split] += count
            classes[split] += 1
        return IngestResult(
            path=str(writer.path),
            rows=len(writer),
            classes=len(self.classes),
            splits=dict(sorted(rows.items())),
            split_classes=dict(sorted(classes.items())),
            bad_images=tuple(self.bad),
            bad_counts=dict(sorted(self.bad_counts.items())),
            duplicates_skipped=self.duplicates,
            files_ignored=self.ignored,
            fingerprint=fingerprint,
            seconds=seconds,
        )


def _check_options(split_by: str, test_groups: Collection[str], on_bad_image: str) -> None:
    if split_by not in ("ratio", "group", "given"):
        raise InputError(f"split_by={split_by!r}: choose ratio, group or given")
    if split_by == "group" and not test_groups:
        raise InputError("split_by=group needs test_groups: name the groups to test on")
    if on_bad_image not in ("skip", "error"):
        raise InputError(f"on_bad_image={on_bad_image!r}: choose skip or error")


def _too_few(tally: _Tally) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.bad_counts.most_common())
    found = f"one class only ({next(iter(tally.classes))!r})" if tally.classes else "no usable image"
    return (
        f"the sources hold {found}; unusable: {reasons or 'none'}; ignored files: {tally.ignored}; "
        "put each class in a folder of its own, or name a manifest"
    )


def _write(writer: CatalogWriter, item: _Item, size: tuple[int, int], tally: _Tally, given: bool) -> None:
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
    )


def _checked(
    items: Iterable[_Item], max_pixels: int, threads: int
) -> Iterator[tuple[_Item, tuple[int, int] | BadImageError]]:
    """Every item with its width and height or what is wrong with it, in order, checked by several threads."""

    def check(item: _Item) -> tuple[int, int] | BadImageError:
        try:
            return item.problem or check_image(item.data, max_pixels)
        except BadImageError as error:
            return error

    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        for batch in _batches(items):
            # Threads only get in each other's way where an image takes less time than passing it to one.
            large = sum(len(item.data) for item in batch) >= THREADS_PAY_BYTES * len(batch)
            yield from zip(batch, pool.map(check, batch) if large else map(check, batch), strict=True)


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += len(item.data)
        if len(batch) >= _BATCH_ROWS or held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    yield batch


def _read_sources(sources: Sequence[str], manifest: str | None, limit: int, tally: _Tally) -> Iterator[_Item]:
    if not sources:
        raise InputError("sources is empty; name a folder, a zip file or Parquet")
    rows = None if manifest is None else _read_manifest(manifest)
    found = set[str]()
    seen: dict[bytes, int] = {}
    places = [_locate(source) for source in sources]
    for number, place in enumerate(places):
        if place.kind != "parquet":
            items = _tree_items(_open_tree(place), rows, limit, tally)
        elif rows is None:
            items = _parquet_items(place, limit)
        else:
            raise InputError(
                f"{place.shown}: a manifest cannot describe Parquet; add its columns to the file"
            )
        for item in items:
            if rows is not None:
                found.add(item.path)
            # One source has no second copy of a path, and a hash of everything is not free.
            if len(places) > 1 and item.problem is None and seen.setdefault(_digest(item), number) != number:
                tally.duplicates += 1
            else:
                yield item
    for path in sorted((rows or {}).keys() - found):
        yield _Item(path, path, problem=BadImageError("named in the manifest, but in no source"))


def _digest(item: _Item) -> bytes:
    name = f"{item.class_name}\0{item.path}\0".encode()
    return hashlib.blake2b(name + hashlib.blake2b(item.data).digest(), digest_size=16).digest()


class _Place(NamedTuple):
    """A source that exists: its kind (folder, zip, parquet), where it is, and how to name it to people."""

    kind: str
    fs: Any
    path: str
    shown: str
    files: tuple[tuple[str, str], ...] = ()


def _locate(source: str) -> _Place:
    shown = _without_secrets(source)
    fs, path = _file_system(source, shown)
    try:
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            files = _walk_local(path) if isinstance(fs, pafs.LocalFileSystem) else _walk_remote(fs, path)
            return _Place(_kind_of_folder(files, shown), fs, path, shown.rstrip("/"), tuple(sorted(files)))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shown}: cannot be read ({_first_line(error)})") from None
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{shown}: does not exist; name a folder, a zip file or Parquet")
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".zip":
        return _Place("zip", fs, path, shown)
    if suffix in _PARQUET_SUFFIXES:
        return _Place("parquet", fs, path, shown, ((posixpath.basename(path), path),))
    raise InputError(f"{shown}: is neither a folder nor .zip nor .parquet; convert it to one of them")


def _file_system(source: str, shown: str) -> tuple[Any, str]:
    if "://" not in source:
        return pafs.LocalFileSystem(), str(Path(source).expanduser().absolute())
    try:
        fs, path = pafs.FileSystem.from_uri(source)
    except (OSError, ValueError) as error:
        # Arrow quotes what it was given, and that may hold keys.
        reason = _first_line(error) if source == shown else "check its scheme, host and options"
        raise InputError(f"{shown}: cannot be opened ({reason})") from None
    return fs, path


def _without_secrets(source: str) -> str:
    """A URI without user, password and query, which may carry keys; other paths as they are."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _walk_local(top: str) -> list[tuple[str, str]]:
    """(name within, path to open) of every file; links are followed, but no folder is entered twice."""
    files, visited = [], set()
    for folder, subfolders, names in os.walk(top, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        within = os.path.relpath(folder, top)
        for name in names:
            shown = posixpath.normpath(posixpath.join(within.replace(os.sep, "/"), name))
            files.append((_readable(shown), os.path.join(folder, name)))  # noqa: PTH118 - may not be UTF-8
    return files


def _walk_remote(fs: Any, top: str) -> list[tuple[str, str]]:
    found = fs.get_file_info(pafs.FileSelector(top, recursive=True))
    return [(posixpath.relpath(f.path, top), f.path) for f in found if f.type == pafs.FileType.File]


def _readable(name: str) -> str:
    """A name that Arrow and a one-line message can hold: no stray bytes, no line breaks."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _kind_of_folder(files: list[tuple[str, str]], shown: str) -> str:
    suffixes = {posixpath.splitext(name)[1].lower() for name, _ in files if not _is_hidden(name)}
    if not suffixes.intersection(_PARQUET_SUFFIXES):
        return "folder"
    if suffixes & IMAGE_SUFFIXES:
        raise InputError(f"{shown}: holds both images and Parquet files; name the folder of one kind")
    return "parquet"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class _Entry(NamedTuple):
    """A file of a folder or zip file: its name, whether the name stays inside, and how to open it."""

    name: str
    safe: bool
    handle: Any


class _Tree(Protocol):
    shown: str
    entries: list[_Entry]

    def read(self, handle: Any, limit: int) -> bytes: ...


def _open_tree(place: _Place) -> _Tree:
    return _Zip(place) if place.kind == "zip" else _Folder(place)


class _Folder:
    def __init__(self, place: _Place) -> None:
        self.shown = place.shown
        self.entries = [_Entry(name, True, path) for name, path in place.files]
        self._open: Callable[[str], Any] = place.fs.open_input_stream
        if isinstance(place.fs, pafs.LocalFileSystem):
            self._open = _open_local

    def read(self, handle: str, limit: int) -> bytes:
        try:
            with self._open(handle) as stream:
                return _read_limited(stream, limit)
        except OSError as error:
            raise BadImageError("unreadable", error.strerror or _first_line(error)) from None


def _open_local(path: str) -> Any:
    if not os.path.isfile(path):  # noqa: PTH113 - a pipe would be waited for without end
        raise OSError(None, "not a regular file")
    return open(path, "rb")


# What zipfile raises for archives that are damaged, in its own words or by stumbling over them.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


class _Zip:
    def __init__(self, place: _Place) -> None:
        self.shown = place.shown
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(place.fs.open_input_file(place.path), 1 << 18))
        except UnicodeDecodeError:
            raise InputError(f"{self.shown}: has member names that are not UTF-8; pack it again") from None
        except _ZIP_ERRORS as error:
            raise InputError(f"{self.shown}: is no usable zip file ({_first_line(error)})") from None
        members = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        self.entries = sorted(map(_entry, members), key=lambda entry: entry.name)

    def read(self, handle: zipfile.ZipInfo, limit: int) -> bytes:
        if handle.flag_bits & 0x1:
            raise BadImageError("encrypted")
        # Others unpack a whole block at once, whatever it grows to.
        if handle.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImageError("compression is neither store nor deflate")
        try:
            with self._zip.open(handle) as stream:
                return _read_limited(stream, limit)
        except _ZIP_ERRORS as error:
            raise BadImageError("damaged in the zip file", _first_line(error)) from None


def _entry(info: zipfile.ZipInfo) -> _Entry:
    name = info.filename
    if not info.flag_bits & 0x800:
        # Without the flag the standard says code page 437, but most programs wrote UTF-8.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    clean, safe = _clean(name)
    return _Entry(_readable(clean), safe, info)


def _clean(name: str) -> tuple[str, bool]:
    """A member's name with forward slashes and without empty parts, and whether it stays inside."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    safe = not name.startswith("/") and ".." not in parts and not re.match(r"[A-Za-z]:", name)
    return ("/".join(parts), True) if safe else (name, False)


def _read_limited(stream: Any, limit: int) -> bytes:
    parts, left = [], limit + 1
    while left > 0 and (part := stream.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise BadImageError("too many bytes", f"limit {limit:,}")
    return b"".join(parts)


def _tree_items(
    tree: _Tree, rows: Mapping[str, _Labels] | None, limit: int, tally: _Tally
) -> Iterator[_Item]:
    chosen = [entry for entry in tree.entries if not entry.safe or _is_wanted(entry.name, rows)]
    tally.ignored += len(tree.entries) - len(chosen)
    root = "" if rows is not None else _common_root([entry.name for entry in chosen if entry.safe])
    for name, safe, handle in chosen:
        path = name.removeprefix(root) if safe else name
        labels = _Labels(posixpath.dirname(path)) if rows is None or not safe else rows[name]
        item = _Item(path, f"{tree.shown}/{name}", labels)
        try:
            if not safe:
                raise BadImageError("unsafe member name")
            item = replace(item, data=tree.read(handle, limit))
            if not labels.class_name:
                raise BadImageError(_NO_FOLDER)
            yield item
        except BadImageError as error:
            yield replace(item, problem=error)


def _is_wanted(name: str, rows: Mapping[str, _Labels] | None) -> bool:
    if rows is not None:
        return name in rows
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES and not _is_hidden(name)


def _common_root(names: Sequence[str]) -> str:
    """The folder, with its slash, that holds all names and still has a folder above each of them."""
    root = names[0].partition("/")[0] + "/" if names else ""
    inside = all(name.startswith(root) and "/" in name[len(root) :] for name in names)
    return root if inside else ""


def _read_manifest(source: str) -> dict[str, _Labels]:
    shown = _without_secrets(source)
    fs, path = _file_system(source, shown)
    try:
        with fs.open_input_stream(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{shown}: cannot be read ({_first_line(error)}); it has to be CSV in UTF-8"
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    _check_manifest_columns(shown, reader.fieldnames or [])
    rows: dict[str, _Labels] = {}
    for row in reader:
        where = f"{shown}, line {reader.line_num}"
        name, safe = _clean((row["path"] or "").strip())
        if not name or not safe or name in rows:
            wrong = (
                "is empty" if not name else "is given twice" if name in rows else "leads outside the source"
            )
            raise InputError(f"{where}: path {row['path']!r} {wrong}; give each image its path in the source")
        rows[name] = _manifest_row(where, row)
    return rows


def _check_manifest_columns(shown: str, columns: Sequence[str]) -> None:
    for required in ("path", "label"):
        if required not in columns:
            raise InputError(
                f"{shown}: the column {required} is missing; it has: {', '.join(columns) or 'none'}"
            )
    for column in columns:
        if column not in _MANIFEST_COLUMNS and not column.startswith("attribute."):
            raise InputError(
                f"{shown}: unknown column {column!r}; known are {', '.join(_MANIFEST_COLUMNS)}, "
                "attribute.NAME"
            )


def _manifest_row(where: str, row: Mapping[str, str | None]) -> _Labels:
    values = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    if len(values) < len(row):
        raise InputError(f"{where}: has more fields than the header; put quotes around commas")
    if not values["label"]:
        raise InputError(f"{where}: label is empty; give each image a class")
    camera = values.get("camera", "")
    if camera and not (camera.isascii() and camera.isdigit()):
        raise InputError(f"{where}: camera={camera!r} is no whole number from 0; number the cameras")
    return _Labels(
        class_name=values["label"],
        group=values.get("group") or None,
        split=values.get("split") or None,
        camera=int(camera) if camera else None,
        attributes={
            key.removeprefix("attribute."): value or None
            for key, value in values.items()
            if key.startswith("attribute.")
        },
    )


def _parquet_items(place: _Place, limit: int) -> Iterator[_Item]:
    for relative, path in place.files:
        if not relative.lower().endswith(_PARQUET_SUFFIXES) or _is_hidden(relative):
            continue
        shown = (
            place.shown if len(place.files) == 1 and relative in place.shown else f"{place.shown}/{relative}"
        )
        try:
            with place.fs.open_input_file(path) as stream:
                yield from _parquet_rows(pq.ParquetFile(stream), shown, relative, limit)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shown}: is no usable Parquet file ({_first_line(error)})") from None


def _parquet_rows(parquet: Any, shown: str, relative: str, limit: int) -> Iterator[_Item]:
    schema = parquet.schema_arrow
    _check_parquet_schema(schema, shown)
    names = _hugging_face_names(schema)
    optional = ("split", "group", "camera", "path", "attributes")
    columns = ["image", "label", *(name for name in optional if name in schema.names)]
    number = 0
    for batch in parquet.iter_batches(batch_size=64, columns=columns):
        for row in batch.to_pylist():
            yield _parquet_item(row, f"{shown}#{number}", f"{relative}#{number}", names, limit)
            number += 1


def _parquet_item(
    row: Mapping[str, Any], origin: str, number: str, names: Sequence[str] | None, limit: int
) -> _Item:
    image = row["image"]
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    path = _text(row.get("path")) or path
    label = row["label"]
    if names is not None and label is not None and 0 <= label < len(names):
        label = names[label]
    labels = _Labels(
        class_name="" if label is None else str(label),
        group=_text(row.get("group")),
        split=_text(row.get("split")),
        camera=row.get("camera"),
        attributes={key: _text(value) for key, value in (row.get("attributes") or {}).items()},
    )
    item = _Item(path or number, f"{origin} ({_readable(path)})" if path else origin, labels)
    if data is None:
        return replace(item, problem=BadImageError("no bytes", "only a path" if path else ""))
    if len(data) > limit:
        return replace(item, problem=BadImageError("too many bytes", f"limit {limit:,}"))
    return replace(item, data=data, problem=None if labels.class_name else BadImageError("no label"))


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _check_parquet_schema(schema: Any, shown: str) -> None:
    for required in ("image", "label"):
        if required not in schema.names:
            raise InputError(f"{shown}: the column {required} is missing; it has: {', '.join(schema.names)}")
    image, label = (schema.field(name).type for name in ("image", "label"))
    fields = {f.name: f.type for f in image} if pa.types.is_struct(image) else {"bytes": image}
    if not (_is_binary(fields.get("bytes")) and pa.types.is_string(fields.get("path", pa.string()))):
        raise InputError(f"{shown}: column image is {image}; it has to be binary or struct<bytes, path>")
    kind = label.value_type if pa.types.is_dictionary(label) else label
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{shown}: column label is {label}; it has to be string or integer")
    if "camera" in schema.names and not pa.types.is_integer(schema.field("camera").type):
        raise InputError(f"{shown}: column camera is {schema.field('camera').type}; it has to be integer")
    if "attributes" in schema.names and not pa.types.is_struct(schema.field("attributes").type):
        raise InputError(f"{shown}: column attributes is {schema.field('attributes').type}; make it a struct")


def _is_binary(kind: Any) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _hugging_face_names(schema: Any) -> list[str] | None:
    """Class names that Hugging Face's `datasets` stores beside integer labels, if it wrote the file."""
    if not pa.types.is_integer(schema.field("label").type):
        return None
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]
