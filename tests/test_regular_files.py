"""Files that could be waited for without end are refused at once, by whoever opens one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pyarrow import fs

from distmetric.regular_files import check_file, open_regular


def test_files_are_opened_and_links_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
        check_file(fs.LocalFileSystem(), str(tmp_path / name))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names: list[tuple[object, type[OSError]]] = [
        (tmp_path / "pipe", OSError),
        (tmp_path / "socket", OSError),
        ("/dev/zero", OSError),
        (tmp_path / "folder", IsADirectoryError),
        (tmp_path / "dangling", FileNotFoundError),
        (tmp_path / "nowhere", FileNotFoundError),
        (tmp_path / "loop", OSError),
    ]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, kind in names:
            with pytest.raises(kind) as raised:
                open_regular(str(name))
            assert raised.value.strerror
            with pytest.raises(OSError, match=r"\S"):
                check_file(fs.LocalFileSystem(), str(name))
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "nothing stays open"


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the opening."""
    (tmp_path / "file").write_bytes(b"content")
    opened = os.open

    def swapped(path: str, flags: int) -> int:
        (tmp_path / "file").unlink()
        os.mkfifo(tmp_path / "file")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "file")
