"""The images of a folder or archive, or a single one, by their places in a sorted list, to be read in any order."""

from __future__ import annotations

import hashlib
import posixpath
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from distmetric.data.decode import BadImageError
from distmetric.data.entries import Entry, Tree
from distmetric.data.locations import IMAGE_SUFFIXES, Place, locate, open_file_system, without_secrets
from distmetric.data.sources import MAX_IMAGE_BYTES
from distmetric.data.tar_files import TarMember
from distmetric.data.trees import common_root, is_image, open_tree
from distmetric.errors import InputError


class ListedImage(NamedTuple):
    """An image that is there by its name; nobody has read it yet.

    Attributes:
        path: Its path within the source, less a single folder at the top that holds everything.
        origin: How to name it to people: source and path.
        class_name: The folder it is in; "" for an image that is in none.
        entry: What `ImageReader` reads it by.
    """

    path: str
    origin: str
    class_name: str
    entry: Entry

    @property
    def group(self) -> str:
        """The first part of the name of its class."""
        return self.class_name.partition("/")[0]


class ImageReader:
    """Reads listed images, in this process or, pickled without the list, in another one.

    Args:
        place: Where they are; its files are not needed.
        source: How `place` was found.
        limit: Most bytes of one image file, counted while unpacking.
    """

    def __init__(self, place: Place, source: str, limit: int = MAX_IMAGE_BYTES) -> None:
        self._place, self._source, self._limit = place, source, limit

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._place.kind, self._place.shown, self._source, self._limit)

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return not isinstance(self._place.fs, pafs.LocalFileSystem)

    @cached_property
    def tree(self) -> Tree:
        """The folder or archive, opened when it is needed first."""
        return open_tree(self._place)

    def read(self, image: ListedImage) -> bytes:
        """The encoded image.

        Raises:
            BadImageError: It cannot be read, is too large, or its name leads out of the archive.
        """
        if not image.entry.safe:
            raise BadImageError("unsafe member name")
        return self.tree.read(image.entry.handle, self._limit)


class ImageListing:
    """The images of a folder or archive in sorted order, or a single image file.

    Files that are no images by their names are left out. A place in the list depends on names only, so it stays
    the same whether other images can be read or not.

    Args:
        source: Image folder, zip file, tar file or image file; a local path or any URI that `pyarrow.fs` opens.
        limit: Most bytes of one image file, counted while unpacking.

    Raises:
        InputError: The source does not exist, cannot be read, or is of another kind.
    """

    def __init__(self, source: str, limit: int = MAX_IMAGE_BYTES) -> None:
        place, self._single = _locate(source)
        self.reader = ImageReader(place, source, limit)
        self._place, self._source = place, source
        entries = self.reader.tree.entries
        self._entries = [e for e in entries if self._single or not e.safe or is_image(e.name)]
        self._root = common_root([entry.name for entry in self._entries if entry.safe])

    def __len__(self) -> int:
        return len(self._entries)

    def images(self, start: int, stop: int) -> list[ListedImage]:
        """Those at places start .. stop - 1."""
        return [self._image(entry) for entry in self._entries[start:stop]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names with what tells a changed file: size and checksum in a zip file, size and time elsewhere.

        Cost: one look at every file, and at no file's content.
        """
        digest = hashlib.sha256()
        remote = self._remote_marks() if self.reader.is_remote and self._place.kind == "folder" else {}
        for name, safe, handle in self._entries:
            if isinstance(handle, zipfile.ZipInfo):
                mark = f"{handle.file_size} {handle.CRC:08x}"
            elif isinstance(handle, TarMember):
                mark = f"{handle.size} {handle.time}"
            else:
                mark = remote.get(handle, "") if self.reader.is_remote else _mark(handle)
            digest.update(f"{name}\0{safe}\0{mark}\n".encode())
        return digest.hexdigest()

    def _image(self, entry: Entry) -> ListedImage:
        path = entry.name.removeprefix(self._root) if entry.safe else entry.name
        return ListedImage(path, f"{self.reader.tree.shown}/{entry.name}", posixpath.dirname(path), entry)

    def _remote_marks(self) -> dict[str, str]:
        place = self._place
        one = self._single
        wanted = [place.files[0][1]] if one else pafs.FileSelector(place.path, recursive=True)
        found = place.fs.get_file_info(wanted)
        return {info.path: f"{info.size} {info.mtime_ns}" for info in found}


def _locate(source: str) -> tuple[Place, bool]:
    """Where the images are, and whether the source is a single one."""
    if posixpath.splitext(source.rstrip("/"))[1].lower() in IMAGE_SUFFIXES:
        shown = without_secrets(source)
        fs, path = open_file_system(source, shown)
        if fs.get_file_info(path).type == pafs.FileType.File:
            folder, _, name = shown.rpartition("/")
            return Place("folder", fs, posixpath.dirname(path), folder or ".", ((name, path),)), True
    place = locate(source)
    if place.kind == "parquet":
        raise InputError(f"{place.shown}: holds Parquet; name a folder of images, an archive or an image")
    return place, False


def _mark(path: str) -> str:
    try:
        status = Path(path).stat()
    except OSError:
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


def _reopen(kind: str, shown: str, source: str, limit: int) -> ImageReader:
    fs, path = open_file_system(source, shown)
    return ImageReader(Place(kind, fs, path, shown), source, limit)
