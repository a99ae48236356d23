"""What a search found: as a table, as JSON, as lines to read, and as pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv, fs

from distmetric.errors import ResourceError
from distmetric.inference.neighbors import FoundNeighbors
from distmetric.inference.search_sets import Pictures, SearchSet, tiles
from distmetric.locations import open_location, put_in_place
from distmetric.reports.search_page import FoundPicture, QueryPicture, grid_png, search_page
from distmetric.secrets import masked

SAME, DIFFERENT = "same", "different"
_READ_QUERIES, _SHOWN_NEIGHBORS = 5, 10
_ROWS_PER_WRITE = 1 << 16


@dataclass(frozen=True, eq=False)
class Results:
    """Queries and their neighbors.

    Attributes:
        queries: Q rows.
        gallery: What was searched.
        found: Of all queries.
        threshold: Distance up to which a neighbor is called the same; None for no verdict.
    """

    queries: SearchSet
    gallery: SearchSet
    found: FoundNeighbors
    threshold: float | None

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = (self.found.rows >= 0).sum(dim=1).numpy()
        return counts

    def neighbors(self, query: int) -> list[dict[str, Any]]:
        """What was found for a query, nearest first, as plain values."""
        table = self.table(query, query + 1).drop_columns(["query_id", "query_path", "query_label_name"])
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def table(self, start: int, stop: int) -> pa.Table:
        """The neighbors of queries start .. stop - 1, a row for each."""
        counts = self._counts[start:stop]
        query = np.repeat(np.arange(start, start + len(counts)), counts)
        there = self.found.rows[start:stop] >= 0
        gallery = self.found.rows[start:stop][there].numpy()
        distance = self.found.distances[start:stop][there].numpy()
        own_names = self.queries.label_names.take(pa.array(query))
        names = self.gallery.label_names.take(pa.array(gallery))
        columns: dict[str, Any] = {
            "query_id": self.queries.ids[query],
            "query_path": self.queries.paths.take(pa.array(query)),
            "query_label_name": _named(own_names),
            "rank": np.concatenate([np.arange(1, count + 1) for count in counts] or [np.empty(0, np.int64)]),
            "id": self.gallery.ids[gallery],
            "path": self.gallery.paths.take(pa.array(gallery)),
            "label_name": _named(names),
            "distance": distance,
        }
        if self.found.reranked is not None:
            columns["reranked_distance"] = self.found.reranked[start:stop][there].numpy()
        if self.threshold is not None:
            columns["verdict"] = pa.array(
                np.where(distance <= self.threshold, SAME, DIFFERENT).tolist(), pa.string()
            )
        columns["correct"] = self._correct(own_names, names)
        return pa.table(columns)

    def _correct(self, own_names: Any, names: Any) -> Any:
        """Whether the classes are the same, empty where one is not known, or is none of the gallery's."""
        known = self.gallery.known_names
        values = [
            own == name if own in known and name else None
            for own, name in zip(own_names.to_pylist(), names.to_pylist(), strict=True)
        ]
        return pa.array(values, pa.bool_())

    def parts(self) -> Iterator[pa.Table]:
        """The whole table, some tens of thousands of rows at a time."""
        step = max(1, _ROWS_PER_WRITE // max(1, self.found.rows.shape[1]))
        for start in range(0, len(self), step):
            yield self.table(start, min(start + step, len(self)))


def _named(names: Any) -> Any:
    """Class names, empty instead of "" where there is none."""
    return pa.array([name or None for name in names.to_pylist()], pa.large_string())


def write_results(
    folder: str,
    results: Results,
    summary: Mapping[str, Any],
    pictures: tuple[Pictures | None, Pictures | None],
    shown: int,
    stream: TextIO | None = None,
) -> dict[str, str]:
    """Write everything into a folder, each file complete or not there.

    Args:
        folder: Path or URI; it is made.
        results: What was found.
        summary: Of the search, for results.json and the page.
        pictures: Of the queries and of the gallery; None where there are none.
        shown: Queries that are shown with pictures; 0 for none.
        stream: Where a few queries are written to be read; by default standard error.

    Returns:
        The files by kind: parquet, csv, json, and html and, where there are pictures, png.

    Raises:
        ResourceError: If a file cannot be written.
    """
    out = _Folder(folder)
    files = {
        "parquet": out.write("results.parquet", lambda stream: _write_parquet(stream, results)),
        "csv": out.write("results.csv", lambda stream: _write_csv(stream, results)),
        "json": out.write("results.json", lambda stream: _write_json(stream, results, summary)),
    }
    if shown > 0:
        grid = _grid(results, pictures, shown)
        page = search_page(_subtitle(summary, len(grid)), grid, about=_about(results), notes=_notes(summary))
        files["html"] = out.write("search.html", lambda stream: stream.write(page.encode()))
        if pictures != (None, None):
            image = grid_png(grid)
            files["png"] = out.write("grid.png", lambda stream: stream.write(image))
    out.forget({"search.html", "grid.png"} - {file.rpartition("/")[2] for file in files.values()})
    print("\n".join(_lines(results)), file=stream or sys.stderr)
    return files


class _Folder:
    def __init__(self, location: str) -> None:
        self._location = location
        self._filesystem, self._path = open_location(location)

    def write(self, name: str, write: Any) -> str:
        try:
            self._filesystem.create_dir(self._path, recursive=True)
            with (
                put_in_place(self._filesystem, f"{self._path}/{name}") as target,
                self._filesystem.open_output_stream(target) as stream,
            ):
                write(stream)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise ResourceError(
                f"out={self._location} cannot be written ({reason}): free space or fix access"
            ) from None
        return f"{self._location}/{name}"

    def forget(self, names: set[str]) -> None:
        """Delete what an earlier search left and this one did not write: it would show another search."""
        for name in names:
            if self._filesystem.get_file_info(f"{self._path}/{name}").type == fs.FileType.File:
                self._filesystem.delete_file(f"{self._path}/{name}")


def _write_parquet(stream: Any, results: Results) -> None:
    with pq.ParquetWriter(stream, results.table(0, 0).schema) as writer:
        for part in results.parts():
            writer.write_table(part)


def _write_csv(stream: Any, results: Results) -> None:
    with csv.CSVWriter(stream, results.table(0, 0).schema) as writer:
        for part in results.parts():
            writer.write_table(part)


def _write_json(stream: Any, results: Results, summary: Mapping[str, Any]) -> None:
    """A query a line, so that no more than that has to be in memory."""
    head = json.dumps(masked(dict(summary)), indent=1)[:-2]
    stream.write(f'{head},\n "results": ['.encode())
    for number in range(len(results)):
        query = {
            "id": int(results.queries.ids[number]),
            "path": results.queries.path(number),
            "label_name": results.queries.label_name(number),
            "neighbors": results.neighbors(number),
        }
        stream.write(f"{',' if number else ''}\n  {json.dumps(query)}".encode())
    stream.write(b"\n ]\n}\n")


def _grid(
    results: Results, pictures: tuple[Pictures | None, Pictures | None], shown: int
) -> list[QueryPicture]:
    """The first queries with their first neighbors."""
    numbers = range(min(shown, len(results)))
    rows = results.found.rows[: len(numbers), :_SHOWN_NEIGHBORS]
    own = tiles(pictures[0], numbers)
    others = tiles(pictures[1], rows[rows >= 0].tolist())
    grid = []
    for number in numbers:
        found = [
            FoundPicture(
                others[row],
                one["path"],
                one["label_name"] or "",
                one["distance"],
                one.get("verdict", ""),
                one["correct"],
            )
            for row, one in zip(rows[number].tolist(), results.neighbors(number), strict=False)
            if row >= 0
        ]
        name = results.queries.label_name(number) or ""
        grid.append(QueryPicture(own[number], results.queries.path(number), name, found))
    return grid


def _subtitle(summary: Mapping[str, Any], shown: int) -> str:
    counted = _counted(summary["queries"], "query", "queries")
    first = f"The first {shown:,} of {counted}" if shown < summary["queries"] else counted
    size = _counted(summary["gallery_size"], "image", "images")
    reranked = "" if summary["rerank"] == "none" else f", rerank={summary['rerank']}"
    return f"{first} in {size} of {summary['gallery']}; {summary['index']['name']}{reranked}"


def _about(results: Results) -> str:
    said = []
    if results.threshold is not None:
        said.append(f"Up to a distance of {results.threshold:.4g} they are called the same.")
    if results.found.rows.shape[1] > _SHOWN_NEIGHBORS:
        said.append(f"Shown are the first {_SHOWN_NEIGHBORS}; the tables have them all.")
    return " ".join(said)


def _notes(summary: Mapping[str, Any]) -> list[str]:
    bad = {(one["path"], one["reason"]) for listed in summary["bad_images"].values() for one in listed}
    counted = _counted(len(bad), "image", "images")
    return [f"{counted} could not be read: results.json says which, and why."] if bad else []


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _lines(results: Results) -> Iterator[str]:
    """A few queries and their neighbors, aligned, to be read in a terminal."""
    for number in range(min(len(results), _READ_QUERIES)):
        name = results.queries.label_name(number)
        yield f"{results.queries.path(number)}{f' ({name})' if name else ''}"
        found = results.neighbors(number)
        if not found:
            yield "  nothing: the gallery has no other image"
        rows = [("rank", "distance", "verdict", "class", "image")]
        for one in found:
            distance = one.get("reranked_distance", one["distance"])
            kind = one["label_name"] or ""
            mark = {None: "", True: " ✓", False: " ✗"}[one["correct"]]
            rows.append(
                (str(one["rank"]), f"{distance:.4f}", one.get("verdict", ""), kind + mark, str(one["path"]))
            )
        used = [place for place in range(5) if any(row[place] for row in rows[1:])]
        widths = {place: max(len(row[place]) for row in rows) for place in used}
        for row in rows if found else ():
            cells = [
                row[place].rjust(widths[place]) if place < 2 else row[place].ljust(widths[place])
                for place in used
            ]
            yield f"  {'  '.join(cells)}".rstrip()
    if len(results) > _READ_QUERIES:
        yield f"... and {len(results) - _READ_QUERIES:,} more queries in the files"
