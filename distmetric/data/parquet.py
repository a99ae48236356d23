"""Images in the rows of Parquet files, with plain columns or as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from distmetric.data.decode import BadImageError
from distmetric.data.items import Item, Labels
from distmetric.data.locations import PARQUET_SUFFIXES, Place, first_line, is_hidden, readable
from distmetric.data.tally import Tally
from distmetric.errors import InputError
from distmetric.regular_files import check_file

_BATCH_ROWS, _BATCH_BYTES = 64, 1 << 30


class ParquetSource:
    """A Parquet file, or a folder of them, as a source of images.

    Args:
        place: Where it is.
        limit: Most bytes of one image.
    """

    def __init__(self, place: Place, limit: int) -> None:
        self._fs, self._limit = place.fs, limit
        self._files = [
            (relative, path, _shown(place, relative))
            for relative, path in place.files
            if relative.lower().endswith(PARQUET_SUFFIXES) and not is_hidden(relative)
        ]

    def count(self) -> int | None:
        """Rows of all files; None where asking every one of them would go through a network.

        Raises:
            InputError: A file cannot be read.
        """
        if not isinstance(self._fs, pafs.LocalFileSystem):
            return None
        rows = 0
        for _, path, shown in self._files:
            with self._opened(path, shown) as file:
                rows += file.metadata.num_rows
        return rows

    def items(self, tally: Tally) -> Iterator[Item]:  # noqa: ARG002 - no row is ignored
        """Read the images, file by file and row by row.

        Raises:
            InputError: A file cannot be read, or its columns are not what they have to be.
        """
        for relative, path, shown in self._files:
            with self._opened(path, shown) as file:
                yield from _rows(file, shown, relative, self._limit)

    @contextmanager
    def _opened(self, path: str, shown: str) -> Iterator[Any]:
        try:
            check_file(self._fs, path)
            with self._fs.open_input_file(path) as stream:
                yield pq.ParquetFile(stream)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shown}: is no usable Parquet file ({first_line(error)})") from None


def _shown(place: Place, relative: str) -> str:
    alone = len(place.files) == 1 and relative in place.shown
    return place.shown if alone else f"{place.shown}/{relative}"


def _rows(parquet: Any, shown: str, relative: str, limit: int) -> Iterator[Item]:
    schema = parquet.schema_arrow
    _check_schema(schema, shown)
    names = _hugging_face_names(schema)
    optional = ("split", "group", "camera", "path", "attributes", "tracklet", "frame")
    columns = ["image", "label", *(name for name in optional if name in schema.names)]
    number = 0
    for batch in _batches(parquet, columns):
        for place in range(batch.num_rows):
            origin = f"{shown}#{number}"
            row = {name: _value(batch.column(name)[place], name, origin) for name in columns}
            yield _item(row, origin, f"{relative}#{number}", names, limit)
            number += 1


def _batches(parquet: Any, columns: list[str]) -> Iterator[Any]:
    """A few rows at a time, the fewer the larger a row could be: one image may be there once for a million rows."""
    for group in range(parquet.num_row_groups):
        size = max(1, parquet.metadata.row_group(group).total_byte_size)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // size))
        yield from parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns)


def _value(scalar: Any, name: str, origin: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        reason = "text that is not UTF-8"
    except (ValueError, OverflowError, pa.ArrowException) as error:  # dates that Python has not, for one
        reason = f"a value that cannot be read ({first_line(error)})"
    raise InputError(f"{origin}: column {name} has {reason}; write the file again")


def _item(row: Mapping[str, Any], origin: str, number: str, names: Sequence[str] | None, limit: int) -> Item:
    image: Any = row["image"]
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    path = _text(row.get("path")) or path
    label = row["label"]
    if names is not None and label is not None and 0 <= label < len(names):
        label = names[label]
    labels = Labels(
        class_name="" if label is None else str(label),
        group=_text(row.get("group")),
        split=_text(row.get("split")),
        camera=row.get("camera"),
        attributes={key: _text(value) for key, value in (row.get("attributes") or {}).items()},
        tracklet=_text(row.get("tracklet")),
        frame=row.get("frame"),
    )
    item = Item(path or number, f"{origin} ({readable(path)})" if path else origin, labels)
    if data is None:
        return replace(item, problem=BadImageError("no bytes", "only a path" if path else ""))
    if len(data) > limit:
        return replace(item, problem=BadImageError("too many bytes", f"limit {limit:,}"))
    return replace(item, data=data, problem=None if labels.class_name else BadImageError("no label"))


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _check_schema(schema: Any, shown: str) -> None:
    if repeated := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(f"{shown}: the column {readable(repeated[0])} is there twice; keep one of them")
    for required in ("image", "label"):
        if required not in schema.names:
            raise InputError(
                f"{shown}: the column {required} is missing; it has: {readable(', '.join(schema.names))}"
            )
    image = schema.field("image").type
    fields = {f.name: f.type for f in image} if pa.types.is_struct(image) else {"bytes": image}
    if not (_is_binary(fields.get("bytes")) and _is_text(fields.get("path", pa.null()))):
        raise InputError(
            f"{shown}: column image is {readable(str(image))}; it has to be binary or struct<bytes, path>"
        )
    kinds = {name: schema.field(name).type for name in schema.names}
    label, attributes = kinds["label"], kinds.get("attributes", pa.null())
    if pa.types.is_null(label) or not (_is_text(label) or _is_integer(label)):
        raise InputError(f"{shown}: column label is {readable(str(label))}; it has to be string or integer")
    for name in ("split", "group", "path", "tracklet"):
        kind = kinds.get(name, pa.null())
        if not (_is_text(kind) or _is_integer(kind)):
            raise InputError(f"{shown}: column {name} is {readable(str(kind))}; it has to be string")
    for name in ("camera", "frame"):
        if not _is_integer(kind := kinds.get(name, pa.null())):
            raise InputError(f"{shown}: column {name} is {readable(str(kind))}; it has to be integer")
    plain = pa.types.is_null(attributes) or (
        pa.types.is_struct(attributes)
        and not any(pa.types.is_nested(f.type) or _is_binary(f.type) for f in attributes)
    )
    if not plain:
        raise InputError(
            f"{shown}: column attributes is {readable(str(attributes))}; make it a struct of strings, numbers or dates"
        )


def _is_binary(kind: Any) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _is_integer(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))


def _hugging_face_names(schema: Any) -> list[str] | None:
    """Class names that Hugging Face's `datasets` stores beside integer labels, if it wrote the file."""
    if not pa.types.is_integer(schema.field("label").type):
        return None
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [readable(str(name)) for name in names] if isinstance(names, list) else None
