"""Folders and zip files are read whatever their members are called, and hostile ones do no harm."""

from __future__ import annotations

import os
import socket
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.errors import InputError
from image_sources import FILES, make_folder, make_zip, png, rows_of


def test_an_unreadable_file_and_a_pipe_are_listed(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", FILES)
    os.mkfifo(tmp_path / "in" / "a" / "pipe.png")
    (tmp_path / "in" / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    result = ingest([source], out)
    assert result.bad_counts == {"unreadable": 2}
    assert result.rows == 8


def test_what_is_no_file_is_listed_and_not_waited_for(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", FILES)
    folder = tmp_path / "in" / "a"
    (folder / "folder.png").mkdir()
    for name, target in (("zero", "/dev/zero"), ("loop", folder / "loop.png"), ("memory", "/proc/self/mem")):
        (folder / f"{name}.png").symlink_to(target)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
        result = ingest([source], out)
    assert result.rows == 8
    assert dict(result.bad_images) == {
        f"{folder}/loop.png": "unreadable (Too many levels of symbolic links)",
        f"{folder}/memory.png": "unreadable (Input/output error)",
        f"{folder}/socket.png": "unreadable (not a regular file)",
        f"{folder}/zero.png": "unreadable (not a regular file)",
    }


def test_names_may_have_line_breaks_and_be_as_long_as_they_can(tmp_path: Path, out: Path) -> None:
    names = ["a/line\nbreak.png", f"a/{'ä' * 125}.png", f"{'b' * 255}/{'c' * 250}.png", "a/\x1b[31m.png"]
    files = {name: png(number) for number, name in enumerate(names)}
    long = {f"{'d/' * 2000}{'e' * 20_000}.png": png(9)}
    for source in (make_folder(tmp_path / "in", files), make_zip(tmp_path / "in.zip", files | long)):
        result = ingest([source], out)
        paths = [Catalog.open(out).source_path(row) for row in range(result.rows)]
        assert (result.rows, result.bad_images) == (4 + source.endswith(".zip"), ())
        assert f"{source}/a/line\\nbreak.png" in paths
        assert all(path.isprintable() for path in paths)


def test_names_that_are_not_utf8_and_folders_that_contain_themselves(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", FILES)
    Path(os.fsdecode(os.fsencode(source) + b"/a/\xff.png")).write_bytes(png(77))
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    result = ingest([source], out)
    assert (result.rows, result.classes) == (9, 4)
    catalog = Catalog.open(out)
    assert any(catalog.source_path(row).endswith("a/\\xff.png") for row in range(9))


def test_members_that_lead_outside_are_listed_not_read(tmp_path: Path, out: Path) -> None:
    evil = ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png", "../passwd"]
    source = make_zip(tmp_path / "in.zip", FILES | dict.fromkeys(evil, png(99)))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = ingest([source], out)
    assert result.bad_counts == {"unsafe member name": len(evil)}
    assert result.rows == 8
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {out}, "nothing was extracted"


def test_windows_separators_are_folders(tmp_path: Path, out: Path) -> None:
    source = make_zip(tmp_path / "in.zip", {name.replace("/", "\\"): data for name, data in FILES.items()})
    assert rows_of(ingest([source], out)) == {(name[0], name[0], data) for name, data in FILES.items()}


def declare_size(path: str, name: str, size: int) -> None:
    """Make a zip file lie about how long a member is, in both of its headers."""
    data = bytearray(Path(path).read_bytes())
    for signature, size_at, name_at in ((b"PK\x03\x04", 22, 30), (b"PK\x01\x02", 24, 46)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            if data[at + name_at : at + name_at + len(name)] == name.encode():
                data[at + size_at : at + size_at + 4] = struct.pack("<I", size)
    Path(path).write_bytes(bytes(data))


@pytest.mark.parametrize("declared", [None, 100, 1 << 30])
def test_a_zip_bomb_costs_no_more_than_the_limit(tmp_path: Path, out: Path, declared: int | None) -> None:
    source = make_zip(tmp_path / "in.zip", FILES | {"a/bomb.png": bytes(64 << 20)})
    if declared is not None:
        declare_size(source, "a/bomb.png", declared)
    tracemalloc.start()
    try:
        result = ingest([source], out, max_image_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    kind = "damaged in the zip file" if declared == 100 else "too many bytes"
    assert result.bad_counts == {kind: 1}
    assert result.rows == 8
    assert peak < 8 << 20


def test_a_header_that_exaggerates_does_not_cost_the_image(tmp_path: Path, out: Path) -> None:
    source = make_zip(tmp_path / "in.zip", FILES)
    declare_size(source, "a/0.png", 1 << 30)
    assert ingest([source], out, max_image_bytes=1 << 20).rows == 8


def test_damaged_encrypted_and_exotic_members_are_listed(tmp_path: Path, out: Path) -> None:
    source = make_zip(tmp_path / "in.zip", FILES | {"a/9.png": png(9, 50)}, zipfile.ZIP_STORED)
    data = bytearray(Path(source).read_bytes())
    at = data.find(png(9, 50)) + 100
    data[at : at + 20] = bytes(20)
    Path(source).write_bytes(bytes(data))
    assert ingest([source], out).bad_counts == {"damaged in the zip file": 1}
    with zipfile.ZipFile(source, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/10.png", png(10))
    assert ingest([source], out).bad_counts["compression is neither store nor deflate"] == 1
    central = data.rfind(b"PK\x01\x02")
    data[central + 8] |= 1
    Path(source).write_bytes(bytes(data))
    assert ingest([source], out).bad_counts == {"encrypted": 1}


def test_zip_names_in_any_encoding(tmp_path: Path, out: Path) -> None:
    plain = {"a/1.png": png(1), "ZZZZ/1.png": png(2)}
    for raw, shown in ((b"\xce\xb1\xce\xb2", "αβ"), (b"\xff\x81q\x82", "\\xa0üqé"), (b"b\nb\t", "b\\nb\\t")):
        path = Path(make_zip(tmp_path / "in.zip", plain))
        path.write_bytes(path.read_bytes().replace(b"ZZZZ", raw))
        ingest([str(path)], out)
        assert Catalog.open(out).label_names[1] == shown or shown in Catalog.open(out).label_names
    flagged = Path(make_zip(tmp_path / "in.zip", {"a/1.png": png(1), "ÄÄ/1.png": png(2)}))
    flagged.write_bytes(flagged.read_bytes().replace("ÄÄ".encode(), b"\xff\xff\xff\xff"))
    with pytest.raises(InputError, match="member names that are not UTF-8; pack it again"):
        ingest([str(flagged)], out)


def test_members_that_share_their_bytes_are_listed_not_read(tmp_path: Path, out: Path) -> None:
    """As in bombs of which every member is the same bytes: each would pass every other limit."""
    path = Path(make_zip(tmp_path / "in.zip", FILES | {f"a/same{i}.png": png(99) for i in range(50)}))
    data = bytearray(path.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    same = [at for at in entries if data[at + 46 :].startswith(b"a/same")]
    for at in same:
        data[at + 42 : at + 46] = data[same[0] + 42 : same[0] + 46]
    path.write_bytes(bytes(data))
    result = ingest([str(path)], out)
    assert result.bad_counts["overlaps another member"] == 49
    assert sum(result.bad_counts.values()) == 50 - (result.rows - 8)


def test_of_members_of_one_name_the_last_one_counts(tmp_path: Path, out: Path) -> None:
    source = make_zip(tmp_path / "in.zip", FILES)
    with zipfile.ZipFile(source, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/0.png", png(77))
    result = ingest([source], out)
    assert result.bad_counts == {"replaced by a later member of the same name": 1}
    assert rows_of(result) == {
        (name[0], name[0], data) for name, data in (FILES | {"a/0.png": png(77)}).items()
    }


def test_archives_in_archives_are_not_opened(tmp_path: Path, out: Path) -> None:
    inner = Path(make_zip(tmp_path / "inner.zip", {"a/1.png": png(1)})).read_bytes()
    result = ingest(
        [make_zip(tmp_path / "in.zip", FILES | {"a/inner.zip": inner, "a/inner.png": inner})], out
    )
    assert (result.rows, result.files_ignored, result.bad_counts) == (8, 1, {"not an image": 1})


def test_many_members_cost_no_more_than_their_names(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3_000):
            archive.writestr(f"a/{number}.png", b"")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="no usable image; unusable: 3000 empty"):
            ingest([str(path)], out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * path.stat().st_size


def test_random_damage_to_a_zip_never_crashes(tmp_path: Path, out: Path) -> None:
    whole = Path(make_zip(tmp_path / "in.zip", FILES)).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        (tmp_path / "in.zip").write_bytes(bytes(data))
        with suppress(InputError):
            result = ingest([str(tmp_path / "in.zip")], out)
            assert result.rows + len(result.bad_images) + result.files_ignored <= len(FILES)
