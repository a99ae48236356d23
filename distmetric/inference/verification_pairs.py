"""Lists of pairs to verify: files that name two images and say whether they are of one class."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import InputError
from distmetric.inference.evaluation_sets import EvaluationSet
from distmetric.inference.lfw_pairs import face_name, is_face_list, read_face_pairs
from distmetric.locations import open_location

_SAME = {"1": True, "true": True, "0": False, "false": False}
_ROWS_AT_ONCE = 65536


@dataclass(frozen=True, eq=False)
class PairList:
    """P pairs of images.

    Attributes:
        location: The file.
        key: path, id or face: what the images are named by (`face_name` of the path).
        first: (P,) names.
        second: (P,) names.
        same: (P,) whether they are of one class.
        folds: (P,) numbers of the parts that the accuracy is a mean over; None if the file does not say.
    """

    location: str
    key: str
    first: Sequence[str]
    second: Sequence[str]
    same: NDArray[np.bool_]
    folds: NDArray[np.int64] | None

    def distances(self, images: EvaluationSet, device: torch.device) -> Tensor:
        """Euclidean distances of the pairs.

        Args:
            images: Has all that are named.
            device: Where to compute.

        Returns:
            (P,) float64. Cost: P D values, some ten thousand pairs at a time.

        Raises:
            InputError: If an image that is named is not there, or its name is that of several.
        """
        names = self._names(images)
        place = {str(name): row for row, name in enumerate(names)}
        sides = [self._rows(side, name, place, images) for side, name in ((1, self.first), (2, self.second))]
        self._check_unique(names, {*self.first, *self.second} if len(place) < len(images) else set(), images)
        embeddings = images.embeddings.to(device)
        parts = []
        for start in range(0, len(self.same), _ROWS_AT_ONCE):
            first, second = (embeddings[rows[start : start + _ROWS_AT_ONCE].to(device)] for rows in sides)
            parts.append((first.double() - second.double()).square_().sum(dim=1).sqrt_())
        return torch.cat(parts)

    def _names(self, images: EvaluationSet) -> Sequence[str]:
        """What the list calls each image."""
        match self.key:
            case "face":
                return [face_name(str(path)) for path in images.paths]
            case "path":
                return images.paths
            case _:
                return [str(each) for each in images.ids]

    def _rows(self, side: int, names: Sequence[str], place: dict[str, int], images: EvaluationSet) -> Tensor:
        rows = np.fromiter((place.get(name, -1) for name in names), np.int64, len(names))
        if (rows < 0).any():
            at = int(np.flatnonzero(rows < 0)[0])
            raise InputError(
                f"protocol.pairs={self.location} pair {at + 1}: {self.key}_{side}={names[at]} is none of the "
                f"{len(images)} images of {images.name} (the first of which is {self._example(images)})"
            )
        return torch.from_numpy(rows)

    def _check_unique(self, names: Sequence[str], wanted: set[str], images: EvaluationSet) -> None:
        if not wanted:
            return
        count = Counter(name for name in map(str, names) if name in wanted)
        if several := [name for name, number in count.items() if number > 1]:
            raise InputError(
                f"protocol.pairs={self.location}: {several[0]} is the {self.key} of {count[several[0]]} images of "
                f"{images.name}: name them by {'path_1,path_2' if self.key == 'id' else 'id_1,id_2'}"
            )

    def _example(self, images: EvaluationSet) -> str:
        return str(self._names(images)[0])


def read_pairs(location: str) -> PairList:
    """Read a list of pairs.

    Args:
        location: CSV file with a header, path_1,path_2,same or id_1,id_2,same, in any order and optionally with fold;
            `same` is 1 or 0 (true or false), fold a whole number. Or pairs.txt of Labeled Faces in the Wild, whose
            images are looked for by folder and name. A path or URI.

    Raises:
        InputError: If it is not there, lacks a column, or a line of it is wrong; the message says which.
    """
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"protocol.pairs={location} cannot be read: {' '.join(str(error).split())}"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"protocol.pairs={location} is not UTF-8: convert it") from None
    if is_face_list(text):
        pairs = read_face_pairs(text, location)
        folds = np.array(pairs.folds, np.int64) if pairs.folds[-1] else None
        return PairList(location, "face", pairs.first, pairs.second, np.array(pairs.same, np.bool_), folds)
    return _read_table(text, location)


def _read_table(text: str, location: str) -> PairList:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        key, rows = _rows(reader, location)
    except csv.Error as error:
        raise InputError(f"protocol.pairs={location} after line {reader.line_num}: {error}") from None
    if not rows:
        raise InputError(f"protocol.pairs={location} has no pairs")
    same = np.array([_same(row["same"], number, location) for number, row in rows], np.bool_)
    folds = None
    if "fold" in rows[0][1]:
        folds = np.array([_whole(row["fold"], number, location) for number, row in rows], np.int64)
        if (folds == folds[0]).all():
            raise InputError(
                f"protocol.pairs={location}: all pairs are of one fold: leave the column fold out"
            )
    first, second = ([row[f"{key}_{side}"] for _, row in rows] for side in (1, 2))
    return PairList(location, key, first, second, same, folds)


def _rows(reader: csv.DictReader[str], location: str) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """What images are named by, and the lines with their numbers."""
    columns = [name.strip() for name in reader.fieldnames or ()]
    key = "path" if "path_1" in columns else "id"
    for name in (f"{key}_1", f"{key}_2", "same"):
        if name not in columns:
            raise InputError(
                f"protocol.pairs={location} lacks the column {name}: begin it with the line path_1,path_2,same or "
                f"id_1,id_2,same; it has {', '.join(columns) or 'nothing'}"
            )
    reader.fieldnames = columns
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise InputError(
                f"protocol.pairs={location} line {reader.line_num} has not {len(columns)} fields"
            )
        rows.append((reader.line_num, {name: value.strip() for name, value in row.items()}))
    return key, rows


def _same(value: str, line: int, location: str) -> bool:
    if value.lower() not in _SAME:
        raise InputError(f"protocol.pairs={location} line {line}: same={value} is wrong: write 1 or 0")
    return _SAME[value.lower()]


def _whole(value: str, line: int, location: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(
            f"protocol.pairs={location} line {line}: fold={value} is wrong: write a whole number"
        ) from None
