"""A catalog gives back what was written, without copies, and refuses files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalogs import ROWS, write_catalog
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
    assert pa.ipc.open_file(str(path)).schema.names == list(REQUIRED)


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


def tampered(path: Path, change: Any, metadata: dict[bytes, bytes] | None = None, batches: int = 1) -> Path:
    """Write the valid catalog again with `change` applied to its columns."""
    batch = pa.ipc.open_file(str(path)).get_batch(0)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    change(columns)
    meta = batch.schema.metadata if metadata is None else metadata
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=meta)
    target = path.with_suffix(".changed")
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for _ in range(batches):
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return target


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
        (setting("id", [1, None, 2, 3], pa.int64()), "column id has empty values"),
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
