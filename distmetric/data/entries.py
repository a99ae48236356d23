"""What folders and archives have in common: files by their names within, read with a limit."""

from __future__ import annotations

import io
from typing import Any, NamedTuple, Protocol

import pyarrow.fs as pafs

from distmetric.data.decode import BadImageError
from distmetric.data.locations import Place
from distmetric.regular_files import check_file, open_regular


class Entry(NamedTuple):
    """A file of a folder or archive.

    Attributes:
        name: Its path within.
        safe: Whether that path stays within.
        handle: What `Tree.read` opens it by.
    """

    name: str
    safe: bool
    handle: Any


class Tree(Protocol):
    """A folder or archive that is open."""

    shown: str
    entries: list[Entry]

    def read(self, handle: Any, limit: int) -> bytes:
        """The bytes of a file.

        Raises:
            BadImageError: It cannot be read, or has more than `limit` bytes.
        """
        ...


def open_archive(place: Place) -> Any:
    """The bytes of an archive, to be read at any place in them.

    Raises:
        OSError: It cannot be opened, or is a pipe, socket or device.
    """
    if isinstance(place.fs, pafs.LocalFileSystem):
        return open_regular(place.path)
    check_file(place.fs, place.path)
    return io.BufferedReader(place.fs.open_input_file(place.path), 1 << 18)


def read_limited(stream: Any, limit: int) -> bytes:
    """Everything that a stream has, if that is not too much.

    Raises:
        BadImageError: It has more than `limit` bytes, of which no more were read.
    """
    parts, left = [], limit + 1
    while left > 0 and (part := stream.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise BadImageError("too many bytes", f"limit {limit:,}")
    return b"".join(parts)
