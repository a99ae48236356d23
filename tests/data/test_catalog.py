"""A catalog gives back what was written, without copies, and refuses files that are none."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalogs import ROWS, flip, tampered, write_catalog
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_format import REQUIRED
from distmetric.errors import InputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.arrow"


def test_round_trip(path: Path) -> None:
    fingerprint = write_catalog(
        path, ROWS, camera=[2, None, 0, 1], attributes=[{"hue": "red"}, {}, None, {"age": "9"}]
    )
    catalog = Catalog.open(path)
    assert (len(catalog), catalog.num_classes, catalog.fingerprint) == (4, 3, fingerprint)
    assert catalog.path == path
    assert catalog.label_names == ["a", "b", "c"]
    assert catalog.labels.dtype == catalog.ids.dtype == np.int64
    assert catalog.labels.tolist() == [1, 2, 0, 1]
    assert catalog.ids.tolist() == [0, 1, 2, 3]
    assert catalog.splits == ("train", "test")
    assert catalog.rows("train").tolist() == [0, 2, 3]
    assert catalog.rows("test").dtype == np.int64
    assert catalog.groups.tolist() == ["b", "c", "a", "b"]
    assert catalog.cameras is not None
    assert catalog.cameras.tolist() == [2, -1, 0, 1]
    assert catalog.attribute_names == ("age", "hue")
    assert catalog.attribute("hue").tolist() == ["red", None, None, None]
    some = np.array([3, 1, 0])
    assert catalog.values("camera", some) == [1, -1, 2]
    assert catalog.values("attribute.hue", some) == [None, None, "red"]
    assert catalog.values("group", some) == catalog.groups[some].tolist()
    assert [bytes(catalog.image_bytes(row)) for row in range(4)] == [row[0] for row in ROWS]
    assert catalog.source_path(2) == "in/2.png"
    assert (catalog.widths.tolist(), catalog.heights.tolist()) == ([3] * 4, [2] * 4)
    assert catalog.image_nbytes == 14


def test_optional_columns_are_absent(path: Path) -> None:
    write_catalog(path, ROWS)
    catalog = Catalog.open(path)
    assert catalog.cameras is None
    assert catalog.attribute_names == ()
    assert set(pa.ipc.open_file(str(path)).schema.names) == {*REQUIRED, "crc32"}


def test_images_are_views_of_the_one_record_batch(path: Path) -> None:
    write_catalog(path, ROWS)
    catalog = Catalog.open(path)
    assert pa.ipc.open_file(str(path)).num_record_batches == 1
    views = [np.frombuffer(catalog.image_bytes(row), np.uint8) for row in range(4)]
    starts = [view.__array_interface__["data"][0] for view in views]
    assert np.diff(starts).tolist() == [len(row[0]) for row in ROWS[:-1]]
    # The Arrow allocator owns copies; a mapped file costs it nothing.
    before = pa.total_allocated_bytes()
    again = Catalog.open(path)
    assert bytes(again.image_bytes(1)) == b"three"
    assert pa.total_allocated_bytes() - before < 4096


def test_rows_beyond_the_end_are_refused(path: Path) -> None:
    write_catalog(path, ROWS)
    for row in (-1, 4):
        with pytest.raises(IndexError, match="catalog with 4 rows"):
            Catalog.open(path).image_bytes(row)
        with pytest.raises(IndexError):
            Catalog.open(path).source_path(row)


def test_unknown_names_list_the_known_ones(path: Path) -> None:
    write_catalog(path, ROWS, attributes=[{"hue": "red"}] * 4)
    with pytest.raises(InputError, match=r"no split is called 'validation'; choose one of train, test"):
        Catalog.open(path).rows("validation")
    with pytest.raises(InputError, match=r"no attribute is called 'color'; choose one of: hue"):
        Catalog.open(path).attribute("color")


def test_pickles_as_its_path(path: Path) -> None:
    write_catalog(path, [(b"x" * 100_000, name, "train") for name in "ab"])
    catalog = Catalog.open(path)
    pickled = pickle.dumps(catalog)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert copy.fingerprint == catalog.fingerprint
    assert bytes(copy.image_bytes(1)) == b"x" * 100_000
    write_catalog(path, ROWS)
    with pytest.raises(InputError, match="replaced by another catalog"):
        pickle.loads(pickled)
    assert bytes(catalog.image_bytes(1)) == b"x" * 100_000, "an open catalog outlives its replacement"


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    with pytest.raises(InputError, match="does not exist"):
        Catalog.open(foreign)
    with pytest.raises(InputError, match="is a folder"):
        Catalog.open(tmp_path)
    for content in (b"", b"hello" * 100):
        foreign.write_bytes(content)
        with pytest.raises(InputError, match="no catalog or is damaged") as caught:
            Catalog.open(foreign)
        assert "\n" not in str(caught.value)


def test_a_truncated_catalog_is_refused(path: Path) -> None:
    write_catalog(path, ROWS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is damaged"):
        Catalog.open(path)


def test_catalogs_that_contradict_themselves_are_refused(path: Path) -> None:
    write_catalog(path, ROWS)
    assert len(Catalog.open(tampered(path, lambda _: None))) == 4

    def setting(name: str, values: list[Any], kind: Any) -> Any:
        return lambda columns: columns.update({name: pa.array(values, kind)})

    large = pa.large_string()
    cases: list[tuple[Any, str]] = [
        (lambda columns: columns.pop("group"), "the column group is missing"),
        (setting("label", [1, 2, 0, 1], pa.int32()), "column label is int32, not int64"),
        (setting("id", [1, 2, 2, 3], pa.int64()), "the column id repeats a value"),
        (setting("id", [1, None, 2, 3], pa.int64()), "column id has empty values .the first in row 1"),
        (setting("id", [1, 5, -2, 3], pa.int64()), "the column id has -2 in row 2; .* ids from 0"),
        (
            setting("label_name", ["b", "c", None, "b"], large),
            "label_name has empty values .the first in row 2",
        ),
        (setting("crc32", [1] * 4, pa.int64()), "column crc32 is int64, not uint32"),
        (setting("label", [1, 3, 0, 1], pa.int64()), "not one to one"),
        (setting("label", [1, 2, 0, 2], pa.int64()), "not one to one"),
        (setting("label_name", ["b", "c", "a", "c"], large), "not one to one"),
        (setting("camera", [1.0] * 4, pa.float64()), "column camera is double"),
        (setting("attributes", ["x"] * 4, large), "not a struct"),
        (lambda columns: columns.update({n: c[:0] for n, c in columns.items()}), "has no rows"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            Catalog.open(tampered(path, change))
    with pytest.raises(InputError, match="2 record batches instead of one"):
        Catalog.open(tampered(path, lambda _: None, batches=2))
    with pytest.raises(InputError, match="an Arrow file, but no catalog"):
        Catalog.open(tampered(path, lambda _: None, metadata={}))
    with pytest.raises(InputError, match="catalog of version '99'"):
        Catalog.open(tampered(path, lambda _: None, metadata={b"format_version": b"99", b"fingerprint": b""}))


def test_any_bit_that_flips_is_seen(path: Path) -> None:
    """In columns on opening; in the bytes of an image when that one is read, and the others can be read still."""
    write_catalog(path, ROWS, camera=[2, None, 0, 1], attributes=[{"hue": "red"}, {}, None, {"age": "9"}])
    whole, data = Catalog.open(path), path.read_bytes()
    columns = ["ids", "labels", "label_names", "groups", "cameras", "widths", "heights", "splits"]

    def content(catalog: Catalog) -> list[str]:
        found = [str(getattr(catalog, name)) for name in columns]
        found += [str(catalog.attribute(name)) for name in catalog.attribute_names]
        return [*found, catalog.fingerprint, *map(catalog.source_path, range(4))]

    expected, pixels = content(whole), data.index(b"onethreefour!6")
    said: list[str] = []
    for at in sorted({*range(0, len(data), 13), *range(pixels, pixels + 14)}):
        path.write_bytes(data)
        flip(path, at, 1 << at % 8)
        try:
            catalog = Catalog.open(path)
        except InputError as error:
            said.append(str(error))
            continue
        assert content(catalog) == expected, at
        for row in range(4):
            try:
                assert bytes(catalog.image_bytes(row)) == ROWS[row][0]
            except InputError as error:
                said.append(str(error))
    assert all(each.startswith(f"{path}: ") for each in said)
    damaged = [each for each in said if "the image of row" in each]
    assert sum("row 1, id 1 (in/1.png) is damaged: its checksum" in each for each in damaged) >= len(b"three")
    assert len(damaged) >= 14
    assert len(said) > 100


def test_a_catalog_that_is_cut_off_while_open_is_an_error_and_not_the_end_of_the_process(path: Path) -> None:
    write_catalog(path, [(bytes(100_000), name, "train") for name in "ab"])
    catalog = Catalog.open(path)
    with path.open("r+b") as file:
        file.truncate(5_000)
    with pytest.raises(InputError, match=r"was changed while in use; .* replace catalogs in one step"):
        catalog.image_bytes(1)


def test_catalogs_of_older_releases_have_no_checksums_and_can_be_read(path: Path) -> None:
    write_catalog(path, ROWS)
    old = Catalog.open(tampered(path, lambda columns: columns.pop("crc32")))
    assert [bytes(old.image_bytes(row)) for row in range(4)] == [row[0] for row in ROWS]


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, reason in (
            (tmp_path / "pipe", "not a regular file"),
            (tmp_path / "socket", "not a regular file"),
            ("/dev/zero", "not a regular file"),
            (tmp_path / "loop", "Too many levels of symbolic links"),
            ("/proc/self/mem", "is empty"),
        ):
            with pytest.raises(InputError, match=reason):
                Catalog.open(name)
