"""Tar files, plain or compressed by gzip: members are read where they lie, and none is unpacked to disk."""

from __future__ import annotations

import errno
import gzip
import tarfile
import tempfile
import threading
import zlib
from typing import Any, NamedTuple

from distmetric.data.decode import BadImageError
from distmetric.data.entries import Entry, open_archive, read_limited
from distmetric.data.locations import Place, clean_name, first_line, readable
from distmetric.errors import InputError, ResourceError

_GZIP = b"\x1f\x8b"
# Images hardly become smaller by gzip, and lists of them not as much as this.
_MOST_GROWTH, _GROWS_ALWAYS = 100, 64 << 20
_LONGEST_HEADER = 1 << 20
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error)


class TarMember(NamedTuple):
    """Where a member lies in the decompressed file.

    Attributes:
        start: Of its bytes.
        size: Number of its bytes.
        time: When it was changed last.
        problem: Why it cannot be read, or "".
    """

    start: int
    size: int
    time: float
    problem: str


class TarFile:
    """A tar file that is open; see `Tree`.

    A compressed one cannot be read at any place in it, so all of it is decompressed once into a temporary file without
    a name, in the folder that TMPDIR says.

    Args:
        place: Where it is.

    Raises:
        InputError: It is damaged, or grows beyond reason when it is decompressed.
        ResourceError: There is no room for the decompressed file.

    Cost: one pass over the file; decompressed, as much disk as that takes until the process is done with it.
    """

    def __init__(self, place: Place) -> None:
        self.shown = place.shown
        self._lock = threading.Lock()
        try:
            self._file = open_archive(place)
            if self._file.read(len(_GZIP)) == _GZIP:
                self._file.seek(0)
                most = _MOST_GROWTH * place.fs.get_file_info(place.path).size + _GROWS_ALWAYS
                self._file = _decompressed(self._file, most, self.shown)
            members = _members(self._file)
        except _TAR_ERRORS as error:
            raise InputError(f"{self.shown}: is no usable tar file ({first_line(error)})") from None
        last = {info.name: info for info in members}
        entries = [_entry(info, last[info.name] is not info) for info in members]
        self.entries = sorted(entries, key=lambda entry: entry.name)

    def read(self, handle: TarMember, limit: int) -> bytes:
        """The bytes of a member; see `Tree`."""
        if handle.problem:
            raise BadImageError(handle.problem)
        if handle.size > limit:
            raise BadImageError("too many bytes", f"limit {limit:,}")
        with self._lock:  # several threads may decode images
            try:
                self._file.seek(handle.start)
                return read_limited(_Part(self._file, handle.size), limit)
            except OSError as error:
                raise BadImageError("unreadable", error.strerror or first_line(error)) from None


class _Part:
    """The next bytes of a file, and no more of them."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        part: bytes = self._file.read(min(size, self._left))
        self._left -= len(part)
        return part


class _Headers:
    """A file of which headers are read: tarfile would believe one that says how long another one is."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        part: bytes = self._file.read(size)
        return part


def _decompressed(file: Any, most: int, shown: str) -> Any:
    spool = tempfile.TemporaryFile(prefix="distmetric-")  # noqa: SIM115 - stays open with the tar file
    left = most
    try:
        with file, gzip.GzipFile(fileobj=file) as stream:
            while part := stream.read(1 << 20):
                left -= len(part)
                if left < 0:
                    raise InputError(
                        f"{shown}: grows to more than {_MOST_GROWTH} times its size when it is decompressed; if it is "
                        "to be trusted, decompress it yourself (gunzip)"
                    )
                spool.write(part)
        spool.flush()
    except OSError as error:
        spool.close()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{shown}: there is no room for it in {tempfile.gettempdir()}, where it is decompressed; set TMPDIR to "
                "a folder on a larger disk"
            ) from None
        raise
    except BaseException:
        spool.close()
        raise
    return spool


def _members(file: Any) -> list[tarfile.TarInfo]:
    """All that are no folders, in the order of the file.

    Raises:
        OSError, tarfile.TarError, ...: As tarfile, and where the file does not end as one does: tarfile takes what it
            cannot read for the end.
    """
    file.seek(0)
    with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
        members = [info for info in archive if not info.isdir()]
        end = archive.offset
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut off at byte {end:,}")
    return members


def _entry(info: tarfile.TarInfo, replaced: bool) -> Entry:
    problem = ""
    if not info.isreg():
        problem = "a link" if info.islnk() or info.issym() else "not a regular file"
    elif info.sparse is not None:
        problem = "has holes"
    elif replaced:
        problem = "replaced by a later member of the same name"
    clean, safe = clean_name(info.name)
    return Entry(readable(clean), safe, TarMember(info.offset_data, info.size, info.mtime, problem))
