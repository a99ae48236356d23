"""Folders and archives, which hold images as named files: listed in sorted order, read with a limit.

No member is ever unpacked to disk, and no declared size is believed.
"""

from __future__ import annotations

import posixpath
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pyarrow.fs as pafs

from distmetric.data.decode import BadImageError
from distmetric.data.entries import Entry, Tree, open_archive, read_limited
from distmetric.data.locations import (
    IMAGE_SUFFIXES,
    Place,
    clean_name,
    first_line,
    is_hidden,
    readable,
)
from distmetric.data.tar_files import TarFile
from distmetric.errors import InputError
from distmetric.regular_files import open_regular


def open_tree(place: Place) -> Tree:
    """Open a folder, zip file or tar file.

    Raises:
        InputError: The archive is damaged, or names its members in no known encoding.
        ResourceError: There is no room for what a compressed tar file is decompressed to.
    """
    match place.kind:
        case "zip":
            return _Zip(place)
        case "tar":
            return TarFile(place)
        case _:
            return _Folder(place)


def is_image(name: str) -> bool:
    """Whether a file is to be read as an image, by its name."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def common_root(names: Sequence[str]) -> str:
    """The folder, with its slash, that holds all names and still has a folder above each of them."""
    root = names[0].partition("/")[0] + "/" if names else ""
    inside = all(name.startswith(root) and "/" in name[len(root) :] for name in names)
    return root if inside else ""


class _Folder:
    def __init__(self, place: Place) -> None:
        self.shown = place.shown
        self.entries = [Entry(name, True, path) for name, path in place.files]
        self._open: Callable[[str], Any] = place.fs.open_input_stream
        if isinstance(place.fs, pafs.LocalFileSystem):
            self._open = open_regular

    def read(self, handle: str, limit: int) -> bytes:
        try:
            with self._open(handle) as stream:
                return read_limited(stream, limit)
        except OSError as error:
            raise BadImageError("unreadable", error.strerror or first_line(error)) from None


# What zipfile raises for archives that are damaged, in its own words or by stumbling over them.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


class _Zip:
    def __init__(self, place: Place) -> None:
        self.shown = place.shown
        try:
            self._zip = zipfile.ZipFile(open_archive(place))
        except UnicodeDecodeError:
            raise InputError(f"{self.shown}: has member names that are not UTF-8; pack it again") from None
        except _ZIP_ERRORS as error:
            raise InputError(f"{self.shown}: is no usable zip file ({first_line(error)})") from None
        members = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        self._problems = _overlapping(members) | _replaced(members)
        self.entries = sorted(map(_entry, members), key=lambda entry: entry.name)

    def read(self, handle: zipfile.ZipInfo, limit: int) -> bytes:
        if problem := self._problems.get(_key(handle)):
            raise BadImageError(problem)
        if handle.flag_bits & 0x1:
            raise BadImageError("encrypted")
        # Others unpack a whole block at once, whatever it grows to.
        if handle.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImageError("compression is neither store nor deflate")
        try:
            with self._zip.open(handle) as stream:
                return read_limited(stream, limit)
        except _ZIP_ERRORS as error:
            raise BadImageError("damaged in the zip file", first_line(error)) from None


_Key = tuple[str, int]
_LOCAL_HEADER_BYTES = 30


def _key(info: zipfile.ZipInfo) -> _Key:
    return info.orig_filename, info.header_offset


def _overlapping(members: Sequence[zipfile.ZipInfo]) -> dict[_Key, str]:
    """Members that share bytes with the one after them, as in bombs that unpack the same bytes a million times."""
    ordered = sorted(members, key=lambda info: info.header_offset)
    return {
        _key(info): "overlaps another member"
        for info, after in pairwise(ordered)
        if info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > after.header_offset
    }


def _replaced(members: Sequence[zipfile.ZipInfo]) -> dict[_Key, str]:
    """Members that a later one of the same name takes the place of, as it would when all are unpacked in order."""
    last = {info.filename: info for info in members}
    return {
        _key(info): "replaced by a later member of the same name"
        for info in members
        if last[info.filename] is not info
    }


def _entry(info: zipfile.ZipInfo) -> Entry:
    name = info.filename
    if not info.flag_bits & 0x800:
        # Without the flag the standard says code page 437, but most programs wrote UTF-8.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    clean, safe = clean_name(name)
    return Entry(readable(clean), safe, info)
