"""Where the sources of images lie: local paths and URIs, looked at but not yet opened."""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from distmetric.errors import InputError

_FORMATS = "bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
PARQUET_SUFFIXES = (".parquet", ".parq")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class Place(NamedTuple):
    """A source that exists.

    Attributes:
        kind: folder, zip, tar or parquet.
        fs: File system that it is on.
        path: Where it is on that.
        shown: How to name it to people, without any secrets.
        files: (name within, path to open) of the files of a folder.
    """

    kind: str
    fs: Any
    path: str
    shown: str
    files: tuple[tuple[str, str], ...] = ()


def locate(source: str) -> Place:
    """Find a source and see of which kind it is; folders are listed.

    Args:
        source: A local path or any URI that `pyarrow.fs` opens.

    Returns:
        Where it is.

    Raises:
        InputError: It does not exist, cannot be read, or is of no kind that holds images.
    """
    shown = without_secrets(source)
    fs, path = open_file_system(source, shown)
    try:
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            files = _walk_local(path) if isinstance(fs, pafs.LocalFileSystem) else _walk_remote(fs, path)
            return Place(_kind_of_folder(files, shown), fs, path, shown.rstrip("/"), tuple(sorted(files)))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shown}: cannot be read ({first_line(error)})") from None
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{shown}: does not exist; name a folder, an archive or Parquet")
    if info.type != pafs.FileType.File:
        raise InputError(f"{shown}: is a pipe, socket or device; name a folder, an archive or Parquet")
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".zip":
        return Place("zip", fs, path, shown)
    if path.lower().endswith(TAR_SUFFIXES):
        return Place("tar", fs, path, shown)
    if suffix in PARQUET_SUFFIXES:
        return Place("parquet", fs, path, shown, ((posixpath.basename(path), path),))
    raise InputError(
        f"{shown}: is neither a folder nor .zip, .tar, .tar.gz, .tgz or .parquet; convert it to one of them"
    )


def open_file_system(source: str, shown: str) -> tuple[Any, str]:
    """The Arrow file system of a path or URI, and the path on it.

    Args:
        source: A local path or any URI that `pyarrow.fs` opens.
        shown: How to name it to people.

    Returns:
        File system and path.

    Raises:
        InputError: The URI is of an unknown scheme or cannot be understood.
    """
    try:
        source.encode()
    except UnicodeEncodeError:
        raise InputError(f"{readable(shown)}: is not UTF-8; rename it") from None
    if "://" not in source:
        return pafs.LocalFileSystem(), str(Path(source).expanduser().absolute())
    try:
        fs, path = pafs.FileSystem.from_uri(source)
    except (OSError, ValueError) as error:
        # Arrow quotes what it was given, and that may hold keys.
        reason = first_line(error) if source == shown else "check its scheme, host and options"
        raise InputError(f"{shown}: cannot be opened ({reason})") from None
    return fs, path


def without_secrets(source: str) -> str:
    """A URI without user, password and query, which may carry keys; other paths as they are."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return readable((str(error).splitlines() or [type(error).__name__])[0])


def _walk_local(top: str) -> list[tuple[str, str]]:
    """(name within, path to open) of every file; links are followed, but no folder is entered twice."""
    files, visited = [], set()
    for folder, subfolders, names in os.walk(top, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        within = os.path.relpath(folder, top)
        for name in names:
            shown = posixpath.normpath(posixpath.join(within.replace(os.sep, "/"), name))
            files.append((readable(shown), os.path.join(folder, name)))  # noqa: PTH118 - may not be UTF-8
    return files


def _walk_remote(fs: Any, top: str) -> list[tuple[str, str]]:
    found = fs.get_file_info(pafs.FileSelector(top, recursive=True))
    return [(posixpath.relpath(f.path, top), f.path) for f in found if f.type == pafs.FileType.File]


def readable(name: str) -> str:
    """A name that Arrow and a one-line message can hold: no stray bytes, no line breaks."""
    with suppress(
        UnicodeEncodeError
    ):  # surrogates that stand for no byte of a file's name, and are escaped below
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _kind_of_folder(files: list[tuple[str, str]], shown: str) -> str:
    suffixes = {posixpath.splitext(name)[1].lower() for name, _ in files if not is_hidden(name)}
    if not suffixes.intersection(PARQUET_SUFFIXES):
        return "folder"
    if suffixes & IMAGE_SUFFIXES:
        raise InputError(f"{shown}: holds both images and Parquet files; name the folder of one kind")
    return "parquet"


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, lies in a hidden folder, or is what macOS adds to zip files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def clean_name(name: str) -> tuple[str, bool]:
    """A member's name with forward slashes and without empty parts, and whether it stays inside."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    safe = not name.startswith("/") and ".." not in parts and not re.match(r"[A-Za-z]:", name)
    return ("/".join(parts), True) if safe else (name, False)
