"""The manifest: a CSV file that says which images to read and what they show, for layouts of other kinds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from distmetric.data.items import Labels
from distmetric.data.locations import (
    clean_name,
    first_line,
    open_file_system,
    readable,
    without_secrets,
)
from distmetric.errors import InputError
from distmetric.regular_files import check_file

_MAX_NUMBER = 2**63 - 1
_COLUMNS = ("path", "label", "split", "group", "camera", "tracklet", "frame")


def read_manifest(source: str) -> dict[str, Labels]:
    """Read a manifest.

    Args:
        source: CSV file in UTF-8 with columns path and label, optionally split, group, camera, tracklet, frame and
            attribute.NAME; a local path or any URI that `pyarrow.fs` opens.

    Returns:
        What is said about each image, by its path within the source.

    Raises:
        InputError: The file cannot be read, a column is missing or unknown, or a row cannot be understood.
    """
    shown = without_secrets(source)
    fs, path = open_file_system(source, shown)
    try:
        check_file(fs, path)
        with fs.open_input_stream(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{shown}: cannot be read ({first_line(error)}); it has to be CSV in UTF-8"
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        return _rows(shown, reader)
    except csv.Error as error:
        raise InputError(f"{shown}, line {reader.line_num}: is no CSV ({error}); mend its quotes") from None


def _rows(shown: str, reader: csv.DictReader[str]) -> dict[str, Labels]:
    _check_columns(shown, reader.fieldnames or [])
    rows: dict[str, Labels] = {}
    for row in reader:
        where = f"{shown}, line {reader.line_num}"
        name, safe = clean_name((row["path"] or "").strip())
        name = readable(name)  # as the names that files have are shown
        if not name or not safe or name in rows:
            wrong = (
                "is empty" if not name else "is given twice" if name in rows else "leads outside the source"
            )
            raise InputError(f"{where}: path {row['path']!r} {wrong}; give each image its path in the source")
        rows[name] = _labels(where, row)
    return rows


def _check_columns(shown: str, columns: Sequence[str]) -> None:
    for required in ("path", "label"):
        if required not in columns:
            raise InputError(
                f"{shown}: the column {required} is missing; it has: {readable(', '.join(columns)) or 'none'}"
            )
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"{shown}: the column {readable(column)} is there twice; keep one of them")
        if column not in _COLUMNS and not column.startswith("attribute."):
            raise InputError(
                f"{shown}: unknown column {column!r}; known are {', '.join(_COLUMNS)}, attribute.NAME"
            )


def _labels(where: str, row: Mapping[str, str | None]) -> Labels:
    values = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    if len(values) < len(row):
        raise InputError(f"{where}: has more fields than the header; put quotes around commas")
    if not values["label"]:
        raise InputError(f"{where}: label is empty; give each image a class")
    return Labels(
        class_name=values["label"],
        group=values.get("group") or None,
        split=values.get("split") or None,
        camera=_number(where, "camera", values),
        attributes={
            key.removeprefix("attribute."): value or None
            for key, value in values.items()
            if key.startswith("attribute.")
        },
        tracklet=values.get("tracklet") or None,
        frame=_number(where, "frame", values),
    )


def _number(where: str, name: str, values: Mapping[str, str]) -> int | None:
    text = values.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_NUMBER):
        raise InputError(f"{where}: {name}={text!r} is no whole number from 0; number the {name}s")
    return int(text)
