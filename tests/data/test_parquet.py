"""Parquet is read with plain columns and as Hugging Face writes it, and refused with other columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
