"""Rows to search, of a file and drawn."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distmetric.benchmarks.index.data import load, size_of
from distmetric.errors import InputError

CPU = torch.device("cpu")


def write(path: Path, rows: torch.Tensor, names: list[str]) -> str:
    """As `jobs/embed.py` does."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.flatten().numpy()), rows.shape[1])
    pq.write_table(
        pa.table({"id": range(len(rows)), "path": names, "label_name": names, "embedding": embedding}), path
    )
    return str(path)


def test_a_file_is_searched_as_it_is(tmp_path) -> None:
    rows = torch.randn(5, 3)
    file = write(tmp_path / "e.parquet", rows, ["b", "a", "b", "c", "a"])
    assert size_of(file) == (5, 3)
    found = load(0, 0, 0, 0.0, file, CPU)
    assert torch.equal(found.embeddings, rows)
    assert found.labels.tolist() == [1, 0, 1, 2, 0]
    assert found.num_classes == 3


def test_a_few_rows_are_spread_over_all_and_their_classes_numbered_anew(tmp_path) -> None:
    rows = torch.arange(8.0)[:, None]
    found = load(0, 0, 0, 0.0, write(tmp_path / "e.parquet", rows, list("aabbccdd")), CPU).few(4)
    assert found.embeddings[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert len(load(10, 4, 2, 0.1, None, CPU).few(512).labels) == 10


def test_what_is_no_file_of_embeddings_is_told_in_one_line(tmp_path) -> None:
    text, other = tmp_path / "text.parquet", tmp_path / "other.parquet"
    text.write_text("no")
    pq.write_table(pa.table({"label_name": ["a"]}), other)
    lists = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"label_name": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}), lists)
    for path in (text, other, tmp_path / "absent.parquet", lists):
        with pytest.raises(InputError, match=f"embeddings={path}") as caught:
            size_of(str(path))
        assert "\n" not in str(caught.value)


def test_a_row_that_is_not_finite_is_told(tmp_path) -> None:
    rows = torch.ones(3, 2)
    rows[1, 1] = torch.nan
    with pytest.raises(InputError, match="row 1 is not finite"):
        load(0, 0, 0, 0.0, write(tmp_path / "e.parquet", rows, list("abc")), CPU)
