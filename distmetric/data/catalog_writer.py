"""How a catalog is written: image by image, in bounded memory, and in place only when it is complete."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distmetric import __version__
from distmetric.data.catalog_format import (
    CHECKSUM,
    FORMAT_VERSION,
    IMAGE_CHECKSUMS,
    all_different,
    checksum,
)
from distmetric.data.tracklets import Tracklets
from distmetric.errors import InputError, ResourceError

_ROWS_PER_CHUNK = 65_536
_MAX_INT64 = 2**63 - 1
# Not the version of the file's format: equal data keep their fingerprint when that changes.
_FINGERPRINT = b"distmetric catalog 1\0"


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
        self._checksums = array("I")
        self._chunks: list[dict[str, Any]] = []
        self._pending: list[tuple[Any, ...]] = []
        self._hash = hashlib.sha256()
        stem = self.path.parent / f".{self.path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._spool_path, self._part_path = Path(f"{stem}.spool"), Path(f"{stem}.part")
        self._made = [folder for folder in self.path.parents if not folder.exists()]
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
        tracklet: str | None = None,
        frame: int | None = None,
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
            tracklet: Name of the tracklet that it is a frame of, unique over all classes; goes with `frame`.
            frame: Its place in the tracklet (>= 0).

        Raises:
            InputError: The image is empty, the class has no name, a number is negative, or of tracklet and frame there
                is one only.
            ResourceError: The disk is full.
        """
        if not len(image) or not label_name:
            raise InputError(f"{path}: has {'no class name' if len(image) else 'no bytes'}; leave it out")
        if (tracklet is None) != (frame is None):
            given, missing = ("tracklet", "frame") if frame is None else ("frame", "tracklet")
            raise InputError(f"{path}: has a {given} and no {missing}; give both or neither")
        for name, value in (("camera", camera), ("id", id), ("frame", frame)):
            if value is not None and not 0 <= value <= _MAX_INT64:
                wrong = "is negative" if value < 0 else "is too large"
                raise InputError(f"{path}: {name}={value} {wrong}; number the {name}s from 0")
        with _disk(self.path):
            self._spool.write(image)
        self._hash.update(image)
        self._checksums.append(zlib.crc32(image))
        number = len(self) if id is None else id
        self._offsets.append(self._offsets[-1] + len(image))
        self._pending.append(
            (
                *(number, label_name, split, group, camera, dict(attributes or {}), path, width, height),
                *(tracklet, frame),
            )
        )
        if len(self._pending) >= _ROWS_PER_CHUNK:
            self._flush()

    def finish(self, splits: Mapping[str, str] | None = None) -> str:
        """Write the catalog and put it in place.

        Args:
            splits: Split name of every class name; None if every image was added with its split.

        Returns:
            The fingerprint: a hash of ids, labels, class names, splits, image bytes and tracklets in row order.

        Raises:
            InputError: Nothing was added, an id is repeated, a row has no split, or a tracklet a frame twice, or two
                labels, splits or cameras.
            ResourceError: The disk is full.
        """
        if not len(self):
            raise InputError(f"{self.path}: there is no image to write; check the sources")
        self._flush()
        with _disk(self.path):
            self._spool.close()
        columns = self._columns(splits)
        fingerprint = self._fingerprint(columns)
        metadata = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "creator": f"distmetric {__version__}",
        }
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        check = checksum(pa.schema(fields, metadata=metadata), list(columns.values()))
        schema = pa.schema(fields, metadata=metadata | {CHECKSUM.decode(): check.decode()})
        with _disk(self.path):
            with self._part_path.open("xb") as sink:
                with pa.ipc.new_file(sink, schema) as writer:
                    writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
                os.fsync(sink.fileno())
            self._part_path.replace(self.path)
        self.fingerprint = fingerprint
        self._made = []
        self.abort()
        return fingerprint

    def abort(self) -> None:
        """Give up: remove temporary files and folders, and leave the target as it was. Safe to call again."""
        self._pending, self._chunks = [], []
        try:
            self._spool.close()
        finally:
            self._spool_path.unlink(missing_ok=True)
            self._part_path.unlink(missing_ok=True)
            with suppress(OSError):  # another one may have put something there
                for folder in self._made:
                    folder.rmdir()

    def _flush(self) -> None:
        if not self._pending:
            return
        numbers, names, splits, groups, cameras, attributes, paths, widths, heights, tracklets, frames = zip(
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
                "tracklet": pa.array(tracklets, text),
                "frame": pa.array(frames, pa.int64()),
            }
        )
        self._pending = []

    def _joined(self, name: str) -> Any:
        return pa.concat_arrays([chunk[name] for chunk in self._chunks])

    def _columns(self, splits: Mapping[str, str] | None) -> dict[str, Any]:
        ids, label_names = self._joined("id"), self._joined("label_name")
        if not all_different(ids.to_numpy()):
            raise InputError(f"{self.path}: an id was added twice; give every image its own")
        names = sorted(pc.unique(label_names).to_pylist())
        labels = pc.index_in(label_names, value_set=pa.array(names, pa.large_string())).cast(pa.int64())
        columns = {"id": ids, "label": labels, "label_name": label_names}
        columns["split"] = self._split_column(names, labels, splits)
        columns["group"] = self._joined("group")
        cameras = self._joined("camera")
        if cameras.null_count < len(cameras):
            columns["camera"] = cameras
        columns |= self._tracklet_columns(columns["split"], cameras)
        if attributes := self._attribute_columns():
            columns["attributes"] = pa.StructArray.from_arrays(
                list(attributes.values()), names=list(attributes)
            )
        columns |= {name: self._joined(name) for name in ("path", "width", "height")}
        columns[IMAGE_CHECKSUMS] = pa.array(np.frombuffer(self._checksums, np.uint32))
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

    def _tracklet_columns(self, splits: Any, cameras: Any) -> dict[str, Any]:
        columns = {name: self._joined(name) for name in ("tracklet", "frame")}
        if columns["tracklet"].null_count == len(self):
            return {}
        found = Tracklets(self.path, columns["tracklet"], columns["frame"], len(self))
        found.check_agree("label", self._joined("label_name").to_numpy(zero_copy_only=False))
        found.check_agree("split", splits.to_numpy(zero_copy_only=False))
        found.check_agree("camera", cameras.fill_null(-1).to_numpy())
        return columns

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
        total = hashlib.sha256(_FINGERPRINT)
        # Every part carries its length: otherwise bytes could move from one image to the next unnoticed.
        # Catalogs without tracklets keep the fingerprint that they had before there were any.
        tracklets: list[bytes] = []
        if "tracklet" in columns:
            named = repr(columns["tracklet"].to_pylist()).encode()
            tracklets = [named, _little_endian(columns["frame"].fill_null(-1))]
        for part in (
            _little_endian(columns["id"]),
            _little_endian(columns["label"]),
            repr(names).encode(),
            repr(splits.dictionary.to_pylist()).encode(),
            _little_endian(splits.indices),
            np.asarray(self._offsets, "<i8").tobytes(),
            self._hash.digest(),
            *tracklets,
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
        detail = " ".join(str(error).split())
        raise ResourceError(f"{path}: cannot be written ({detail}); choose another place") from None
