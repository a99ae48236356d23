"""Files of embeddings: what is written is read, in either format, and what is wrong is one line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch

from distmetric.errors import InputError, ResourceError
from distmetric.index import embedding_file
from distmetric.index.embedding_file import embedding_shape, read_embedding_file
from distmetric.index.embedding_writer import EmbeddingWriter, embedding_batch, embedding_schema

NAMES = ["b", "a", "b", "ä", "a", "b", "a"]
EXTRAS = {
    "camera": [0, 1, -1, 2, 2, -1, 0],
    "group": ["g", "h", "g", None, "h", "g", "h"],
    "attribute.hue": [None, "red", "red", None, "blue", None, None],
}
ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def write(path: Path | str, extras: dict[str, list[Any]], cuts: tuple[int, ...] = (0, 3, 3, 7)) -> str:
    schema = embedding_schema(3, list(extras), {"step": "12", "checkpoint": "some/where"})
    with EmbeddingWriter(str(path), schema) as writer:
        for start, stop in pairwise(cuts):
            part = slice(start, stop)
            some = {name: values[part] for name, values in extras.items()}
            ids, paths = list(range(10, 17))[part], [f"p/{row}" for row in range(7)][part]
            writer.write(embedding_batch(schema, ids, paths, NAMES[part], ROWS[part], some))
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather", "PARQUET"])
@pytest.mark.parametrize("rows_per_read", [1, 2, 8192])
def test_a_file_is_read_as_it_was_written(tmp_path, ending, rows_per_read, monkeypatch) -> None:
    monkeypatch.setattr(embedding_file, "ROWS_PER_READ", rows_per_read)
    location = write(tmp_path / "new" / f"e.{ending}", EXTRAS)
    file = read_embedding_file(location)
    assert file.ids.tolist() == list(range(10, 17))
    assert file.paths.to_pylist() == [f"p/{row}" for row in range(7)]
    assert file.label_names == ["a", "b", "ä"]
    assert [file.label_names[label] for label in file.labels] == NAMES
    assert torch.equal(file.embeddings, torch.from_numpy(ROWS))
    assert file.cameras.tolist() == EXTRAS["camera"]
    assert file.groups.tolist() == EXTRAS["group"]
    assert {name: values.tolist() for name, values in file.attributes.items()} == {
        "hue": EXTRAS["attribute.hue"]
    }
    assert file.metadata == {"step": "12", "checkpoint": "some/where"}
    assert embedding_shape(location) == (7, 3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"e.{ending}"]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_further_columns_are_optional(tmp_path, ending) -> None:
    file = read_embedding_file(write(tmp_path / f"e.{ending}", {}))
    assert (file.cameras, file.groups, file.attributes) == (None, None, {})
    assert file.embeddings.shape == (7, 3)


def test_unknown_cameras_are_empty_in_the_file(tmp_path) -> None:
    table = pq.read_table(write(tmp_path / "e.parquet", EXTRAS))
    assert table["camera"].to_pylist() == [0, 1, None, 2, 2, None, 0]
    assert table.column_names == ["id", "path", "label_name", *EXTRAS, "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)


def test_the_content_says_the_format_and_others_may_have_written_it(tmp_path) -> None:
    table = pq.read_table(write(tmp_path / "e.parquet", EXTRAS))
    other = table.cast(
        pa.schema(
            [
                ("id", pa.uint8()),
                ("path", pa.large_string()),
                ("label_name", pa.string()),
                ("camera", pa.int16()),
                ("group", pa.large_string()),
                ("attribute.hue", pa.string()),
                ("embedding", pa.list_(pa.float64())),
            ]
        )
    ).append_column("more", pa.array(["x"] * 7))
    feather.write_feather(other, str(tmp_path / "no_ending"), compression="lz4", chunksize=4)
    file = read_embedding_file(str(tmp_path / "no_ending"))
    assert torch.equal(file.embeddings, torch.from_numpy(ROWS))
    assert file.cameras.tolist() == EXTRAS["camera"]
    assert embedding_shape(str(tmp_path / "no_ending")) == (7, 3)


def test_arrow_files_are_checked_like_parquet(tmp_path) -> None:
    table = pq.read_table(write(tmp_path / "e.parquet", EXTRAS))
    wrong = {
        "lacks the column path": table.drop_columns(["path"]),
        "has no rows": table.slice(0, 0),
        "column camera is string, not integers": table.set_column(
            3, "camera", pa.array(["0"] * 7, pa.string())
        ),
        "column attribute.hue is int64, not strings": table.set_column(5, "attribute.hue", pa.array([1] * 7)),
        "column label_name has no value in row 4": table.set_column(
            2, "label_name", pa.array(["a"] * 4 + [None] * 3)
        ),
    }
    for says, bad in wrong.items():
        feather.write_feather(bad, str(tmp_path / "bad.arrow"), chunksize=3)
        with pytest.raises(InputError, match=says) as raised:
            read_embedding_file(str(tmp_path / "bad.arrow"))
        assert "\n" not in str(raised.value)
    damaged = tmp_path / "damaged.arrow"
    damaged.write_bytes(Path(write(tmp_path / "e.arrow", EXTRAS)).read_bytes()[:-30])
    with pytest.raises(InputError, match="is no usable Parquet or Arrow file"):
        read_embedding_file(str(damaged))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_an_interrupted_file_is_not_there_and_the_one_before_is(tmp_path, ending) -> None:
    path = tmp_path / f"e.{ending}"
    before = Path(write(path, EXTRAS)).read_bytes()
    schema = embedding_schema(3, [], {})

    def interrupted() -> None:
        with EmbeddingWriter(str(path), schema) as writer:
            writer.write(embedding_batch(schema, [1], ["p"], ["a"], ROWS[:1], {}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_file_may_be_elsewhere(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        EmbeddingWriter("nowhere://x/e.arrow", embedding_schema(3, [], {}))
    location = write((tmp_path / "bucket").as_uri() + "/e.arrow", EXTRAS)
    assert read_embedding_file(location).ids.tolist() == list(range(10, 17))


def test_other_endings_and_places_that_cannot_be_written_are_one_line(tmp_path) -> None:
    schema = embedding_schema(3, [], {})
    with pytest.raises(InputError, match=r"out=.*e\.csv: name a file that ends in \.parquet, \.arrow or "):
        EmbeddingWriter(str(tmp_path / "e.csv"), schema)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResourceError, match=r"out=.*e\.arrow cannot be written"),
        EmbeddingWriter(str(tmp_path / "file" / "e.arrow"), schema),
    ):
        pass


def test_a_file_that_says_it_has_more_rows_than_it_has_is_damaged(tmp_path, monkeypatch) -> None:
    for ending in ("parquet", "arrow"):
        location = write(tmp_path / f"e.{ending}", EXTRAS)
        for rows, says in (
            (1 << 50, r"says it has 1125899906842624 rows of 3 numbers, which do not fit in memory"),
            (8, r"is damaged: it has not the 8 rows that it says it has"),
            (6, r"is damaged: it has not the 6 rows that it says it has"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(embedding_file._OpenFile, "count", lambda _, rows=rows: rows)
                with pytest.raises(InputError, match=says):
                    read_embedding_file(location)


def test_offsets_that_lead_out_of_an_arrow_file_are_seen_before_they_are_followed(tmp_path) -> None:
    location = Path(write(tmp_path / "e.arrow", {}, cuts=(0, 7)))
    offsets = bytes(pa.ipc.open_file(str(location)).get_batch(0).column("label_name").buffers()[1])
    data = location.read_bytes()
    assert data.count(offsets) == 1
    location.write_bytes(data.replace(offsets, offsets[:4] + b"\xff\xff\xff\x7f" + offsets[8:]))
    with pytest.raises(InputError, match="is no usable Parquet or Arrow file"):
        read_embedding_file(str(location))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_text_that_is_not_utf8_is_one_line(tmp_path, ending) -> None:
    location = Path(write(tmp_path / f"e.{ending}", EXTRAS, cuts=(0, 7)))
    data = location.read_bytes()
    # Parquet has its metadata twice, once in an encoding of Arrow's.
    cases = [("ä".encode(), b"\xff\xfe"), *([(b"some/where", b"some/wher\xff")] if ending == "arrow" else [])]
    for old, new in cases:
        assert old in data
        location.write_bytes(data.replace(old, new))
        with pytest.raises(InputError, match="is no usable Parquet or Arrow file") as raised:
            read_embedding_file(str(location))
        assert str(raised.value).isprintable()


def test_every_row_has_an_id_of_its_own_from_0(tmp_path) -> None:
    table = pq.read_table(write(tmp_path / "e.parquet", EXTRAS))
    for ids, says in (
        ([4, 9, 2, 9, 1, 0, 3], "id 9 is in row 1 and again in row 3: give every row its own"),
        ([4, 9, 2, -9, 1, 0, 3], "id -9 in row 3 is negative: number the rows from 0"),
    ):
        pq.write_table(table.set_column(0, "id", pa.array(ids)), tmp_path / "bad.parquet")
        with pytest.raises(InputError, match=says):
            read_embedding_file(str(tmp_path / "bad.parquet"))
    pq.write_table(table.set_column(0, "id", pa.array([4, 9, 2, 8, 1, 0, 3])), tmp_path / "good.parquet")
    assert read_embedding_file(str(tmp_path / "good.parquet")).ids.tolist() == [4, 9, 2, 8, 1, 0, 3]
