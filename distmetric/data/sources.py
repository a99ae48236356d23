"""The images of one or more sources, one at a time and not yet decoded."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from distmetric.data.decode import BadImageError
from distmetric.data.entries import Entry, Tree
from distmetric.data.items import NO_FOLDER, Item, Labels
from distmetric.data.layouts import LAYOUTS, Layout
from distmetric.data.layouts.annotations import LayoutFiles
from distmetric.data.locations import Place, locate
from distmetric.data.manifest import read_manifest
from distmetric.data.parquet import ParquetSource
from distmetric.data.tally import Tally
from distmetric.data.trees import common_root, is_image, open_tree
from distmetric.errors import InputError

MAX_IMAGE_BYTES = 64 << 20
# A source that was counted stays open, and a process may have only so many open files.
_MOST_COUNTED = 64


class Sources:
    """Several sources as one, in the given order; of equal images under equal paths the first one counts.

    Args:
        sources: Folders, archives and Parquet; local paths or any URIs that `pyarrow.fs` opens.
        manifest: CSV file that says which images to read; None for all. With layouts, the list of the one that has one.
        limit: Most bytes of one image, counted while unpacking.
        layouts: Names of `LAYOUTS`, one for each source or one for all; empty: the folders are the classes.
        tracklet_folders: Whether the innermost folders of trees are tracklets.

    Raises:
        InputError: There is no source, or one that does not exist or cannot be opened, or the manifest or a layout
            is wrong or cannot describe a source.
    """

    def __init__(
        self,
        sources: Sequence[str],
        manifest: str | None,
        limit: int,
        layouts: Sequence[str] = (),
        tracklet_folders: bool = False,
    ) -> None:
        if not sources:
            raise InputError("sources is empty; name a folder, an archive or Parquet")
        self._rows: Mapping[str, Labels] | None = None
        if layouts and tracklet_folders:
            raise InputError(
                "tracklet_folders=true, but a layout says what its folders are; leave one of them out"
            )
        if layouts:
            chosen = _chosen_layouts(layouts, len(sources), manifest)
            self._sources: list[_TreeSource | ParquetSource] = [
                _LayoutSource(_tree_place(source), layout, manifest, limit)
                for source, layout in zip(sources, chosen, strict=True)
            ]
        else:
            self._rows = None if manifest is None else read_manifest(manifest)
            self._sources = [_open(locate(source), self._rows, limit, tracklet_folders) for source in sources]
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


def _chosen_layouts(layouts: Sequence[str], count: int, manifest: str | None) -> list[Layout]:
    """What says what the files of each source are.

    Raises:
        InputError: A layout is unknown, there are not as many as sources, or not one of them takes the manifest.
    """
    for name in layouts:
        if name not in LAYOUTS:
            raise InputError(f"layout={name!r}: choose one of {', '.join(LAYOUTS)}")
    if len(layouts) not in (1, count):
        raise InputError(f"{len(layouts)} layouts for {count} sources; give one for all, or one for each")
    names = list(layouts) if len(layouts) == count else [*layouts] * count
    takers = [name for name in names if LAYOUTS[name].annotation is not None]
    if manifest is not None and len(takers) != 1:
        raise InputError(
            f"manifest={manifest}: layout={','.join(layouts)} has its lists in the source; leave manifest out"
            if not takers
            else f"manifest={manifest}: {len(takers)} sources have such a list; ingest them one by one"
        )
    return [LAYOUTS[name] for name in names]


def _tree_place(source: str) -> Place:
    place = locate(source)
    if place.kind == "parquet":
        raise InputError(f"{place.shown}: a layout cannot describe Parquet; leave layout out")
    return place


def _open(
    place: Place, rows: Mapping[str, Labels] | None, limit: int, tracklet_folders: bool
) -> _TreeSource | ParquetSource:
    if tracklet_folders and (rows is not None or place.kind == "parquet"):
        told = "Parquet" if rows is None else "a manifest"
        raise InputError(
            f"{place.shown}: tracklet_folders=true, but {told} says it in columns tracklet and frame"
        )
    if place.kind != "parquet":
        return _TreeSource(place, rows, limit, tracklet_folders)
    if rows is not None:
        raise InputError(f"{place.shown}: a manifest cannot describe Parquet; add its columns to the file")
    return ParquetSource(place, limit)


def _digest(item: Item) -> bytes:
    name = f"{item.class_name}\0{item.path}\0".encode()
    return hashlib.blake2b(name + hashlib.blake2b(item.data).digest(), digest_size=16).digest()


class _TreeSource:
    def __init__(
        self, place: Place, rows: Mapping[str, Labels] | None, limit: int, tracklet_folders: bool = False
    ) -> None:
        self._place, self._rows, self._limit = place, rows, limit
        self._labels_of = _frame_labels if tracklet_folders else _image_labels

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
            labels = self._labels_of(path)
            if self._rows is not None and safe:
                labels = self._rows[name]
            item = Item(path, f"{self._tree.shown}/{name}", labels)
            try:
                if not safe:
                    raise BadImageError("unsafe member name")
                item = replace(item, data=self._tree.read(handle, self._limit))
                if not labels.class_name:
                    raise BadImageError(NO_FOLDER)
                if labels.tracklet and labels.frame is None:
                    raise BadImageError("no frame number", "its name has to end in one")
                yield item
            except BadImageError as error:
                yield replace(item, problem=error)


class _LayoutSource(_TreeSource):
    """A published data set, of which its own files say what the others show."""

    def __init__(self, place: Place, layout: Layout, manifest: str | None, limit: int) -> None:
        super().__init__(place, None, limit)
        self._rows = layout.read(LayoutFiles(self._tree, manifest if layout.annotation else None))

    def count(self) -> int:
        return len(self._rows or ())

    def items(self, tally: Tally) -> Iterator[Item]:
        yield from super().items(tally)
        there = {entry.name for entry in self._chosen}
        for path in sorted((self._rows or {}).keys() - there):
            missing = BadImageError("listed, but not in the source")
            yield Item(path, f"{self._tree.shown}/{path}", problem=missing)


def _image_labels(path: str) -> Labels:
    return Labels(posixpath.dirname(path))


def _frame_labels(path: str) -> Labels:
    """The innermost folder is the tracklet, what is above it the class, and the file's name ends in the frame."""
    tracklet = posixpath.dirname(path)
    number = re.search("[0-9]{1,18}$", posixpath.splitext(posixpath.basename(path))[0])
    frame = None if number is None else int(number[0])
    return Labels(posixpath.dirname(tracklet), tracklet=tracklet, frame=frame)


def _is_wanted(name: str, rows: Mapping[str, Labels] | None) -> bool:
    return is_image(name) if rows is None else name in rows
