"""The catalog: every image of a data set with its labels in one memory-mapped Arrow file.

The file holds exactly one record batch, so that a row is reached by two offsets and no column is ever copied:
any number of processes on a machine share one copy of the images in the page cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distmetric import __version__
from distmetric.data.splits import SPLITS
from distmetric.errors import InputError, ResourceError

FORMAT_VERSION = "1"

Integers = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]

# large_string throughout: the paths of some ten million images exceed the 2 GiB of a string column.
_REQUIRED = {
    "id": pa.int64(),
    "label": pa.int64(),
    "label_name": pa.large_string(),
    "split": pa.large_string(),
    "group": pa.large_string(),
    "path": pa.large_string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "image": pa.large_binary(),
}
_ROWS_PER_CHUNK = 65_536


class Catalog:
    """A data set that is open for reading, as numpy columns and encoded images.

    Row numbers (0 <= row < len) address everything; `ids` are what results are reported by. A catalog pickles
    as its path and is mapped again by whoever receives it, so the file has to be reachable there.

    Args:
        path: The catalog file, as `Catalog.open` takes it.

    Raises:
        InputError: The file is missing, is no catalog, is empty or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._batch = _read_batch(self.path)
        self.fingerprint: str = self._batch.schema.metadata[b"fingerprint"].decode()
        self.ids: Integers = self._numbers("id")
        self.labels: Integers = self._numbers("label")
        self.widths: npt.NDArray[np.int32] = self._numbers("width")
        self.heights: npt.NDArray[np.int32] = self._numbers("height")
        self.label_names: list[str] = self._names_by_label()
        if not _all_different(self.ids):
            raise InputError(
                f"{self.path}: the column id repeats a value; write the catalog again with unique ids"
            )
        images = self._batch.column("image")
        _, offsets, data = images.buffers()
        self._offsets = np.frombuffer(offsets, np.int64)[images.offset : images.offset + len(images) + 1]
        self._data = memoryview(data)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalog:
        """Map a catalog file.

        Args:
            path: The catalog file; it has to be on this machine, or on a file system mounted here.

        Returns:
            The catalog.

        Raises:
            InputError: The file is missing, is no catalog, is empty or contradicts itself.
        """
        return cls(path)

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def __repr__(self) -> str:
        return f"Catalog({str(self.path)!r}, {len(self):,} rows, {self.num_classes:,} classes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.fingerprint)

    @property
    def num_classes(self) -> int:
        """Number of classes over all splits; labels are 0 .. num_classes - 1."""
        return len(self.label_names)

    @property
    def image_nbytes(self) -> int:
        """Bytes of all encoded images together."""
        return int(self._offsets[-1] - self._offsets[0])

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows: train, validation, test, then others by name."""
        known = {name: number for number, name in enumerate(SPLITS)}
        names: list[str] = self._split_codes.dictionary.to_pylist()
        return tuple(sorted(names, key=lambda name: (known.get(name, len(known)), name)))

    def rows(self, split: str) -> Integers:
        """Row numbers of one split.

        Args:
            split: One of `splits`.

        Returns:
            int64 (R,), ascending.

        Raises:
            InputError: The catalog has no such split.
        """
        if split not in self.splits:
            raise InputError(
                f"{self.path}: no split is called {split!r}; choose one of {', '.join(self.splits)}"
            )
        code = self._split_codes.dictionary.to_pylist().index(split)
        return np.flatnonzero(self._split_codes.indices.to_numpy() == code).astype(np.int64)

    @cached_property
    def groups(self) -> Strings:
        """Group name of every row, (len,) of str."""
        return self._strings(self._batch.column("group"))

    @cached_property
    def cameras(self) -> Integers | None:
        """Camera number of every row, int64 (len,) with -1 where unknown; None if no row has one."""
        if "camera" not in self._batch.schema.names:
            return None
        return np.asarray(self._batch.column("camera").fill_null(-1).to_numpy(zero_copy_only=False), np.int64)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the attributes, sorted; empty if there are none."""
        if "attributes" not in self._batch.schema.names:
            return ()
        return tuple(field.name for field in self._batch.schema.field("attributes").type)

    def attribute(self, name: str) -> Strings:
        """One attribute of every row.

        Args:
            name: One of `attribute_names`.

        Returns:
            (len,) of str, None where the row does not say.

        Raises:
            InputError: The catalog has no such attribute.
        """
        if name not in self.attribute_names:
            known = ", ".join(self.attribute_names) or "it has none"
            raise InputError(f"{self.path}: no attribute is called {name!r}; choose one of: {known}")
        return self._strings(self._batch.column("attributes").field(name))

    def image_bytes(self, row: int) -> memoryview:
        """The encoded image of a row, as a view of the mapped file that costs no copy.

        Args:
            row: Row number.

        Returns:
            The bytes of the image file as it was ingested.

        Raises:
            IndexError: There is no such row.
        """
        self._check_row(row)
        return self._data[self._offsets[row] : self._offsets[row + 1]]

    def source_path(self, row: int) -> str:
        """Where the image of a row came from: a path, a URI, or an archive with the member's name.

        Args:
            row: Row number.

        Returns:
            The path as it was at ingest.

        Raises:
            IndexError: There is no such row.
        """
        self._check_row(row)
        return str(self._batch.column("path")[int(row)].as_py())

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a catalog with {len(self)} rows")

    @cached_property
    def _split_codes(self) -> Any:
        return self._batch.column("split").dictionary_encode()

    def _numbers(self, name: str) -> Any:
        return self._batch.column(name).to_numpy()

    @staticmethod
    def _strings(column: Any) -> Strings:
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.object_)

    def _names_by_label(self) -> list[str]:
        encoded = self._batch.column("label_name").dictionary_encode()
        codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        label_of = np.empty(len(names), np.int64)
        label_of[codes] = self.labels
        dense = np.array_equal(np.sort(label_of), np.arange(len(names)))
        if not dense or not np.array_equal(label_of[codes], self.labels):
            raise InputError(
                f"{self.path}: label and label_name are not one to one over 0 .. {len(names) - 1}; "
                "write the catalog again with CatalogWriter"
            )
        return [names[code] for code in np.argsort(label_of)]


def _reopen(path: str, fingerprint: str) -> Catalog:
    catalog = Catalog(path)
    if catalog.fingerprint != fingerprint:
        raise InputError(f"{path}: was replaced by another catalog while in use; start the run again")
    return catalog


def _read_batch(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder, not a catalog file" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: {what}; make a catalog with jobs/ingest.py")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        schema, num_batches = reader.schema, reader.num_record_batches
        batch = reader.get_batch(0) if num_batches else None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: is no catalog or is damaged ({reason}); ingest again") from None
    _check_schema(path, schema)
    if num_batches != 1 or batch is None or batch.num_rows == 0:
        rows = "no rows" if num_batches <= 1 else f"{num_batches} record batches instead of one"
        raise InputError(f"{path}: has {rows}; ingest again")
    for name in _REQUIRED:
        if batch.column(name).null_count:
            raise InputError(f"{path}: column {name} has empty values; ingest again")
    return batch


def _check_schema(path: Path, schema: Any) -> None:
    metadata = schema.metadata or {}
    version = metadata.get(b"format_version", b"").decode(errors="replace")
    if version != FORMAT_VERSION or b"fingerprint" not in metadata:
        found = f"is a catalog of version {version!r}" if version else "is an Arrow file, but no catalog"
        raise InputError(f"{path}: {found}; ingest again with this version, which reads {FORMAT_VERSION!r}")
    for name, kind in _REQUIRED.items():
        if name not in schema.names:
            raise InputError(f"{path}: the column {name} is missing; ingest again")
        if schema.field(name).type != kind:
            raise InputError(f"{path}: column {name} is {schema.field(name).type}, not {kind}; ingest again")
    if "camera" in schema.names and schema.field("camera").type != pa.int64():
        raise InputError(f"{path}: column camera is {schema.field('camera').type}, not int64; ingest again")
    if "attributes" in schema.names:
        kind = schema.field("attributes").type
        if not pa.types.is_struct(kind) or any(field.type != pa.large_string() for field in kind):
            raise InputError(
                f"{path}: column attributes is {kind}, not a struct of large_string; ingest again"
            )


def _all_different(ids: Integers) -> bool:
    # Ids are usually ascending, which is far cheaper to see than to sort them.
    return bool(np.all(ids[1:] > ids[:-1])) or len(np.unique(ids)) == len(ids)


class CatalogWriter:
    """Write a catalog image by image with bounded memory.

    Encoded images go to a spool file beside the target and are copied from there, memory-mapped, into the
    one record batch; twice their size is needed on the disk meanwhile. The target appears, or is replaced, in
    one step when everything is written. As a context manager it finishes on a clean exit and leaves nothing
    behind after an error. Labels are numbered by sorted class name, whatever the order of reading.

    Args:
        path: The catalog file to write; missing folders are made.

    Raises:
        InputError: The path is a folder.
        ResourceError: The disk is full.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder; name the catalog file to write")
        self.fingerprint: str | None = None
        self._offsets = array("q", [0])
        self._chunks: list[dict[str, Any]] = []
        self._pending: list[tuple[Any, ...]] = []
        self._hash = hashlib.sha256()
        stem = self.path.parent / f".{self.path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._spool_path, self._part_path = Path(f"{stem}.spool"), Path(f"{stem}.part")
        with _disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._spool: BinaryIO = self._spool_path.open("xb")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> CatalogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.fingerprint is None:
                self.finish()
        finally:
            self.abort()

    def add(
        self,
        image: bytes | memoryview,
        label_name: str,
        *,
        group: str,
        path: str,
        width: int,
        height: int,
        split: str | None = None,
        id: int | None = None,
        camera: int | None = None,
        attributes: Mapping[str, str | None] | None = None,
    ) -> None:
        """Append one image.

        Args:
            image: The encoded image file.
            label_name: Name of its class.
            group: Name of the group that its class belongs to.
            path: Where it came from.
            width: Width in pixels.
            height: Height in pixels.
            split: Name of its split; None where `finish` is told the splits by class.
            id: Unique number; the row number by default.
            camera: Number of the camera (>= 0), if known.
            attributes: Attribute values by name.

        Raises:
            InputError: The image is empty, the class has no name, or the camera is negative.
            ResourceError: The disk is full.
        """
        if not len(image) or not label_name:
            raise InputError(f"{path}: has {'no class name' if len(image) else 'no bytes'}; leave it out")
        if camera is not None and camera < 0:
            raise InputError(f"{path}: camera={camera} is negative; number the cameras from 0")
        with _disk(self.path):
            self._spool.write(image)
        self._hash.update(image)
        number = len(self) if id is None else id
        self._offsets.append(self._offsets[-1] + len(image))
        self._pending.append(
            (number, label_name, split, group, camera, dict(attributes or {}), path, width, height)
        )
        if len(self._pending) >= _ROWS_PER_CHUNK:
            self._flush()

    def finish(self, splits: Mapping[str, str] | None = None) -> str:
        """Write the catalog and put it in place.

        Args:
            splits: Split name of every class name; None if every image was added with its split.

        Returns:
            The fingerprint: a hash of ids, labels, class names, splits and image bytes in row order.

        Raises:
            InputError: Nothing was added, an id is repeated, or a row has no split.
            ResourceError: The disk is full.
        """
        if not len(self):
            raise InputError(f"{self.path}: there is no image to write; check the sources")
        self._flush()
        with _disk(self.path):
            self._spool.close()
        columns = self._columns(splits)
        fingerprint = self._fingerprint(columns)
        schema = pa.schema(
            [pa.field(name, column.type) for name, column in columns.items()],
            metadata={
                "format_version": FORMAT_VERSION,
                "fingerprint": fingerprint,
                "creator": f"distmetric {__version__}",
            },
        )
        with _disk(self.path):
            with self._part_path.open("xb") as sink:
                with pa.ipc.new_file(sink, schema) as writer:
                    writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
                os.fsync(sink.fileno())
            self._part_path.replace(self.path)
        self.fingerprint = fingerprint
        self.abort()
        return fingerprint

    def abort(self) -> None:
        """Give up: remove the temporary files and leave the target as it was. Safe to call again."""
        self._pending, self._chunks = [], []
        try:
            self._spool.close()
        finally:
            self._spool_path.unlink(missing_ok=True)
            self._part_path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._pending:
            return
        numbers, names, splits, groups, cameras, attributes, paths, widths, heights = zip(
            *self._pending, strict=True
        )
        known = sorted({name for row in attributes for name in row})
        text = pa.large_string()
        self._chunks.append(
            {
                "id": pa.array(numbers, pa.int64()),
                "label_name": pa.array(names, text),
                "split": pa.array(splits, text),
                "group": pa.array(groups, text),
                "camera": pa.array(cameras, pa.int64()),
                "attributes": {name: pa.array([row.get(name) for row in attributes], text) for name in known},
                "path": pa.array(paths, text),
                "width": pa.array(widths, pa.int32()),
                "height": pa.array(heights, pa.int32()),
            }
        )
        self._pending = []

    def _joined(self, name: str) -> Any:
        return pa.concat_arrays([chunk[name] for chunk in self._chunks])

    def _columns(self, splits: Mapping[str, str] | None) -> dict[str, Any]:
        ids, label_names = self._joined("id"), self._joined("label_name")
        if not _all_different(ids.to_numpy()):
            raise InputError(f"{self.path}: an id was added twice; give every image its own")
        names = sorted(pc.unique(label_names).to_pylist())
        labels = pc.index_in(label_names, value_set=pa.array(names, pa.large_string())).cast(pa.int64())
        columns = {"id": ids, "label": labels, "label_name": label_names}
        columns["split"] = self._split_column(names, labels, splits)
        columns["group"] = self._joined("group")
        cameras = self._joined("camera")
        if cameras.null_count < len(cameras):
            columns["camera"] = cameras
        if attributes := self._attribute_columns():
            columns["attributes"] = pa.StructArray.from_arrays(
                list(attributes.values()), names=list(attributes)
            )
        columns |= {name: self._joined(name) for name in ("path", "width", "height")}
        columns["image"] = self._image_column()
        return columns

    def _split_column(self, names: list[str], labels: Any, splits: Mapping[str, str] | None) -> Any:
        if splits is None:
            column = self._joined("split")
        else:
            column = pa.array([splits.get(name) for name in names], pa.large_string()).take(labels)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            name = names[labels[row].as_py()]
            raise InputError(f"{self.path}: an image of class {name!r} has no split; give every class one")
        return column

    def _attribute_columns(self) -> dict[str, Any]:
        names = sorted({name for chunk in self._chunks for name in chunk["attributes"]})
        return {
            name: pa.concat_arrays(
                [
                    chunk["attributes"].get(name, pa.nulls(len(chunk["id"]), pa.large_string()))
                    for chunk in self._chunks
                ]
            )
            for name in names
        }

    def _image_column(self) -> Any:
        with pa.memory_map(str(self._spool_path)) as spool:
            data = spool.read_buffer()
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self), [None, pa.py_buffer(self._offsets), data]
        )

    def _fingerprint(self, columns: Mapping[str, Any]) -> str:
        splits = columns["split"].dictionary_encode()
        names = sorted(pc.unique(columns["label_name"]).to_pylist())
        total = hashlib.sha256(f"distmetric catalog {FORMAT_VERSION}\0".encode())
        # Every part carries its length: otherwise bytes could move from one image to the next unnoticed.
        for part in (
            _little_endian(columns["id"]),
            _little_endian(columns["label"]),
            repr(names).encode(),
            repr(splits.dictionary.to_pylist()).encode(),
            _little_endian(splits.indices),
            np.asarray(self._offsets, "<i8").tobytes(),
            self._hash.digest(),
        ):
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
        return total.hexdigest()


def _little_endian(column: Any) -> bytes:
    return np.asarray(column.to_numpy(), "<i8").tobytes()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{path}: the disk is full; free some space or write elsewhere") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = error.strerror or str(error)
            raise InputError(f"{path}: cannot be written ({reason}); choose another place") from None
        raise
