"""What a catalog file has to look like: its version, its columns, and the checks on opening one."""

from __future__ import annotations

import mmap
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmetric.data.locations import readable
from distmetric.errors import InputError
from distmetric.regular_files import open_regular

FORMAT_VERSION = "1"
CHECKSUM = b"checksum"
IMAGE_CHECKSUMS = "crc32"

Integers = npt.NDArray[np.int64]

# large_string throughout: the paths of some ten million images exceed the 2 GiB of a string column.
REQUIRED = {
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
OPTIONAL = {
    "camera": pa.int64(),
    "tracklet": pa.large_string(),
    "frame": pa.int64(),
    IMAGE_CHECKSUMS: pa.uint32(),
}


class MappedBatch(NamedTuple):
    """The one record batch of a catalog file.

    Attributes:
        batch: Its columns, as views of the mapped file.
        file: The mapped file, which knows whether its size has changed since.
    """

    batch: Any
    file: mmap.mmap


def read_batch(path: Path) -> MappedBatch:
    """Map a catalog file, and see that it is whole before anything in it is relied upon.

    Arrow trusts what it maps: one wrong offset, and it reads wherever that points. So structure, text and offsets
    are validated, those of the images included, and all but the image bytes is held against the checksum that was
    written with it. Image bytes have a checksum each, for whoever reads them.

    Args:
        path: The catalog file.

    Returns:
        The record batch, with every required column complete and of its type, and the mapped file.

    Raises:
        InputError: The file is missing, is no catalog, is damaged, is empty, or is of another version.

    Cost: one pass over all columns but the image bytes, about 0.1 s for a million rows.
    """
    file = _mapped(path)
    try:
        reader = pa.ipc.open_file(pa.py_buffer(file))
        schema, num_batches = reader.schema, reader.num_record_batches
        _check_schema(path, schema)
        batch = reader.get_batch(0) if num_batches else None
        if batch is not None:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = readable(" ".join(str(error).split()))
        raise InputError(f"{path}: is no catalog or is damaged ({reason}); ingest again") from None
    if num_batches != 1 or batch is None or batch.num_rows == 0:
        rows = "no rows" if num_batches <= 1 else f"{num_batches} record batches instead of one"
        raise InputError(f"{path}: has {rows}; ingest again")
    for name in REQUIRED:
        if batch.column(name).null_count:
            row = int(np.flatnonzero(batch.column(name).is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(f"{path}: column {name} has empty values (the first in row {row}); ingest again")
    # Catalogs of older releases have none.
    written = schema.metadata.get(CHECKSUM)
    if written is not None and written != checksum(schema, batch.columns):
        raise InputError(f"{path}: is damaged (its checksum does not fit its columns); ingest again")
    return MappedBatch(batch, file)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        reason = "does not exist"
    except IsADirectoryError:
        reason = "is a folder, not a catalog file"
    except ValueError:
        reason = "is no catalog or is damaged (it is empty)"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    raise InputError(f"{path}: {reason}; make a catalog with jobs/ingest.py")


def checksum(schema: Any, columns: list[Any]) -> bytes:
    """CRC-32 of a catalog less its image bytes.

    Args:
        schema: With version and fingerprint in its metadata.
        columns: Of the schema.

    Returns:
        The decimal number; equal for equal values, however Arrow cuts and pads them.
    """
    version, fingerprint = (schema.metadata[key] for key in (b"format_version", b"fingerprint"))
    check = zlib.crc32(version + b"\0" + fingerprint)
    for field, column in zip(schema, columns, strict=True):
        check = zlib.crc32(f"{field.name}\0{field.type}\0{len(column)}".encode(), check)
        for part in _parts(column, with_bytes=field.name != "image"):
            check = zlib.crc32(part, check)
    return str(check).encode()


def offsets_of(column: Any) -> Integers:
    """Where the values of a large_string or large_binary column begin, and the last one ends, in its data."""
    # A damaged file may say that the buffer is longer, even by half a number.
    return np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, 8 * column.offset)


def _parts(column: Any, with_bytes: bool = True) -> Iterator[Any]:
    """Everything that a column says, as bytes."""
    if column.null_count:
        yield np.packbits(column.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_struct(column.type):
        for child in column.flatten():
            yield from _parts(child)
    elif pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type):
        ends, data = offsets_of(column), column.buffers()[2]
        yield np.ascontiguousarray(ends - ends[0])
        if with_bytes and data is not None:
            yield memoryview(data)[ends[0] : ends[-1]]
    else:
        filled = column.fill_null(0) if column.null_count else column
        yield np.ascontiguousarray(filled.to_numpy())


def _check_schema(path: Path, schema: Any) -> None:
    metadata = schema.metadata or {}
    version = metadata.get(b"format_version", b"").decode(errors="replace")
    if version != FORMAT_VERSION or b"fingerprint" not in metadata:
        found = f"is a catalog of version {version!r}" if version else "is an Arrow file, but no catalog"
        raise InputError(f"{path}: {found}; ingest again with this version, which reads {FORMAT_VERSION!r}")
    if not re.fullmatch(rb"[0-9a-f]{64}", metadata[b"fingerprint"]):
        raise InputError(f"{path}: is damaged (its fingerprint is none); ingest again")
    if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(f"{path}: has two columns called {repeated[0]!r}; ingest again")
    for name, kind in REQUIRED.items():
        if name not in schema.names:
            raise InputError(f"{path}: the column {name} is missing; ingest again")
        if schema.field(name).type != kind:
            found = readable(str(schema.field(name).type))
            raise InputError(f"{path}: column {name} is {found}, not {kind}; ingest again")
    for name, kind in OPTIONAL.items():
        if name in schema.names and schema.field(name).type != kind:
            raise InputError(
                f"{path}: column {name} is {readable(str(schema.field(name).type))}, not {kind}; ingest again"
            )
    if "attributes" in schema.names:
        kind = schema.field("attributes").type
        if not pa.types.is_struct(kind) or any(field.type != pa.large_string() for field in kind):
            raise InputError(
                f"{path}: column attributes is {readable(str(kind))}, not a struct of large_string; ingest again"
            )
        names = [field.name for field in kind]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: has two attributes of one name; ingest again")


def all_different(ids: Integers) -> bool:
    """Whether no id is repeated."""
    # Ids are usually ascending, which is far cheaper to see than to sort them.
    return bool(np.all(ids[1:] > ids[:-1])) or len(np.unique(ids)) == len(ids)
