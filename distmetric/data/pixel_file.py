"""Decoded pixels in a file that the processes of a machine share: decoded once by all of them, held once.

The file is in a folder of this user alone, `distmetric-UID` in the temporary folder (TMPDIR), and not in /dev/shm,
which is small in containers and needed by others. Its pages are in the kernel's cache of files, one copy for all.

It outlives who is killed, and is trusted part by part: a part counts only once it is completely there, and the whole
file only as long as the machine has not been started anew, since a kernel that stops may lose what was written. Who
uses it holds a lock that ends with the process; the last one removes it, and what nobody uses is removed by the next
one that comes.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PAGE = mmap.ALLOCATIONGRANULARITY
_PART_BYTES = 8 << 20  # of a part at most, and a file has this many parts if it has the images:
_PARTS = 64
_SLACK = 256 << 20  # bytes that a disk keeps free
_DONE = b"\x01"


class PixelFile:
    """M images of one size, (M, C, H, W) uint8, that processes with the same key decode together and share.

    Args:
        key: What the pixels depend on; equal keys mean equal pixels.
        shape: (M, C, H, W).

    Raises:
        OSError: If there can be no such file: no room, no folder that is this user's alone, no Linux.
    """

    def __init__(self, key: str, shape: tuple[int, int, int, int]) -> None:
        boot = _BOOT.read_text(encoding="ascii")
        self._shape = shape
        images, self._image_bytes = shape[0], int(np.prod(shape[1:]))
        self._rows = max(1, min(_PART_BYTES // self._image_bytes, -(-images // _PARTS)))
        self._num_parts = -(-images // self._rows)
        self._seal = hashlib.sha256(repr((key, boot, shape, self._rows)).encode()).digest()
        self._start = -(-(len(self._seal) + self._num_parts) // _PAGE) * _PAGE
        folder = _own_folder()
        name = self._seal.hex()
        self.path = folder / f"{name}.pixels"
        with _alone_in(folder):
            self._file = self._opened()
            fcntl.flock(self._file, fcntl.LOCK_SH)
            _sweep(folder, name)
        self._release = weakref.finalize(self, _release, self._file, self.path, os.getpid())

    def fill(self, decode: Callable[[slice], Pixels], done: Callable[[int], None] = lambda _: None) -> Pixels:
        """Decode what nobody else has decoded or is decoding, wait for the others, and map all of it.

        Args:
            decode: Gives the images of a slice of the M, the same ones whoever calls it.
            done: Told how many images are there, again and again.

        Returns:
            (M, C, H, W); what is written into it stays in this process.

        Raises:
            Exception: What `decode` raises; the parts that are there stay.
        """
        with open(self.path.with_suffix(".claims"), "ab") as claims:
            # Twice: at first only what nobody works at, then what others have not finished, once they let go of it.
            for wait in (False, True):
                for part in range(self._num_parts):
                    if not self._is_there(part):
                        self._take(part, claims.fileno(), wait, decode)
                    if wait:
                        done(len(range(*self._slice(part).indices(self._shape[0]))))
        size = self._shape[0] * self._image_bytes
        mapped = mmap.mmap(self._file, size, access=mmap.ACCESS_COPY, offset=self._start)
        return np.frombuffer(mapped, np.uint8).reshape(self._shape)

    def release(self) -> None:
        """Let go of the file, and remove it if nobody else has it; what is mapped stays readable."""
        self._release()

    def _take(self, part: int, claims: int, wait: bool, decode: Callable[[slice], Pixels]) -> None:
        # Claims only keep two from the same work. Two that do it all the same write the same bytes.
        try:
            fcntl.lockf(claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, part)
        except (BlockingIOError, PermissionError):
            return
        try:
            if not self._is_there(part):
                images = self._slice(part)
                _write(self._file, decode(images).tobytes(), self._start + images.start * self._image_bytes)
                _write(self._file, _DONE, len(self._seal) + part)
        finally:
            fcntl.lockf(claims, fcntl.LOCK_UN, 1, part)

    def _slice(self, part: int) -> slice:
        return slice(part * self._rows, min((part + 1) * self._rows, self._shape[0]))

    def _is_there(self, part: int) -> bool:
        return os.pread(self._file, 1, len(self._seal) + part) == _DONE

    def _opened(self) -> int:
        """The file, made if it is not there or not this one; alone in the folder."""
        size = self._start + self._shape[0] * self._image_bytes
        with suppress(OSError):
            file = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(file).st_size == size and os.pread(file, len(self._seal), 0) == self._seal:
                return file
            os.close(file)
        for old in (self.path, made := self.path.with_suffix(".new")):
            old.unlink(missing_ok=True)
        if shutil.disk_usage(made.parent).free < size + _SLACK:
            raise OSError(f"{made.parent} has no room for {size / 2**20:,.0f} MiB")
        file = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # a mapped file without room behind it would end the process
            _write(file, self._seal, 0)
            made.rename(self.path)
        except OSError:
            os.close(file)
            made.unlink(missing_ok=True)
            raise
        return file


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"distmetric-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"{folder} is not a folder of this user alone")
    return folder


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Nobody else opens or removes files of the folder in the block."""
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path, own: str) -> None:
    """Remove what nobody uses, such as of processes that were killed."""
    for path in folder.glob("*.pixels"):
        if path.stem != own:
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
    for path in (*folder.glob("*.claims"), *folder.glob("*.new")):
        if not path.with_suffix(".pixels").exists():
            path.unlink(missing_ok=True)


def _release(file: int, path: Path, owner: int) -> None:
    if os.getpid() != owner:  # a fork's lock is its parent's
        return
    with suppress(OSError), _alone_in(path.parent):
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file).st_ino:
                path.unlink()
                path.with_suffix(".claims").unlink(missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_UN)  # the mapping holds the file open
    os.close(file)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
