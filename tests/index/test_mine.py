"""The job over a file of embeddings: tables, result, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmetric.config.compose import load
from distmetric.config.jobs import MineJob
from distmetric.errors import ConfigError, InputError
from distmetric.index import embedding_file
from distmetric.index import mine as module
from distmetric.index.mine import mine

ROOT = Path(__file__).parents[2]


def planted() -> dict[str, list]:
    """Twenty classes of ten; id 1003 is in the wrong one, ids 1050 and 1120 are nearly the same and far from others."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    rows = 4 * random.normal(size=(20, 6))[labels] + 0.2 * random.normal(size=(200, 6))
    rows[50], rows[120] = 20.0, 20.0 + 1e-4
    labels[3] = 17
    return {
        "id": list(range(1000, 1200)),
        "path": [f"images/{number}.png" for number in range(200)],
        "label_name": [f"class {label:02d}" for label in labels],
        "embedding": rows.astype(np.float32).tolist(),
    }


def write(path: Path, columns: dict[str, list], fixed: bool = True) -> str:
    size = len(columns["embedding"][0]) if columns.get("embedding") else 1
    kinds = {"id": pa.int64(), "path": pa.string(), "label_name": pa.string()}
    kinds["embedding"] = pa.list_(pa.float32(), size) if fixed else pa.list_(pa.float64())
    table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})
    pq.write_table(table, path)
    return str(path)


def test_planted_findings_are_at_the_top_of_their_tables(tmp_path: Path) -> None:
    source = write(tmp_path / "embeddings.parquet", planted())
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "mine.py", f"embeddings={source}", f"out={tmp_path}/mined", "k=4"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["rows"], result["classes"], result["dim"], result["metric"]) == (200, 20, 6, "l2")
    assert 0 < result["scanned_fraction"] < 1
    assert result["fell_back"] is False
    assert result["exact_duplicates"] == 0
    tables = {name: pq.read_table(entry["path"]).to_pylist() for name, entry in result["tables"].items()}
    assert {name: len(rows) for name, rows in tables.items()} == {
        name: entry["rows"] for name, entry in result["tables"].items()
    }
    error = tables["suspected_label_errors"][0]
    assert (error["id"], error["path"]) == (1003, "images/3.png")
    assert (error["label_name"], error["suggested_label_name"]) == ("class 17", "class 00")
    assert error["score"] > 5
    assert error["own_distance"] > error["distance"] > 0
    assert set(error["neighbor_ids"]) < {1000 + row for row in range(10)}
    duplicate = tables["near_duplicates"][0]
    assert (duplicate["id"], duplicate["other_id"]) == (1050, 1120)
    assert (duplicate["label_name"], duplicate["other_label_name"]) == ("class 05", "class 12")
    assert duplicate["other_path"] == "images/120.png"
    assert duplicate["exact"] is False
    assert duplicate["distance"] == pytest.approx(1e-4 * 6**0.5, rel=0.1)
    pairs = tables["hardest_pairs"]
    assert len(pairs) == 200 * 4
    assert {pairs[0]["id"], pairs[0]["negative_id"]} == {1050, 1120}
    assert pairs[0]["rank"] == 1
    for pair in pairs[::37]:
        check_pair(planted(), pair)


def check_pair(columns: dict[str, list], pair: dict) -> None:
    rows, names = np.array(columns["embedding"]), np.array(columns["label_name"])
    row, other = pair["id"] - 1000, pair["negative_id"] - 1000
    far = np.linalg.norm(rows - rows[row], axis=1)
    others = np.sort(far[names != names[row]])
    assert pair["path"] == f"images/{row}.png"
    assert (pair["label_name"], pair["negative_label_name"]) == (names[row], names[other])
    assert pair["distance"] == pytest.approx(far[other]) == pytest.approx(others[pair["rank"] - 1])
    assert pair["positive_distance"] == pytest.approx(far[names == names[row]].max())
    assert pair["positive_path"] == f"images/{pair['positive_id'] - 1000}.png"


def test_only_the_hardest_pairs_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_WRITE", 7)
    monkeypatch.setattr(embedding_file, "ROWS_PER_READ", 9)
    columns = planted()
    columns["label_name"][199] = "alone"
    source = write(tmp_path / "embeddings.parquet", columns, fixed=False)
    result = mine(source, str(tmp_path / "deep" / "mined"), metric="cosine", k=3, pairs=30)
    pairs = pq.read_table(result["tables"]["hardest_pairs"]["path"]).to_pylist()
    assert len(pairs) == 30
    distances = [pair["distance"] for pair in pairs]
    assert distances == sorted(distances)
    assert len({frozenset((pair["id"], pair["negative_id"])) for pair in pairs}) == 30
    whole = mine(source, str(tmp_path / "whole"), k=199, label_neighbors=1)
    lone = [
        row
        for row in pq.read_table(whole["tables"]["hardest_pairs"]["path"]).to_pylist()
        if row["id"] == 1199
    ]
    assert len(lone) == 199
    assert {(row["positive_id"], row["positive_path"], row["positive_distance"]) for row in lone} == {
        (None,) * 3
    }
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "hardest_pairs.parquet",
        "near_duplicates.parquet",
        "suspected_label_errors.parquet",
    ]


def changed(**columns: list) -> dict[str, list]:
    given = {"id": [1, 2], "path": ["a", "b"], "label_name": ["x", "y"], "embedding": [[1.0], [2.0]]}
    return {name: values for name, values in {**given, **columns}.items() if values is not None}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (changed(label_name=None), "lacks the column label_name"),
        (changed(embedding=[[1.0, 2.0], [np.nan, 0.0]]), "row 1 is not finite"),
        (changed(embedding=[[1.0], None]), "column embedding has no value in row 1"),
        (changed(embedding=[[1.0], [1.0, 2.0]]), "the embedding in row 1 has another length"),
        (changed(label_name=["x", None]), "column label_name has no value in row 1"),
        (changed(label_name=["x", "x"]), "has one class only, x"),
        (changed(embedding=[[1.0], [1.0]]), "all embeddings are equal"),
        ({"id": [], "path": [], "label_name": [], "embedding": []}, "has no rows"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, columns, says) -> None:
    source = write(tmp_path / "wrong.parquet", columns, fixed=False)
    with pytest.raises(InputError, match=says) as raised:
        mine(source, str(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert f"embeddings={source}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        mine(str(tmp_path / "no.parquet"), str(tmp_path))
    (tmp_path / "text.parquet").write_text("not at all")
    with pytest.raises(InputError, match="is no usable Parquet or Arrow file"):
        mine(str(tmp_path / "text.parquet"), str(tmp_path))
    pq.write_table(pa.table({**changed(), "id": ["a", "b"]}), tmp_path / "ids.parquet")
    with pytest.raises(InputError, match="column id is string, not integers"):
        mine(str(tmp_path / "ids.parquet"), str(tmp_path))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("k=0", "k=0 is too small"),
        ("pairs=0", "pairs=0 is too small"),
        ("sub_centers=3", "sub_centers=3 is wrong"),
        ("duplicate_fraction=-1", "duplicate_fraction=-1.0 is wrong"),
        ("fall_back_above=2", "fall_back_above=2.0 is wrong"),
        ("metric=dot", "metric='dot'"),
    ],
)
def test_wrong_settings_are_one_line(override, says) -> None:
    with pytest.raises(ConfigError, match=says):
        load("mine", MineJob, ["embeddings=x", "out=y", override])
