"""Parquet is read with plain columns and as Hugging Face writes it, and refused with other columns."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmetric.data import parquet
from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.errors import InputError
from image_sources import make_parquet, png, rows_of


def test_parquet_with_plain_columns(tmp_path: Path, out: Path) -> None:
    source = make_parquet(
        tmp_path / "in.parquet",
        {
            "image": [png(1), png(2), None, b"", png(5), bytes(2000)],
            "label": ["a", "b", "a", "a", None, "b"],
            "split": ["train", "test", "train", "train", "train", "test"],
            "group": ["x", None, "x", "x", "x", "x"],
            "camera": [4, None, 1, 1, 1, 1],
            "path": ["p/1.png", None, None, None, None, None],
            "attributes": [{"hue": "red", "age": 3}, {"hue": None, "age": None}, None, None, None, None],
            "unrelated": [0] * 6,
        },
    )
    result = ingest([source], out, split_by="given", max_image_bytes=1000)
    catalog = Catalog.open(out)
    assert rows_of(result) == {("a", "x", png(1)), ("b", "b", png(2))}
    assert catalog.cameras is not None
    assert catalog.cameras.tolist() == [4, -1]
    assert catalog.attribute("hue").tolist() == ["red", None]
    assert catalog.attribute("age").tolist() == ["3", None]
    assert result.bad_images == (
        (f"{source}#2", "no bytes"),
        (f"{source}#3", "empty"),
        (f"{source}#4", "no label"),
        (f"{source}#5", "too many bytes (limit 1,000)"),
    )
    assert catalog.source_path(0) == f"{source}#0 (p/1.png)"


def test_parquet_as_hugging_face_writes_it(tmp_path: Path, out: Path) -> None:
    features = {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "hf").mkdir()
    for shard in range(2):
        images = [{"bytes": png(2 * shard + i), "path": f"{shard}{i}.png"} for i in range(2)]
        columns = {"image": [*images, {"bytes": None, "path": "x.png"}], "label": [shard, 2, 0]}
        make_parquet(tmp_path / "hf" / f"train-{shard}.parquet", columns, metadata)
    (tmp_path / "hf" / "README.md").write_text("")
    result = ingest([str(tmp_path / "hf")], out)
    assert rows_of(result) == {
        ("cat", "cat", png(0)),
        ("eel", "eel", png(1)),
        ("dog", "dog", png(2)),
        ("eel", "eel", png(3)),
    }
    assert result.bad_counts == {"no bytes": 2}
    whole_numbers = make_parquet(tmp_path / "in.parquet", {"image": [png(1), png(2)], "label": [7, 11]})
    ingest([whole_numbers], out)
    assert Catalog.open(out).label_names == ["11", "7"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [b"x"], "label": [1]}, "the column image is missing; it has: img, label"),
        ({"image": [b"x"]}, "the column label is missing"),
        (
            {"image": ["x"], "label": [1]},
            "column image is string; it has to be binary or struct<bytes, path>",
        ),
        ({"image": [b"x"], "label": [1.5]}, "column label is double"),
        ({"image": [b"x"], "label": [1], "camera": ["c1"]}, "column camera is string"),
        ({"image": [b"x"], "label": [1], "attributes": ["c1"]}, "column attributes is string"),
    ],
)
def test_parquet_with_wrong_columns(tmp_path: Path, out: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest([make_parquet(tmp_path / "in.parquet", columns)], out)


def test_parquet_with_the_other_types_that_arrow_has(tmp_path: Path, out: Path) -> None:
    columns = {
        "image": pa.array([png(1), png(2), png(3)], pa.large_binary()),
        "label": pa.array(["a", "b", "a"], pa.large_string()).dictionary_encode(),
        "split": pa.nulls(3),
        "group": pa.array([1, 2, 1], pa.uint8()),
        "camera": pa.array([0, None, 2**63 - 1], pa.uint64()),
        "attributes": [{"hue": "red", "day": datetime.date(2020, 1, 2), "old": True}, None, {"hue": None}],
    }
    ingest([make_parquet(tmp_path / "in.parquet", columns)], out)
    catalog = Catalog.open(out)
    assert (catalog.label_names, catalog.groups.tolist()) == (["a", "b"], ["1", "2", "1"])
    assert catalog.cameras is not None
    assert catalog.cameras.tolist() == [0, -1, 2**63 - 1]
    assert catalog.attribute("day").tolist() == ["2020-01-02", None, None]


def test_one_large_image_for_many_rows_is_not_unpacked_for_all_at_once(tmp_path: Path, out: Path) -> None:
    """A few kilobytes of Parquet, since a value that repeats is there once."""
    rows, size = 64, 8 << 20
    images = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows + [1, 2]), pa.array([bytes(size), png(1), png(2)])
    )
    table = pa.table({"image": images, "label": ["a"] * (rows + 1) + ["b"]})
    pq.write_table(table, tmp_path / "in.parquet", store_schema=False, dictionary_pagesize_limit=1 << 30)
    assert (tmp_path / "in.parquet").stat().st_size < 4 << 20
    pa.default_memory_pool().release_unused()
    before = pa.default_memory_pool().bytes_allocated()
    most = [0]
    batches = parquet._batches

    def watched(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            most[0] = max(most[0], pa.default_memory_pool().bytes_allocated() - before)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_batches", watched)
        patch.setattr(parquet, "_BATCH_BYTES", 16 << 20)
        result = ingest([str(tmp_path / "in.parquet")], out, max_image_bytes=1000)
    assert (result.rows, result.bad_counts) == (2, {"too many bytes": rows})
    assert most[0] < 8 * size


def test_class_names_of_hugging_face_cannot_break_the_file(tmp_path: Path, out: Path) -> None:
    for names, expected in (
        (["a\ud800", "b\n"], ["a\\ud800", "b\\n"]),
        ("ab", ["0", "1"]),
        ([None, {}], ["None", "{}"]),
    ):
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
        source = make_parquet(tmp_path / "in.parquet", {"image": [png(1), png(2)], "label": [0, 1]}, metadata)
        ingest([source], out)
        assert Catalog.open(out).label_names == expected
    source = make_parquet(
        tmp_path / "in.parquet", {"image": [png(1), png(2)], "label": [0, 1]}, {"huggingface": "[" * 100_000}
    )
    ingest([source], out)
    assert Catalog.open(out).label_names == ["0", "1"]
