"""A catalog is written in any order and in chunks, and is never half written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from catalogs import ROWS, write_catalog
from distmetric.data import catalog_writer
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.errors import InputError, ResourceError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.arrow"


def test_labels_do_not_depend_on_the_order_of_reading(path: Path) -> None:
    write_catalog(path, ROWS[::-1])
    catalog = Catalog.open(path)
    assert catalog.label_names == ["a", "b", "c"]
    assert catalog.labels.tolist() == [1, 0, 2, 1]


def test_fingerprint_sees_every_promised_part(path: Path) -> None:
    base = write_catalog(path, ROWS)
    assert write_catalog(path, ROWS) == base
    assert write_catalog(path, ROWS, attributes=[{"hue": "red"}] * 4) == base
    changed = [
        [(b"onE", "b", "train"), *ROWS[1:]],
        [(b"one", "a", "train"), *ROWS[1:]],
        [(b"one", "b", "test"), *ROWS[1:]],
        [(b"onet", "b", "train"), (b"hree", "c", "test"), *ROWS[2:]],
        [(image, name + "!", split) for image, name, split in ROWS],
        ROWS[::-1],
        ROWS[:3],
    ]
    prints = [write_catalog(path, rows) for rows in changed] + [write_catalog(path, ROWS, id=[0, 1, 2, 9])]
    assert len({base, *prints}) == len(prints) + 1


def test_splits_can_be_decided_at_the_end(path: Path) -> None:
    with CatalogWriter(path) as writer:
        for name in "abca":
            writer.add(b"x", name, group=name, path=name, width=1, height=1)
        writer.finish({"a": "test", "b": "train", "c": "train"})
    assert Catalog.open(path).rows("test").tolist() == [0, 3]


def test_many_rows_arrive_in_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"image {i}".encode(), f"class {i % 7}", "train") for i in range(100)]
    hues = [{"hue": str(i)} if i < 20 else {"age": "1"} for i in range(100)]
    whole = write_catalog(path, rows, attributes=hues)
    monkeypatch.setattr(catalog_writer, "_ROWS_PER_CHUNK", 8)
    assert write_catalog(path, rows, attributes=hues) == whole
    catalog = Catalog.open(path)
    assert catalog.attribute("hue").tolist() == [str(i) if i < 20 else None for i in range(100)]
    assert catalog.source_path(99) == "in/99.png"


def test_an_error_leaves_the_old_catalog_and_no_leftovers(path: Path) -> None:
    old = write_catalog(path, ROWS)
    with pytest.raises(TypeError):
        write_catalog(path, [*ROWS, (7, "a", "train")])  # type: ignore[list-item]
    assert Catalog.open(path).fingerprint == old
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": 0}, "an id was added twice"),
        ({"split": None}, "class 'a' has no split"),
        ({"camera": -1}, "camera=-1 is negative"),
        ({"camera": 1 << 63}, "camera=9223372036854775808 is too large; number the cameras from 0"),
        ({"id": -7}, "id=-7 is negative; number the ids from 0"),
        ({"image": b""}, "has no bytes"),
        ({"label_name": ""}, "has no class name"),
    ],
)
def test_what_cannot_be_written(path: Path, arguments: dict[str, Any], message: str) -> None:
    plain = {"image": b"x", "label_name": "a", "group": "g", "path": "p", "width": 1, "height": 1}

    def add_both() -> None:
        with CatalogWriter(path) as writer:
            writer.add(**plain, split="train")
            writer.add(**(plain | {"split": "train"} | arguments))

    with pytest.raises(InputError, match=message):
        add_both()
    assert list(path.parent.iterdir()) == []


def test_nothing_to_write(path: Path) -> None:
    with pytest.raises(InputError, match="no image to write"), CatalogWriter(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_told_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = write_catalog(path, ROWS)
    monkeypatch.setattr(catalog_writer.os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        write_catalog(path, ROWS[:3])
    assert Catalog.open(path).fingerprint == old
    assert list(path.parent.iterdir()) == [path]


def test_a_target_that_cannot_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        CatalogWriter(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        CatalogWriter(tmp_path / "file" / "set.arrow")


def test_folders_that_were_made_for_nothing_are_gone_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for fails in (True, False):
        try:
            with CatalogWriter(tmp_path / "there" / "new" / "newer" / "set.arrow") as writer:
                writer.add(b"x", "a", group="g", path="p", width=1, height=1, split="train")
                assert not fails, "as if something went wrong"
        except AssertionError:
            assert list((tmp_path / "there").iterdir()) == []
    assert len(Catalog.open(tmp_path / "there" / "new" / "newer" / "set.arrow")) == 1
    with pytest.raises(InputError), CatalogWriter(tmp_path / "other" / "set.arrow"):
        (tmp_path / "other" / "file").write_text("of another program")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]


def test_the_fingerprint_does_not_depend_on_checksums(path: Path) -> None:
    """So that equal data keep the one they had before catalogs had checksums, and runs of that time can go on."""
    assert write_catalog(path, ROWS) == "49ade885464cd4d6d361b3f8d95cb88a7e6792ef0197c58bded543cb49dd9e40"
