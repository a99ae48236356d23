"""Tar files are read like zip files: nothing is unpacked, and hostile ones do no harm."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.data.listing import ImageListing
from distmetric.errors import InputError, ResourceError
from image_sources import FILES, make_folder, png, rows_of
from published import make_tar

SUFFIXES = ["tar", "tgz", "tar.gz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_and_the_tar_file_of_it_give_the_same_catalog(
    tmp_path: Path, out: Path, suffix: str
) -> None:
    folder = ingest([make_folder(tmp_path / "in", FILES)], out)
    for prefix in ("", "./", "all/"):
        files = {f"{prefix}{name}": data for name, data in reversed(FILES.items())}
        source = make_tar(tmp_path / f"in.{suffix}", files)
        found = ingest([source], out)
        assert found.fingerprint == folder.fingerprint
    assert Catalog.open(out).source_path(0) == f"{source}/all/a/0.png"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"in", "out"}


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def test_members_that_lead_outside_or_are_no_files_are_listed_not_read(tmp_path: Path, out: Path) -> None:
    source = make_tar(tmp_path / "in.tar", FILES)
    with tarfile.open(source, "a") as archive:
        for name in ("../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png"):
            add(archive, name, png(99))
        add(archive, "a/soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "a/hard.png", type=tarfile.LNKTYPE, linkname="a/0.png")
        add(archive, "a/pipe.png", type=tarfile.FIFOTYPE)
        add(archive, "a/device.png", type=tarfile.CHRTYPE)
        add(archive, "a/folder.png", type=tarfile.DIRTYPE)
        add(archive, "a/0.png", png(77))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = ingest([source], out)
    assert result.bad_counts == {
        "unsafe member name": 4,
        "a link": 2,
        "not a regular file": 2,
        "replaced by a later member of the same name": 1,
    }
    assert rows_of(result) == {(n[0], n[0], data) for n, data in (FILES | {"a/0.png": png(77)}).items()}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {out}, "nothing was unpacked"


def test_long_names_in_any_encoding(tmp_path: Path, out: Path) -> None:
    files = {f"{'ä' * 100}/{'b' * 200}.png": png(1), "a/line\nbreak.png": png(2), "αβ/1.png": png(3)}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "in.tar", "w", format=form) as archive:
            for name, data in files.items():
                add(archive, name, data)
        assert ingest([str(tmp_path / "in.tar")], out).rows == 3
        catalog = Catalog.open(out)
        assert set(catalog.label_names) == {"ä" * 100, "a", "αβ"}
        assert all(catalog.source_path(row).isprintable() for row in range(3))


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, out: Path, monkeypatch) -> None:
    monkeypatch.setattr("distmetric.data.tar_files._GROWS_ALWAYS", 1 << 20)
    source = make_tar(tmp_path / "in.tgz", FILES | {"a/bomb.png": bytes(64 << 20)})
    with pytest.raises(InputError, match=r"grows to more than 100 times its size .*decompress it yourself"):
        ingest([source], out)
    assert not out.parent.exists()


def test_a_large_member_costs_no_memory(tmp_path: Path, out: Path) -> None:
    source = make_tar(tmp_path / "in.tgz", FILES | {"a/large.png": bytes(40 << 20)})
    tracemalloc.start()
    try:
        result = ingest([source], out, max_image_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result.rows, result.bad_counts) == (8, {"too many bytes": 1})
    assert peak < 8 << 20


def test_a_header_that_says_it_is_long_is_not_believed(tmp_path: Path, out: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        add(archive, "a/0.png", png(1))
        add(archive, "././@LongLink", bytes(3 << 20), type=tarfile.GNUTYPE_LONGNAME)
    with pytest.raises(InputError, match=r"in.tar: is no usable tar file \(a header of 3,145,728 bytes\)"):
        ingest([str(tmp_path / "in.tar")], out)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_cut_off_or_damaged_is_refused_and_not_read_in_part(
    tmp_path: Path, out: Path, suffix: str
) -> None:
    path = Path(make_tar(tmp_path / f"in.{suffix}", FILES))
    whole = path.read_bytes()
    plain = whole if suffix == "tar" else gzip.decompress(whole)
    second = plain.index(b"a/1.png")
    for data in (
        plain[: second + 700],  # within a member
        plain[:second],  # between two
        plain[: second + 20] + b"?" * 400 + plain[second + 420 :],  # a header
        b"",
        b"<html>" * 200,
    ):
        path.write_bytes(data if suffix == "tar" else gzip.compress(data))
        with pytest.raises(InputError, match=f"in.{suffix}: is no usable tar file") as caught:
            ingest([str(path)], out)
        assert "\n" not in str(caught.value)
    if suffix != "tar":
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="is no usable tar file"):
            ingest([str(path)], out)
    assert not out.parent.exists()


def test_no_room_to_decompress_is_said(tmp_path: Path, out: Path, monkeypatch) -> None:
    source = make_tar(tmp_path / "in.tgz", FILES)
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: os.fdopen(full, "w+b"))
    with pytest.raises(ResourceError, match=r"there is no room for it in .*; set TMPDIR"):
        ingest([source], out)


def test_random_damage_never_crashes(tmp_path: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("tar", "tgz"):
        path = Path(make_tar(tmp_path / f"in.{suffix}", FILES))
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(256)
            path.write_bytes(bytes(data))
            with suppress(InputError):
                result = ingest([str(path)], out)
                assert result.rows + len(result.bad_images) + result.files_ignored <= len(FILES)


def test_a_listing_has_the_images_and_notices_changes(tmp_path: Path) -> None:
    source = make_tar(tmp_path / "in.tgz", FILES)
    listing = ImageListing(source)
    images = listing.images(0, len(listing))
    assert [(image.path, listing.reader.read(image)) for image in images] == sorted(FILES.items())
    make_tar(tmp_path / "in.tgz", FILES | {"a/0.png": png(99, size=9)})
    assert ImageListing(source).fingerprint != listing.fingerprint
