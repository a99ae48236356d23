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
    optional = ("split", "group", "camera", "path", "attributes")
    columns = ["image", "label", *(name for name in optional if name in schema.names)]
    number = 0
    for batch in parquet.iter_batches(batch_size=64, columns=columns):
        for row in batch.to_pylist():
            yield _item(row, f"{shown}#{number}", f"{relative}#{number}", names, limit)
            number += 1


def _item(row: Mapping[str, Any], origin: str, number: str, names: Sequence[str] | None, limit: int) -> Item:
    image = row["image"]
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
