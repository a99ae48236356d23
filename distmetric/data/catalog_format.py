"""What a catalog file has to look like: its version, its columns, and the checks on opening one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmetric.errors import InputError

FORMAT_VERSION = "1"

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


def read_batch(path: Path) -> Any:
    """Map the one record batch of a catalog file.

    Args:
        path: The catalog file.

    Returns:
        The record batch, with every required column complete and of its type.

    Raises:
        InputError: The file is missing, is no catalog, is empty, or is of another version.
    """
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
    for name in REQUIRED:
        if batch.column(name).null_count:
            raise InputError(f"{path}: column {name} has empty values; ingest again")
    return batch


def _check_schema(path: Path, schema: Any) -> None:
    metadata = schema.metadata or {}
    version = metadata.get(b"format_version", b"").decode(errors="replace")
    if version != FORMAT_VERSION or b"fingerprint" not in metadata:
        found = f"is a catalog of version {version!r}" if version else "is an Arrow file, but no catalog"
        raise InputError(f"{path}: {found}; ingest again with this version, which reads {FORMAT_VERSION!r}")
    for name, kind in REQUIRED.items():
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


def all_different(ids: Integers) -> bool:
    """Whether no id is repeated."""
    # Ids are usually ascending, which is far cheaper to see than to sort them.
    return bool(np.all(ids[1:] > ids[:-1])) or len(np.unique(ids)) == len(ids)
