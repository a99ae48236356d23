"""The images of one or more sources, one at a time and not yet decoded."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from distmetric.data.decode import BadImageError
from distmetric.data.items import NO_FOLDER, Item, Labels
from distmetric.data.locations import Place, locate
from distmetric.data.manifest import read_manifest
from distmetric.data.parquet import ParquetSource
from distmetric.data.tally import Tally
from distmetric.data.trees import Entry, Tree, common_root, is_image, open_tree
from distmetric.errors import InputError

MAX_IMAGE_BYTES = 64 << 20
# A source that was counted stays open, and a process may have only so many open files.
_MOST_COUNTED = 64


class Sources:
    """Several sources as one, in the given order; of equal images under equal paths the first one counts.

    Args:
        sources: Folders, zip files and Parquet; local paths or any URIs that `pyarrow.fs` opens.
        manifest: CSV file that says which images to read; None for all.
        limit: Most bytes of one image, counted while unpacking.

    Raises:
        InputError: There is no source, or one that does not exist or cannot be opened, or the manifest is
            wrong or cannot describe a source.
    """

    def __init__(self, sources: Sequence[str], manifest: str | None, limit: int) -> None:
        if not sources:
            raise InputError("sources is empty; name a folder, a zip file or Parquet")
        self._rows = None if manifest is None else read_manifest(manifest)
        self._sources = [_open(locate(source), self._rows, limit) for source in sources]
        self.total = self._count()

    def items(self, tally: Tally) -> Iterator[Item]:
        """Read the images, those that cannot be used included; once only.

        Args:
            tally: Where to count what is read, skipped and ignored.

        Raises:
            InputError: A source cannot be read to its end.
        """
        found = set[str]()
        seen: dict[bytes, int] = {}
        several, number = len(self._sources) > 1, 0
        while self._sources:
            source = self._sources.pop(0)  # so that it is closed when it has been read
            for item in source.items(tally):
                tally.read += 1
                if self._rows is not None:
                    found.add(item.path)
                # One source has no second copy of a path, and a hash of everything is not free.
                if several and item.problem is None and seen.setdefault(_digest(item), number) != number:
                    tally.duplicates += 1
                else:
                    yield item
            number += 1
        for path in sorted((self._rows or {}).keys() - found):
            tally.read += 1
            yield Item(path, path, problem=BadImageError("named in the manifest, but in no source"))

    def _count(self) -> int | None:
        if self._rows is not None:
            return len(self._rows)
        if len(self._sources) > _MOST_COUNTED:
            return None
        total = 0
        for source in self._sources:
            if (count := source.count()) is None:
                return None
            total += count
        return total


def _open(place: Place, rows: Mapping[str, Labels] | None, limit: int) -> _TreeSource | ParquetSource:
    if place.kind != "parquet":
        return _TreeSource(place, rows, limit)
    if rows is not None:
        raise InputError(f"{place.shown}: a manifest cannot describe Parquet; add its columns to the file")
    return ParquetSource(place, limit)


def _digest(item: Item) -> bytes:
    name = f"{item.class_name}\0{item.path}\0".encode()
    return hashlib.blake2b(name + hashlib.blake2b(item.data).digest(), digest_size=16).digest()


class _TreeSource:
    def __init__(self, place: Place, rows: Mapping[str, Labels] | None, limit: int) -> None:
        self._place, self._rows, self._limit = place, rows, limit

    @cached_property
    def _tree(self) -> Tree:
        return open_tree(self._place)

    @cached_property
    def _chosen(self) -> list[Entry]:
        return [e for e in self._tree.entries if not e.safe or _is_wanted(e.name, self._rows)]

    def count(self) -> int:
        return len(self._chosen)

    def items(self, tally: Tally) -> Iterator[Item]:
        tally.ignored += len(self._tree.entries) - len(self._chosen)
        names = [entry.name for entry in self._chosen if entry.safe]
        root = "" if self._rows is not None else common_root(names)
        for name, safe, handle in self._chosen:
            path = name.removeprefix(root) if safe else name
            labels = Labels(posixpath.dirname(path))
            if self._rows is not None and safe:
                labels = self._rows[name]
            item = Item(path, f"{self._tree.shown}/{name}", labels)
            try:
                if not safe:
                    raise BadImageError("unsafe member name")
                item = replace(item, data=self._tree.read(handle, self._limit))
                if not labels.class_name:
                    raise BadImageError(NO_FOLDER)
                yield item
            except BadImageError as error:
                yield replace(item, problem=error)


def _is_wanted(name: str, rows: Mapping[str, Labels] | None) -> bool:
    return is_image(name) if rows is None else name in rows
