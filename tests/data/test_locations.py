"""Sources are found by path and by URI; what is no source is told without its secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from distmetric.data import locations
from distmetric.data.ingest import ingest
from distmetric.errors import InputError
from image_sources import FILES, make_folder, make_zip, png


def test_files_that_are_no_sources(tmp_path: Path, out: Path) -> None:
    (tmp_path / "in.zip").write_bytes(b"PK hello")
    (tmp_path / "in.parquet").write_bytes(b"hello")
    (tmp_path / "in.tar").write_bytes(b"hello")
    (tmp_path / "in.rar").write_bytes(b"hello")
    mixed = make_folder(tmp_path / "mixed", {"a/1.png": png(1), "b.parquet": b""})
    for source, message in (
        (str(tmp_path / "in.zip"), "no usable zip file"),
        (str(tmp_path / "in.parquet"), "no usable Parquet file"),
        (str(tmp_path / "in.tar"), "no usable tar file"),
        (str(tmp_path / "in.rar"), "neither a folder nor .zip, .tar, .tar.gz, .tgz or .parquet"),
        (str(tmp_path / "nowhere"), "does not exist"),
        ("nope://user:secret@host/x?key=secret", r"^nope://host/x: cannot be opened"),
        ("nope://host/x", r"nope://host/x: cannot be opened \(Unrecognized filesystem type"),
        (mixed, "both images and Parquet"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            ingest([source], out)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert not out.parent.exists()
    with pytest.raises(InputError, match="sources is empty"):
        ingest([], out)


def test_a_source_whose_own_name_is_not_utf8_is_one_line(tmp_path: Path, out: Path) -> None:
    source = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    make_folder(Path(source), FILES)
    for name, manifest in ((source, None), (str(tmp_path), f"{source}/m.csv")):
        with pytest.raises(InputError, match=r"/\\xff\S*: is not UTF-8; rename it"):
            ingest([name], out, manifest=manifest)


def test_uris_are_sources_too(tmp_path: Path, out: Path) -> None:
    folder = ingest([make_folder(tmp_path / "in", FILES)], out)
    zipped = make_zip(tmp_path / "in.zip", FILES)
    assert ingest([f"file://{tmp_path}/in"], out).fingerprint == folder.fingerprint
    assert ingest([f"file://{zipped}"], out).fingerprint == folder.fingerprint


def test_a_remote_folder_is_listed_and_read_through_arrow(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = ingest([make_folder(tmp_path / "in", FILES | {"a/empty.png": b""})], out)
    subtree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(locations, "open_file_system", lambda source, shown: (subtree, "in"))
    remote = ingest(["s3://key:secret@bucket/in?region=x"], out)
    assert remote.fingerprint == local.fingerprint
    assert remote.bad_images == (("s3://bucket/in/a/empty.png", "empty"),)
