"""Named arrays in one Arrow file: no pickle, memory-mapped where the file system allows, unreadable unless complete."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.locations import open_location, put_in_place

_META, _CHECK = b"distmetric", b"distmetric.crc32"


def write_arrays(location: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write arrays and a JSON document as one Arrow IPC file of one row, a list column per array.

    The file appears under its name when it is complete: a local one is moved there, an object store shows
    an object when its upload has ended.

    Args:
        location: Path or URI of the file; its folder is made.
        arrays: Any shapes; booleans, integers and floats.
        meta: Plain containers.

    Raises:
        ResourceError: If the file cannot be written.
    """
    fields, columns = [], []
    for name, array in arrays.items():
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        columns.append(pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat))
        shape = json.dumps(list(array.shape)).encode()
        fields.append(pa.field(name, columns[-1].type, nullable=False, metadata={_META: shape}))
    text = json.dumps(dict(meta)).encode()
    check = str(_checksum(text, arrays)).encode()
    schema = pa.schema(fields, metadata={_META: text, _CHECK: check})
    filesystem, path = open_location(location)
    try:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with (
            put_in_place(filesystem, path) as target,
            filesystem.open_output_stream(target) as stream,
            pa.ipc.new_file(stream, schema) as writer,
        ):
            writer.write_batch(pa.record_batch(columns, schema=schema))
    except OSError as error:
        raise ResourceError(
            f"{location} cannot be written ({' '.join(str(error).split())}): free space or fix access"
        ) from None


def read_arrays(location: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote; read-only arrays, of a local file views of it.

    Raises:
        InputError: If the file is not there, incomplete, damaged, or not one of ours.

    Cost: reads everything once, for the checksum.
    """
    filesystem, path = open_location(location)
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            source: Any = pa.memory_map(path)
        else:
            source = filesystem.open_input_file(path)
        table = pa.ipc.open_file(source).read_all()
        table.validate()
        arrays = {}
        for field, column in zip(table.schema, table.columns, strict=True):
            shape = json.loads(field.metadata[_META])
            arrays[field.name] = column.chunk(0).values.to_numpy(zero_copy_only=False).reshape(shape)
            arrays[field.name].flags.writeable = False
        text = table.schema.metadata[_META]
        if _checksum(text, arrays) != int(table.schema.metadata[_CHECK]):
            raise ValueError("its checksum does not fit")
        meta: dict[str, Any] = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{location} does not exist") from None
    except (OSError, pa.ArrowException, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{location} is damaged or not one of ours: {' '.join(str(error).split())}"
        ) from None
    return arrays, meta


def _checksum(text: bytes, arrays: Mapping[str, NDArray[Any]]) -> int:
    """CRC-32 of the document, and of the name, the type, the shape and the numbers of every array."""
    check = zlib.crc32(text)
    for name, array in arrays.items():
        check = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), check)
        check = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, check)
    return check
