"""Where things are kept, local paths and URIs of whatever file system pyarrow reaches, and how: in place, sealed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from distmetric.errors import InputError, ResourceError

_CHECK, _KIND = "check", "sha256:"


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a local path or of a URI that pyarrow understands.

    Raises:
        InputError: If the URI cannot be understood, or the path is none.
    """
    try:
        if "://" not in location:
            return fs.LocalFileSystem(), str(Path(location).expanduser().resolve())
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such home folder, a loop of links
        raise InputError(f"{location} cannot be opened: {reason(error)}") from None
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


def put_bytes(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    """Have a file of these bytes at `path`, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with put_in_place(filesystem, path) as target, filesystem.open_output_stream(target) as stream:
        stream.write(data)


def make_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Make a folder and those above it; locally, when this returns they are on the disk.

    Raises:
        OSError: If it cannot be made.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        filesystem.create_dir(path, recursive=True)
        return
    fresh = [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
    filesystem.create_dir(path, recursive=True)
    for folder in fresh:
        _sync(str(folder.parent))


def sealed(document: Mapping[str, Any]) -> bytes:
    """A JSON document that tells whether it is intact: with the SHA-256 of all the rest as its last value, "check".

    Args:
        document: Plain containers, without the key "check".

    Returns:
        The text, UTF-8.
    """
    content = {key: value for key, value in document.items() if key != _CHECK}
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return json.dumps({**content, _CHECK: f"{_KIND}{digest}"}, indent=1).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The document that `sealed` made into these bytes, without its "check".

    A document of an older version, which has none, is returned as it is.

    Raises:
        ValueError: If it is no JSON object, or if a single byte of it has changed.
    """
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    # Whichever byte has changed, the key or the kind of its value is still there to tell that it was sealed.
    values = (value for value in document.values() if isinstance(value, str))
    if _CHECK not in document and not any(re.fullmatch(rf"{_KIND}[0-9a-f]{{64}}", value) for value in values):
        return document
    document.pop(_CHECK, None)
    if sealed(document) != data:
        raise ValueError("its checksum does not fit")
    return document


def write_document(location: str, document: Mapping[str, Any]) -> None:
    """Put a sealed document in place; its folder is made.

    Raises:
        OSError: If it cannot be written; what was there before is untouched.
    """
    filesystem, path = open_location(location)
    make_folder(filesystem, path.rpartition("/")[0])
    put_bytes(filesystem, path, sealed(document))


def read_document(location: str) -> dict[str, Any]:
    """Read what `write_document` wrote, or what an older version wrote without a seal.

    Raises:
        OSError: If it is not there, or cannot be read.
        ValueError: If it is damaged.
    """
    filesystem, path = open_location(location)
    with filesystem.open_input_stream(path) as stream:
        return unsealed(stream.read())


def write_text(location: str, text: str, fix: str) -> None:
    """Write a text in UTF-8 so that it is at its place whole, or not at all.

    Raises:
        ResourceError: If it cannot be written, with the fix.
    """
    with writing(location, fix):
        put_bytes(*open_location(location), text.encode())


def check_writable(location: str) -> None:
    """See whether a folder could be made and written to, and leave no trace of it; of local ones only.

    Raises:
        OSError: If not.
    """
    filesystem, path = open_location(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    nearest = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix=".distmetric-", dir=nearest) as probe:
        (Path(probe) / "probe").write_bytes(bytes(1 << 12))


@contextmanager
def writing(what: str, fix: str = "free space, fix access, or choose another place") -> Iterator[None]:
    """Say in one line that something cannot be written, where that is so.

    Args:
        what: A key with its value, or a file.
        fix: What to do about it.

    Raises:
        ResourceError: For an OSError in the block.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{what} cannot be written ({reason(error)}): {fix}") from None


def reason(error: Exception) -> str:
    """Why a file could not be read or written, on one line."""
    return " ".join(str(error).split())


def _sync(path: str) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
