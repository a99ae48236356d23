"""Write embeddings as a Parquet or Arrow file: what `read_embedding_file` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.locations import open_location

ENDINGS = (".parquet", ".arrow", ".feather")


def embedding_schema(dim: int, extras: Sequence[str], metadata: Mapping[str, str]) -> pa.Schema:
    """The columns of a file of embeddings.

    Args:
        dim: D.
        extras: Further columns: camera, group, or attribute.NAME.
        metadata: What else to say of the file.

    Returns:
        id (int64), path, label_name, those of `extras` (camera int64, the others strings; empty where unknown), and
        embedding (fixed-size list of float32).
    """
    columns = {"id": pa.int64(), "path": pa.string(), "label_name": pa.string()}
    columns |= {name: pa.int64() if name == "camera" else pa.string() for name in extras}
    return pa.schema(columns | {"embedding": pa.list_(pa.float32(), dim)}).with_metadata(dict(metadata))


def embedding_batch(
    schema: pa.Schema,
    ids: Sequence[int],
    paths: Sequence[str],
    label_names: Sequence[str],
    embeddings: NDArray[np.float32],
    extras: Mapping[str, Sequence[Any]],
) -> pa.RecordBatch:
    """Rows of a file of embeddings.

    Args:
        schema: What `embedding_schema` gave.
        ids: B of them.
        paths: B of them.
        label_names: B of them.
        embeddings: (B, D) float32.
        extras: B values of each further column of the schema; cameras are -1, and others None, where unknown.
    """
    values: dict[str, Any] = {"id": ids, "path": paths, "label_name": label_names, **extras}
    if "camera" in values:
        values["camera"] = [None if camera == -1 else camera for camera in values["camera"]]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    columns = [
        vectors if field.name == "embedding" else pa.array(values[field.name], field.type) for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def check_ending(location: str) -> str:
    """See that the name of a file says its format.

    Returns:
        The ending.

    Raises:
        InputError: If it is none that we write.
    """
    for ending in ENDINGS:
        if location.lower().endswith(ending):
            return ending
    raise InputError(f"out={location}: name a file that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")


class EmbeddingWriter:
    """A file of embeddings that is being written: complete, or not there.

        with EmbeddingWriter("embeddings.parquet", schema) as writer:
            writer.write(batch)

    A local file is written beside its name and moved there in the end; elsewhere what was written is deleted
    after an error.

    Args:
        location: Path, or URI that pyarrow understands; its ending says whether it is Parquet or Arrow.
        schema: What `embedding_schema` gave.

    Raises:
        InputError: If the ending is none that we write, or the URI cannot be understood.
        ResourceError: If the file cannot be written.
    """

    def __init__(self, location: str, schema: pa.Schema) -> None:
        self._location, self._schema = location, schema
        self._is_parquet = check_ending(location) == ".parquet"
        self._filesystem, self._path = open_location(location)
        folder, _, name = self._path.rpartition("/")
        self._folder, self._target = folder, self._path
        if isinstance(self._filesystem, fs.LocalFileSystem):
            self._target = f"{folder}/.{name}.{os.getpid()}.part"

    def __enter__(self) -> EmbeddingWriter:
        try:
            self._filesystem.create_dir(self._folder, recursive=True)
            self._stream = self._filesystem.open_output_stream(self._target)
        except OSError as error:
            raise self._explained(error) from None
        new = pq.ParquetWriter if self._is_parquet else pa.ipc.new_file
        self._writer: Any = new(self._stream, self._schema)
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows, as one row group or record batch."""
        try:
            if self._is_parquet:
                self._writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
            else:
                self._writer.write_batch(batch)
        except OSError as error:
            raise self._explained(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = False
        try:
            self._writer.close()
            self._stream.close()
            if error is None and self._target != self._path:
                self._filesystem.move(self._target, self._path)
            done = error is None
        except OSError as found:
            if error is None:
                raise self._explained(found) from None
        finally:
            if not done and self._filesystem.get_file_info(self._target).type == fs.FileType.File:
                self._filesystem.delete_file(self._target)

    def _explained(self, error: OSError) -> ResourceError:
        return ResourceError(f"out={self._location} cannot be written: {' '.join(str(error).split())}")
