"""Where things are kept: local paths, and URIs of whatever file system pyarrow reaches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from distmetric.errors import InputError


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a local path or of a URI that pyarrow understands.

    Raises:
        InputError: If the URI cannot be understood.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).expanduser().resolve())
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError) as error:
        raise InputError(f"{location} cannot be opened: {' '.join(str(error).split())}") from None
    return filesystem, path


def absolute(location: str) -> str:
    """A location that means the same in every working directory."""
    return location.rstrip("/") if "://" in location else open_location(location)[1]


@contextmanager
def put_in_place(filesystem: fs.FileSystem, path: str) -> Iterator[str]:
    """Give a path to write a file to that is to be at `path` complete or not at all.

    Locally that is a file beside it, which is brought to the disk and then renamed, and removed if writing it
    fails. An object store shows an object when its upload has ended; there it is `path` itself.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        yield path
        return
    part = f"{path}.part"
    try:
        yield part
        _sync(part)
        Path(part).replace(path)
        _sync(path.rpartition("/")[0])
    except BaseException:
        with suppress(OSError):
            Path(part).unlink()
        raise


def _sync(path: str) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
