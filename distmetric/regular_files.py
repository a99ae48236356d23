"""Files that can be read to an end; not pipes, sockets and devices, which might be waited for without one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a local file for reading, if it is one that can be read to an end without waiting.

    Args:
        path: Of the file; links are followed.

    Returns:
        The open file.

    Raises:
        OSError: It is not there, cannot be read, or is a folder, pipe, socket or device. `strerror` says so.
    """
    # Looked at first, as to open a device may already do something, and again, as it may be another file by now.
    # A pipe that nobody writes to would be waited for without end, and so would the reader of some files of /proc.
    _check_regular(Path(path).stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def check_file(filesystem: fs.FileSystem, path: str) -> None:
    """See that there is a file at a path, and none that would be waited for without end.

    Args:
        filesystem: Local, or an object store.
        path: On it.

    Raises:
        OSError: It is not there, or is a folder, pipe, socket or device.
    """
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, "does not exist", path)
    if kind == fs.FileType.Directory:
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    if kind != fs.FileType.File:
        raise OSError(errno.EINVAL, "not a regular file", path)
