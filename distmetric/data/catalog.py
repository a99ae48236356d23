"""The catalog: every image of a data set with its labels in one memory-mapped Arrow file.

The file holds exactly one record batch, so that a row is reached by two offsets and no column is ever copied:
any number of processes on a machine share one copy of the images in the page cache.
"""

from __future__ import annotations

import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmetric.data.catalog_format import IMAGE_CHECKSUMS, Integers, all_different, offsets_of, read_batch
from distmetric.data.splits import SPLITS
from distmetric.data.tracklets import Tracklets
from distmetric.errors import InputError

Strings = npt.NDArray[np.object_]


class Catalog:
    """A data set that is open for reading, as numpy columns and encoded images.

    Row numbers (0 <= row < len) address everything; `ids` are what results are reported by. A catalog pickles
    as its path and is mapped again by whoever receives it, so the file has to be reachable there.

    Args:
        path: The catalog file, as `Catalog.open` takes it.

    Raises:
        InputError: The file is missing, is no catalog, is empty or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._batch, self._file = read_batch(self.path)
        self.fingerprint: str = self._batch.schema.metadata[b"fingerprint"].decode()
        self.ids: Integers = self._numbers("id")
        self.labels: Integers = self._numbers("label")
        self.widths: npt.NDArray[np.int32] = self._numbers("width")
        self.heights: npt.NDArray[np.int32] = self._numbers("height")
        self.label_names: list[str] = self._names_by_label()
        if not all_different(self.ids):
            raise InputError(
                f"{self.path}: the column id repeats a value; write the catalog again with unique ids"
            )
        if (lowest := int(self.ids.min())) < 0:
            raise InputError(
                f"{self.path}: the column id has {lowest} in row {int(self.ids.argmin())}; "
                "write the catalog again with ids from 0"
            )
        images = self._batch.column("image")
        self._offsets = offsets_of(images)
        self._data = memoryview(images.buffers()[2])
        checked = IMAGE_CHECKSUMS in self._batch.schema.names
        self._checksums: npt.NDArray[np.uint32] | None = self._numbers(IMAGE_CHECKSUMS) if checked else None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalog:
        """Map a catalog file.

        Args:
            path: The catalog file; it has to be on this machine, or on a file system mounted here.

        Returns:
            The catalog.

        Raises:
            InputError: The file is missing, is no catalog, is empty or contradicts itself.
        """
        return cls(path)

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def __repr__(self) -> str:
        return f"Catalog({str(self.path)!r}, {len(self):,} rows, {self.num_classes:,} classes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.fingerprint)

    @property
    def num_classes(self) -> int:
        """Number of classes over all splits; labels are 0 .. num_classes - 1."""
        return len(self.label_names)

    @property
    def image_nbytes(self) -> int:
        """Bytes of all encoded images together."""
        return int(self._offsets[-1] - self._offsets[0])

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows: train, validation, test, query, gallery, then others by name."""
        known = {name: number for number, name in enumerate(SPLITS)}
        names: list[str] = self._split_codes.dictionary.to_pylist()
        return tuple(sorted(names, key=lambda name: (known.get(name, len(known)), name)))

    def rows(self, split: str) -> Integers:
        """Row numbers of one split.

        Args:
            split: One of `splits`.

        Returns:
            int64 (R,), ascending.

        Raises:
            InputError: The catalog has no such split.
        """
        if split not in self.splits:
            raise InputError(
                f"{self.path}: no split is called {split!r}; choose one of {', '.join(self.splits)}"
            )
        code = self._split_codes.dictionary.to_pylist().index(split)
        return np.flatnonzero(self._split_codes.indices.to_numpy() == code).astype(np.int64)

    @cached_property
    def groups(self) -> Strings:
        """Group name of every row, (len,) of str."""
        return self._strings(self._batch.column("group"))

    @cached_property
    def cameras(self) -> Integers | None:
        """Camera number of every row, int64 (len,) with -1 where unknown; None if no row has one."""
        if "camera" not in self._batch.schema.names:
            return None
        return np.asarray(self._batch.column("camera").fill_null(-1).to_numpy(zero_copy_only=False), np.int64)

    @cached_property
    def tracklets(self) -> Tracklets:
        """Which rows are frames of one tracklet; where the catalog does not say, each row is one of its own.

        Raises:
            InputError: The columns tracklet and frame contradict themselves, or a tracklet has two labels or splits.
        """
        names, frames = (
            self._batch.column(name) if name in self._batch.schema.names else None
            for name in ("tracklet", "frame")
        )
        found = Tracklets(self.path, names, frames, len(self))
        found.check_agree("label", np.asarray(self.labels))
        found.check_agree("split", self._split_codes.indices.to_numpy())
        return found

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the attributes, sorted; empty if there are none."""
        if "attributes" not in self._batch.schema.names:
            return ()
        return tuple(field.name for field in self._batch.schema.field("attributes").type)

    def attribute(self, name: str) -> Strings:
        """One attribute of every row.

        Args:
            name: One of `attribute_names`.

        Returns:
            (len,) of str, None where the row does not say.

        Raises:
            InputError: The catalog has no such attribute.
        """
        if name not in self.attribute_names:
            known = ", ".join(self.attribute_names) or "it has none"
            raise InputError(f"{self.path}: no attribute is called {name!r}; choose one of: {known}")
        return self._strings(self._batch.column("attributes").field(name))

    def values(self, name: str, rows: Integers) -> list[Any]:
        """One column of some rows, without reading it for all of them.

        Args:
            name: "group", "camera", "tracklet", or "attribute." and one of `attribute_names`.
            rows: int64 (R,) row numbers.

        Returns:
            R values: str, int (-1 where unknown), or str and None where the row does not say.
        """
        if name.startswith("attribute."):
            column = self._batch.column("attributes").field(name.removeprefix("attribute."))
        else:
            column = self._batch.column(name)
        taken = column.take(pa.array(rows, pa.int64()))
        values: list[Any] = (taken.fill_null(-1) if name == "camera" else taken).to_pylist()
        return values

    def image_bytes(self, row: int) -> memoryview:
        """The encoded image of a row, as a view of the mapped file that costs no copy.

        Args:
            row: Row number.

        Returns:
            The bytes of the image file as it was ingested.

        Raises:
            IndexError: There is no such row.
            InputError: The bytes are not those that were ingested, or the file's size has changed since it was
                opened. (Catalogs of older releases have no checksums of their images.)

        Cost: one pass over the bytes for their checksum, a few percent of what decoding them takes.
        """
        self._check_row(row)
        # A file that was cut off while it is mapped would kill the process at the first touch of what is gone.
        if self._file.size() != len(self._file):
            raise InputError(
                f"{self.path}: was changed while in use; start again with the catalog as it is now, and replace "
                "catalogs in one step (mv, not cp)"
            )
        image = self._data[self._offsets[row] : self._offsets[row + 1]]
        if self._checksums is not None and zlib.crc32(image) != self._checksums[row]:
            raise InputError(f"{self.described(row)} is damaged: its checksum does not fit; ingest again")
        return image

    def described(self, row: int) -> str:
        """How to name the image of a row to people: catalog, row, id and path."""
        return f"{self.path}: the image of row {row}, id {self.ids[row]} ({self.source_path(row)})"

    def source_path(self, row: int) -> str:
        """Where the image of a row came from: a path, a URI, or an archive with the member's name.

        Args:
            row: Row number.

        Returns:
            The path as it was at ingest.

        Raises:
            IndexError: There is no such row.
        """
        self._check_row(row)
        return str(self._batch.column("path")[int(row)].as_py())

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a catalog with {len(self)} rows")

    @cached_property
    def _split_codes(self) -> Any:
        return self._batch.column("split").dictionary_encode()

    def _numbers(self, name: str) -> Any:
        return self._batch.column(name).to_numpy()

    @staticmethod
    def _strings(column: Any) -> Strings:
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.object_)

    def _names_by_label(self) -> list[str]:
        encoded = self._batch.column("label_name").dictionary_encode()
        codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        label_of = np.empty(len(names), np.int64)
        label_of[codes] = self.labels
        dense = np.array_equal(np.sort(label_of), np.arange(len(names)))
        if not dense or not np.array_equal(label_of[codes], self.labels):
            raise InputError(
                f"{self.path}: label and label_name are not one to one over 0 .. {len(names) - 1}; "
                "write the catalog again with CatalogWriter"
            )
        return [names[code] for code in np.argsort(label_of)]


def _reopen(path: str, fingerprint: str) -> Catalog:
    catalog = Catalog(path)
    if catalog.fingerprint != fingerprint:
        raise InputError(f"{path}: was replaced by another catalog while in use; start the run again")
    return catalog
