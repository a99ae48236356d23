"""Where things are kept: local paths, and URIs of whatever file system pyarrow reaches."""

from __future__ import annotations

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
