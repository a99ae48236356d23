"""Embeddings in a Parquet or Arrow file, with ids, paths and class names, as `jobs/embed.py` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
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
from distmetric.regular_files import check_file

COLUMNS = ("id", "path", "label_name", "embedding")
ATTRIBUTE = "attribute."
ROWS_PER_READ = 8192


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """What the file holds.

    Attributes:
        ids: (N,) int64, different, from 0.
        paths: (N,) Arrow strings.
        label_names: (C,) class names, sorted.
        labels: (N,) int64 places in `label_names`.
        embeddings: (N, D) float32, finite.
        cameras: (N,) int64, -1 where unknown; None without such a column.
        groups: (N,) of str, None where unknown; None without such a column.
        attributes: (N,) of str, None where unknown, by the name of the attribute.
        metadata: What else the file says; `checkpoint` and `step` where `jobs/embed.py` wrote it.
    """

    ids: NDArray[np.int64]
    paths: Any
    label_names: list[str]
    labels: NDArray[np.int64]
    embeddings: Tensor
    cameras: NDArray[np.int64] | None = None
    groups: NDArray[np.object_] | None = None
    attributes: dict[str, NDArray[np.object_]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_embedding_file(location: str) -> EmbeddingFile:
    """Read it, checking everything that is relied upon.

    Args:
        location: Path, or URI that pyarrow understands, of a Parquet or Arrow file (Feather included); which of these
            it is, its content says.

    Raises:
        InputError: If there is no such file, it is neither Parquet nor Arrow, lacks a column or has one of the wrong
            type, has no rows or missing values, repeats an id or has a negative one, is damaged, or an embedding has
            another length or is not finite.

    Cost: N D values, read a few thousand rows at a time (an Arrow file a record batch at a time).
    """
    with _OpenFile(location) as file:
        return _read(file, location)


def embedding_shape(location: str) -> tuple[int, int]:
    """N and D of a file; of its rows only the first few are read.

    Raises:
        InputError: If it is no file of embeddings, or has no rows.
    """
    with _OpenFile(location) as file:
        _check_columns(file.schema, location)
        rows = _rows(file, location)
        kind = file.schema.field("embedding").type
        if pa.types.is_fixed_size_list(kind):
            return rows, kind.list_size
        first = next(file.batches(["embedding"]), None)
        if first is None:
            raise InputError(
                f"embeddings={location} is damaged: it has not the {rows} rows that it says it has"
            )
        return rows, _vectors(first.column("embedding"), 0, location).shape[1]


def _plain(found: object) -> str:
    """What a file says, for a message: without control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(found))


class _OpenFile:
    """Parquet or Arrow, read alike; errors of either become one of ours."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._filesystem, self._path = open_location(location)

    def __enter__(self) -> _OpenFile:
        try:
            check_file(self._filesystem, self._path)
            self._stream = self._filesystem.open_input_file(self._path)
            self._parquet: Any = None
            if self._stream.read(6) == b"ARROW1":
                self.schema: Any = pa.ipc.open_file(self._stream).schema
            else:
                self._parquet = pq.ParquetFile(self._stream)
                self.schema = self._parquet.schema_arrow
        except Exception as error:
            raise self._explained(error) from None
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stream.close()
        if isinstance(error, OSError | pa.ArrowException | UnicodeDecodeError):
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, FileNotFoundError):
            return InputError(
                f"embeddings={self._location} does not exist: give a file that jobs/embed.py wrote"
            )
        if isinstance(error, OSError | pa.ArrowException | UnicodeDecodeError):
            reason = _plain(" ".join(str(error).split()))
            return InputError(f"embeddings={self._location} is no usable Parquet or Arrow file ({reason})")
        return error

    def count(self) -> int:
        """Rows; an Arrow file does not say so, and has its column id read."""
        if self._parquet is not None:
            return int(self._parquet.metadata.num_rows)
        place = self.schema.names.index("id")
        only_id = pa.ipc.open_file(self._stream, options=pa.ipc.IpcReadOptions(included_fields=[place]))
        return sum(_validated(only_id, number).num_rows for number in range(only_id.num_record_batches))

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Some columns, at most `ROWS_PER_READ` rows at a time."""
        if self._parquet is not None:
            for batch in self._parquet.iter_batches(batch_size=ROWS_PER_READ, columns=columns):
                batch.validate(full=True)  # text is not seen to be UTF-8 on reading
                yield batch
            return
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.names.index(name) for name in columns])
        file = pa.ipc.open_file(self._stream, options=options)
        for number in range(file.num_record_batches):
            batch = _validated(file, number)
            for start in range(0, batch.num_rows, ROWS_PER_READ):
                yield batch.slice(start, ROWS_PER_READ)


def _validated(file: Any, number: int) -> Any:
    """A record batch whose offsets stay within it: Arrow would read wherever a wrong one points."""
    batch = file.get_batch(number)
    batch.validate(full=True)
    return batch


def _rows(file: _OpenFile, location: str) -> int:
    rows = file.count()
    if rows == 0:
        raise InputError(f"embeddings={location} has no rows: embed some images")
    return rows


def _read(file: _OpenFile, location: str) -> EmbeddingFile:
    kinds = _check_columns(file.schema, location)
    rows = _rows(file, location)
    embeddings: Tensor | None = None
    parts: dict[str, list[Any]] = {name: [] for name in kinds}
    done = 0
    for batch in file.batches([*kinds, "embedding"]):
        for name, kind in kinds.items():
            column = batch.column(name)
            if name in COLUMNS:
                _check_complete(column, name, done, location)
            parts[name].append(column.cast(kind))
        vectors = _vectors(batch.column("embedding"), done, location)
        if embeddings is None:
            embeddings = _space(rows, vectors.shape[1], location)
        if vectors.shape[1] != embeddings.shape[1]:
            raise InputError(
                f"embeddings={location} has embeddings of {embeddings.shape[1]} and of {vectors.shape[1]} numbers: "
                "give what one model has embedded"
            )
        if done + len(vectors) > rows:
            break
        embeddings[done : done + len(vectors)] = torch.from_numpy(vectors)
        done += len(vectors)
    if embeddings is None or done != rows:
        raise InputError(f"embeddings={location} is damaged: it has not the {rows} rows that it says it has")
    columns = {name: pa.chunked_array(parts.pop(name)).combine_chunks() for name in list(parts)}
    label_names, labels = _sorted_codes(columns["label_name"])
    _check_ids(columns["id"].to_numpy(), location)
    metadata = {key.decode(): value.decode() for key, value in (file.schema.metadata or {}).items()}
    return EmbeddingFile(
        columns["id"].to_numpy(),
        columns["path"],
        label_names,
        labels,
        as_embeddings(embeddings, f"embeddings={location}"),
        cameras=columns["camera"].fill_null(-1).to_numpy() if "camera" in columns else None,
        groups=_strings(columns["group"]) if "group" in columns else None,
        attributes={
            name.removeprefix(ATTRIBUTE): _strings(column)
            for name, column in columns.items()
            if name.startswith(ATTRIBUTE)
        },
        metadata={key: value for key, value in metadata.items() if key != "ARROW:schema"},
    )


def _space(rows: int, dim: int, location: str) -> Tensor:
    """Uninitialized memory, which costs none before it is written to: a damaged file may say any number of rows."""
    try:
        return torch.empty(rows, dim)
    except RuntimeError:
        raise InputError(
            f"embeddings={location} says it has {rows} rows of {dim} numbers, which do not fit in memory: "
            "give a smaller file, or an intact one"
        ) from None


def _check_ids(ids: NDArray[np.int64], location: str) -> None:
    if (negative := np.flatnonzero(ids < 0)).size:
        raise InputError(
            f"embeddings={location}: id {ids[negative[0]]} in row {negative[0]} is negative: number the rows from 0"
        )
    # Ids are usually ascending, which is far cheaper to see than to sort them.
    if not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        if (again := np.flatnonzero(ids[order][1:] == ids[order][:-1])).size:
            first, second = order[again[0]], order[again[0] + 1]
            raise InputError(
                f"embeddings={location}: id {ids[first]} is in row {first} and again in row {second}: give every row "
                "its own"
            )


def _sorted_codes(names: Any) -> tuple[list[str], NDArray[np.int64]]:
    label_names: list[str] = sorted(names.unique().to_pylist())
    place = {name: number for number, name in enumerate(label_names)}
    encoded = names.dictionary_encode()
    codes = np.array([place[name] for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    return label_names, codes[encoded.indices.to_numpy()]


def _strings(column: Any) -> NDArray[np.object_]:
    """(N,) of str and None; equal ones are one object, since there are few."""
    encoded = column.dictionary_encode()
    known = np.array([*encoded.dictionary.to_pylist(), None], dtype=np.object_)
    found: NDArray[np.object_] = known[encoded.indices.fill_null(len(known) - 1).to_numpy()]
    return found


def _check_columns(schema: Any, location: str) -> dict[str, Any]:
    """What to read the columns as, embeddings left out: those that are needed, and the others we know."""
    if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(
            f"embeddings={location} has two columns called {_plain(repeated[0])}: keep one of them"
        )
    for name in COLUMNS:
        if name not in schema.names:
            raise InputError(
                f"embeddings={location} lacks the column {name}: give a file that jobs/embed.py wrote; "
                f"it has {_plain(', '.join(schema.names))}"
            )
    optional = [name for name in schema.names if name in ("camera", "group") or name.startswith(ATTRIBUTE)]
    kinds: dict[str, Any] = {}
    for name in (*COLUMNS, *optional):
        kind = schema.field(name).type
        inner = getattr(kind, "value_type", None)
        if name == "embedding":
            fits = inner is not None and (pa.types.is_floating(inner) or pa.types.is_integer(inner))
            expected = "lists of numbers"
        elif name in ("id", "camera"):
            fits, expected, kinds[name] = pa.types.is_integer(kind), "integers", pa.int64()
        else:
            fits, expected = pa.types.is_string(kind) or pa.types.is_large_string(kind), "strings"
            kinds[name] = pa.large_string()
        if not fits:
            raise InputError(
                f"embeddings={location}: column {_plain(name)} is {_plain(kind)}, not {expected}: give a file that "
                "jobs/embed.py wrote"
            )
    return kinds


def _check_complete(column: Any, name: str, done: int, location: str) -> None:
    if column.null_count:
        row = done + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(
            f"embeddings={location}: column {name} has no value in row {row}: leave that row out"
        )


def _vectors(column: Any, done: int, location: str) -> NDArray[np.float32]:
    _check_complete(column, "embedding", done, location)
    if not len(column):
        raise InputError(f"embeddings={location} has no rows: embed some images")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != lengths[0]).any() or lengths[0] == 0:
        odd = done + int(np.flatnonzero((lengths != lengths[0]) | (lengths == 0))[0])
        raise InputError(
            f"embeddings={location}: the embedding in row {odd} has another length ({lengths[odd - done]} numbers) "
            f"than it should have ({max(1, lengths[0])}): give what one model has embedded"
        )
    flat = column.flatten()
    _check_complete(flat, "embedding", done, location)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is told as that
        values: NDArray[np.float32] = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(len(column), -1)
