"""Embeddings in a Parquet file, with ids, paths and class names, as `jobs/embed.py` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import as_embeddings
from distmetric.locations import open_location

COLUMNS = ("id", "path", "label_name", "embedding")
ROWS_PER_READ = 8192


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """What the file holds.

    Attributes:
        ids: (N,) int64.
        paths: (N,) Arrow strings.
        label_names: (C,) class names, sorted.
        labels: (N,) int64 places in `label_names`.
        embeddings: (N, D) float32, finite.
    """

    ids: NDArray[np.int64]
    paths: Any
    label_names: list[str]
    labels: NDArray[np.int64]
    embeddings: Tensor


def read_embedding_file(location: str) -> EmbeddingFile:
    """Read it, checking everything that is relied upon.

    Args:
        location: Path, or URI that pyarrow understands.

    Raises:
        InputError: If there is no such file, it is no Parquet, lacks a column or has one of the wrong type, has no
            rows or missing values, or an embedding has another length or is not finite.

    Cost: N D values, read a few thousand rows at a time.
    """
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_file(path) as stream:
            return _read(pq.ParquetFile(stream), location)
    except FileNotFoundError:
        raise InputError(f"embeddings={location} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"embeddings={location} is no usable Parquet file ({reason})") from None


def _read(file: Any, location: str) -> EmbeddingFile:
    _check_columns(file.schema_arrow, location)
    rows = file.metadata.num_rows
    if rows == 0:
        raise InputError(f"embeddings={location} has no rows")
    embeddings: Tensor | None = None
    parts: dict[str, list[Any]] = {name: [] for name in COLUMNS[:-1]}
    done = 0
    for batch in file.iter_batches(batch_size=ROWS_PER_READ, columns=list(COLUMNS)):
        for name, kind in (
            ("id", pa.int64()),
            ("path", pa.large_string()),
            ("label_name", pa.large_string()),
        ):
            column = batch.column(name)
            _check_complete(column, name, done, location)
            parts[name].append(column.cast(kind))
        vectors = _vectors(batch.column("embedding"), done, location)
        if embeddings is None:
            embeddings = torch.empty(rows, vectors.shape[1])
        if vectors.shape[1] != embeddings.shape[1]:
            raise InputError(
                f"embeddings={location} has embeddings of {embeddings.shape[1]} and of {vectors.shape[1]} numbers"
            )
        embeddings[done : done + len(vectors)] = torch.from_numpy(vectors)
        done += len(vectors)
    assert embeddings is not None
    names = pa.chunked_array(parts["label_name"]).combine_chunks()
    label_names = sorted(names.unique().to_pylist())
    place = {name: number for number, name in enumerate(label_names)}
    encoded = names.dictionary_encode()
    codes = np.array([place[name] for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    return EmbeddingFile(
        pa.chunked_array(parts["id"]).to_numpy(),
        pa.chunked_array(parts["path"]).combine_chunks(),
        label_names,
        codes[encoded.indices.to_numpy()],
        as_embeddings(embeddings, f"embeddings={location}"),
    )


def _check_columns(schema: Any, location: str) -> None:
    for name in COLUMNS:
        if name not in schema.names:
            raise InputError(
                f"embeddings={location} lacks the column {name}: give a file that jobs/embed.py wrote; "
                f"it has {', '.join(schema.names)}"
            )
    kinds = {name: schema.field(name).type for name in COLUMNS}
    inner = getattr(kinds["embedding"], "value_type", None)
    right = {
        "id": pa.types.is_integer(kinds["id"]),
        "path": pa.types.is_string(kinds["path"]) or pa.types.is_large_string(kinds["path"]),
        "label_name": pa.types.is_string(kinds["label_name"])
        or pa.types.is_large_string(kinds["label_name"]),
        "embedding": inner is not None and (pa.types.is_floating(inner) or pa.types.is_integer(inner)),
    }
    expected = {"id": "integers", "path": "strings", "label_name": "strings", "embedding": "lists of numbers"}
    for name, fits in right.items():
        if not fits:
            raise InputError(f"embeddings={location}: column {name} is {kinds[name]}, not {expected[name]}")


def _check_complete(column: Any, name: str, done: int, location: str) -> None:
    if column.null_count:
        row = done + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"embeddings={location}: column {name} has no value in row {row}")


def _vectors(column: Any, done: int, location: str) -> NDArray[np.float32]:
    _check_complete(column, "embedding", done, location)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != lengths[0]).any() or lengths[0] == 0:
        odd = done + int(np.flatnonzero((lengths != lengths[0]) | (lengths == 0))[0])
        raise InputError(
            f"embeddings={location}: the embedding in row {odd} has another length than those before"
        )
    flat = column.flatten()
    _check_complete(flat, "embedding", done, location)
    values: NDArray[np.float32] = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(len(column), -1)
