"""Embeddings as a file: the same one however the work was cut, divided or interrupted."""

from __future__ import annotations

import dataclasses
import random
import weakref
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

import distmetric
from distmetric.config.jobs import EmbedJob
from distmetric.errors import InputError, ResourceError
from distmetric.index import embedding_writer
from distmetric.index.embedding_file import read_embedding_file
from distmetric.index.embedding_writer import EmbeddingWriter, embedding_batch
from distmetric.inference import part_store
from distmetric.inference.embed import EmbedWork, PartRange, embed_here, embed_source
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.part_store import EmbeddedPart
from distmetric.progress import Counter
from distmetric.training.loop import TrainResult
from distmetric.training.run_data import open_data
from runs import run_once, tiny_config


@pytest.fixture(scope="module")
def trained(glyph_cache, tmp_path_factory):
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    _, result, _ = run_once(config, tmp_path_factory.mktemp("run"))
    return result, open_data(config.data)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """Eleven images in two classes, two of which cannot be read."""
    top: Path = tmp_path_factory.mktemp("images")
    for row in range(9):
        file = top / f"class{row % 2}" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(trained[1].image_bytes(row))
    (top / "class0" / "3broken.png").write_bytes(b"not an image")
    (top / "class1" / "9broken.png").write_bytes(b"")
    return top


def job_of(trained, out: Path, source: Path | None = None, **more: Any) -> EmbedJob:
    catalog = trained[1]
    settings = {"split": "test", **more} if source is None else more
    return EmbedJob(
        checkpoint=trained[0].checkpoint, source=str(source or catalog.path), out=str(out), **settings
    )


def step_of(result: TrainResult) -> int:
    return int(result.checkpoint.rpartition("_")[2])


class Stopped(BaseException):
    """What kills a job here."""


class Embedding:
    """Embeds here, noting which parts, optionally in another order, and stops before one as if killed."""

    def __init__(self, stop_before: int | None = None, shuffled: bool = False) -> None:
        self.done: list[int] = []
        self._stop_before, self._shuffled = stop_before, shuffled

    def __call__(
        self, work: EmbedWork, parts: Sequence[PartRange], progress: Counter
    ) -> Generator[EmbeddedPart]:
        if self._shuffled:
            parts = random.Random(0).sample(parts, len(parts))
        for part in embed_here(work, parts, progress):
            if len(self.done) == self._stop_before:
                raise Stopped
            self.done.append(part.number)
            yield part


def test_embeddings_of_a_catalog_give_the_metrics_of_training(trained, tmp_path) -> None:
    result, catalog = trained
    out = tmp_path / "deep" / "embeddings.parquet"
    found = embed_source(job_of(trained, out, batch_size=50, part_rows=120))
    table = pq.read_table(out)
    attributes = [f"attribute.{name}" for name in catalog.attribute_names]
    assert table.column_names == ["id", "path", "label_name", "group", *attributes, "embedding"]
    rows = catalog.rows("test")
    assert found["rows"] == table.num_rows == len(rows)
    assert (found["parts"], found["resumed_parts"], found["dim"]) == (-(-len(rows) // 120), 0, 16)
    assert table["id"].to_pylist() == catalog.ids[rows].tolist()
    assert table["attribute.bold"].to_pylist() == catalog.attribute("bold")[rows].tolist()
    assert table["path"].to_pylist() == [catalog.source_path(row) for row in rows]
    file = read_embedding_file(str(out))
    assert file.metadata == {"checkpoint": result.checkpoint, "step": str(step_of(result))}
    metrics = distmetric.evaluate(file.embeddings, file.labels).to_dict()
    assert {name: metrics[name] for name in ("recall_at_1", "map_at_r")} == pytest.approx(
        {name: result.metrics[name] for name in ("recall_at_1", "map_at_r")}, abs=1e-6
    )
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("part_rows", [1, 2, 3, 4, 100])
def test_ids_of_a_folder_and_of_a_zip_are_places_among_all_images(
    trained, folder, tmp_path, part_rows
) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(folder.rglob("*.png")):
            zipped.write(file, file.relative_to(folder))
    tables = []
    for source in (folder, archive):
        out = tmp_path / f"{source.name}.parquet"
        found = embed_source(job_of(trained, out, source, batch_size=2, part_rows=part_rows))
        assert [(Path(bad["path"]).name, bad["reason"]) for bad in found["bad_images"]] == [
            ("3broken.png", "not an image"),
            ("9broken.png", "empty"),
        ]
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])
    assert tables[0]["id"].to_pylist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    names = ["0", "2", "4", "6", "8", "1", "3", "5", "7"]
    assert [Path(path).stem for path in tables[0]["path"].to_pylist()] == names
    assert (
        tables[0]["label_name"].to_pylist()
        == tables[0]["group"].to_pylist()
        == ["class0"] * 5 + ["class1"] * 4
    )


def test_each_row_is_the_embedding_of_its_own_image(trained, folder, tmp_path) -> None:
    out = tmp_path / "e.arrow"
    embed_source(job_of(trained, out, folder, batch_size=2, part_rows=3))
    file = read_embedding_file(str(out))
    embedder = CheckpointEmbedder(trained[0].checkpoint)
    for path, row in zip(file.paths.to_pylist(), file.embeddings, strict=True):
        ((images, alone),) = embedder.batches(str(folder / path))
        assert images.paths == [Path(path).name]
        assert torch.allclose(torch.from_numpy(alone[0]), row, atol=1e-6)


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(trained, tmp_path) -> None:
    settings = {"batch_size": 32, "part_rows": 60}
    whole = tmp_path / "whole.parquet"
    parts = embed_source(job_of(trained, whole, **settings))["parts"]
    assert parts >= 4
    job = job_of(trained, tmp_path / "again.parquet", **settings)
    done: list[int] = []
    for number, stop_before in enumerate((0, 1, 2, None)):
        embedding = Embedding(stop_before, shuffled=number == 1)
        if stop_before is None:
            found = embed_source(job, embedding)
            assert found["resumed_parts"] == len(done) == 3
        else:
            with pytest.raises(Stopped):
                embed_source(job, embedding)
            assert not Path(job.out).exists()
        done += embedding.done
    assert sorted(done) == list(range(parts)), "no part is done twice"
    assert Path(job.out).read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.parquet", "whole.parquet"]


def test_a_job_killed_while_parts_are_joined_goes_on(trained, folder, tmp_path, monkeypatch) -> None:
    job = job_of(trained, tmp_path / "e.arrow", folder, batch_size=2, part_rows=2)
    write = embedding_writer.EmbeddingWriter.write

    def stop(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr(embedding_writer.EmbeddingWriter, "write", stop)
    with pytest.raises(Stopped):
        embed_source(job)
    assert [path.name for path in tmp_path.iterdir()] == ["e.arrow.parts"]
    monkeypatch.setattr(embedding_writer.EmbeddingWriter, "write", write)
    embedding = Embedding()
    found = embed_source(job, embedding)
    assert (embedding.done, found["resumed_parts"], found["rows"]) == ([], 6, 9)
    assert [Path(bad["path"]).name for bad in found["bad_images"]] == ["3broken.png", "9broken.png"]


def test_damaged_and_half_written_parts_are_done_again(trained, folder, tmp_path) -> None:
    whole = tmp_path / "whole.arrow"
    embed_source(job_of(trained, whole, folder, batch_size=2, part_rows=2))
    job = job_of(trained, tmp_path / "e.arrow", folder, batch_size=2, part_rows=2)
    with pytest.raises(Stopped):
        embed_source(job, Embedding(stop_before=4))
    parts = tmp_path / "e.arrow.parts"
    damaged, odd = parts / "part_00000001.arrow", parts / "part_00000002.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    odd.write_bytes(whole.read_bytes())  # whole, but no part
    (parts / ".part_00000005.arrow.123").write_bytes(b"ARROW1")
    embedding = Embedding()
    assert embed_source(job, embedding)["resumed_parts"] == 2
    assert embedding.done == [1, 2, 4, 5]
    assert Path(job.out).read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_parts_of_other_settings_are_refused_in_one_line(trained, folder, tmp_path) -> None:
    job = job_of(trained, tmp_path / "e.arrow", folder, batch_size=2, part_rows=2)
    with pytest.raises(Stopped):
        embed_source(job, Embedding(stop_before=2))
    other = tmp_path / "other"
    (other / "class").mkdir(parents=True)
    (other / "class" / "1.png").write_bytes(trained[1].image_bytes(0))
    for changes, named in (
        ({"batch_size": 3}, "batch_size"),
        ({"part_rows": 3, "batch_size": 1}, "batch_size, part_rows"),
        ({"source": str(other)}, "source"),
        ({"source": str(trained[1].path), "split": "test"}, "source, split"),
    ):
        with pytest.raises(InputError, match=f"are of a job with another {named}: start") as raised:
            embed_source(dataclasses.replace(job, **changes))
        assert "\n" not in str(raised.value)
        assert str(raised.value).endswith("set fresh=true to delete them")
    assert len(list((tmp_path / "e.arrow.parts").iterdir())) == 3, "nothing was deleted"
    mine = tmp_path / "e.arrow.parts" / "notes.txt"
    mine.write_text("not a part")
    embedding = Embedding()
    found = embed_source(dataclasses.replace(job, batch_size=3, part_rows=4, fresh=True), embedding)
    assert (embedding.done, found["resumed_parts"]) == ([0, 1, 2], 0)
    assert list((tmp_path / "e.arrow.parts").iterdir()) == [mine], "what is not ours stays"


def test_another_checkpoint_is_another_job(trained, glyph_cache, folder, tmp_path) -> None:
    job = job_of(trained, tmp_path / "e.arrow", folder, part_rows=2)
    with pytest.raises(Stopped):
        embed_source(job, Embedding(stop_before=2))
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16", "seed=1")
    _, result, _ = run_once(config, tmp_path / "run")
    with pytest.raises(InputError, match="of a job with another checkpoint: start"):
        embed_source(dataclasses.replace(job, checkpoint=result.checkpoint))


def test_a_changed_source_is_another_one(trained, folder, tmp_path) -> None:
    source = tmp_path / "images" / "a"
    source.mkdir(parents=True)
    for row in range(4):
        (source / f"{row}.png").write_bytes(trained[1].image_bytes(row))
    job = job_of(trained, tmp_path / "e.arrow", source.parent, part_rows=1)
    with pytest.raises(Stopped):
        embed_source(job, Embedding(stop_before=2))
    (source / "0.png").write_bytes(trained[1].image_bytes(9))
    with pytest.raises(InputError, match="of a job with another source: start"):
        embed_source(job)


def test_nothing_readable_leaves_nothing(trained, tmp_path) -> None:
    source = tmp_path / "images" / "a"
    source.mkdir(parents=True)
    (source / "broken.png").write_bytes(b"")
    out = tmp_path / "out" / "e.parquet"
    with pytest.raises(InputError, match="no image in it can be read"):
        embed_source(job_of(trained, out, source.parent))
    assert list(out.parent.iterdir()) == []


def test_mistakes_are_told_before_anything_is_made(trained, folder, tmp_path) -> None:
    for job, says in (
        (job_of(trained, tmp_path / "new" / "e.csv", folder), r"e\.csv: name a file that ends in"),
        (job_of(trained, tmp_path / "new" / "e.arrow", folder, split="test"), "split=test but source="),
        (
            dataclasses.replace(job_of(trained, tmp_path / "new" / "e.arrow", folder), checkpoint="gone"),
            "checkpoint=gone does not exist",
        ),
    ):
        with pytest.raises(InputError, match=says):
            embed_source(job)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"e\.arrow\.parts cannot be written"):
        embed_source(job_of(trained, tmp_path / "file" / "e.arrow", folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 0), ("part_rows", 0), ("workers", -1), ("worker_gpus", 1.5), ("start_timeout_s", 0)],
)
def test_settings_that_cannot_be_are_named(key, value) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value} is (too small|wrong): "):
        EmbedJob(checkpoint="c", source="s", out="o", **{key: value})


def test_parts_and_file_may_be_in_an_object_store(trained, folder, tmp_path, monkeypatch) -> None:
    here = tmp_path / "here.parquet"
    embed_source(job_of(trained, here, folder, batch_size=2, part_rows=2))
    bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())  # no local one, so nothing is moved
    for module in (embedding_writer, part_store):
        monkeypatch.setattr(module, "open_location", lambda uri: (bucket, uri.removeprefix("s3://")))
    job = dataclasses.replace(
        job_of(trained, here, folder, batch_size=2, part_rows=2), out="s3://bucket/deep/e.parquet"
    )
    with pytest.raises(Stopped):
        embed_source(job, Embedding(stop_before=3))
    found = embed_source(job)
    assert (found["out"], found["resumed_parts"]) == ("s3://bucket/deep/e.parquet", 3)
    assert (tmp_path / "bucket" / "deep" / "e.parquet").read_bytes() == here.read_bytes()
    assert [path.name for path in (tmp_path / "bucket" / "deep").iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_embeddings_are_held_a_part_at_a_time(trained, tmp_path, ending, monkeypatch) -> None:
    parts, dim = 24, 16
    source = tmp_path / "images" / "a"
    source.mkdir(parents=True)
    for number in range(parts):
        (source / f"{number:02d}.png").write_bytes(b"")
    rows = 1 << 12  # 256 KiB a part
    alive: list[Any] = []
    most_alive, most_bytes = [0], [0]

    def look() -> None:
        most_alive.append(sum(part() is not None for part in alive))
        most_bytes.append(pa.total_allocated_bytes())

    def embed_parts(work: EmbedWork, parts: Sequence[PartRange], _: Counter) -> Generator[EmbeddedPart]:
        for part in parts:
            embeddings = np.full((rows, dim), part.number, np.float32)
            names = [""] * rows
            ids = range(part.number * rows, (part.number + 1) * rows)
            batch = embedding_batch(work.schema, ids, names, names, embeddings, {"group": names})
            alive.append(weakref.ref(batch))
            yield EmbeddedPart(part.number, batch, [])
            del batch, embeddings
            look()

    write = EmbeddingWriter.write
    monkeypatch.setattr(EmbeddingWriter, "write", lambda *args: (write(*args), look()))
    before = pa.total_allocated_bytes()
    job = job_of(trained, tmp_path / f"e.{ending}", source.parent, part_rows=1)
    assert embed_source(job, embed_parts)["rows"] == parts * rows
    assert len(most_bytes) == 1 + 2 * parts
    assert max(most_alive) <= 1
    assert max(most_bytes) - before < 6 * rows * dim * 4
    file = read_embedding_file(job.out)
    assert torch.equal(file.embeddings[::rows, 0], torch.arange(parts, dtype=torch.float32))


def test_an_embedder_takes_batches_of_any_device_and_says_what_it_is(trained) -> None:
    result, catalog = trained
    embedder = CheckpointEmbedder(result.checkpoint, "cpu")
    assert (embedder.dim, embedder.checkpoint.step) == (16, step_of(result))
    assert embedder.config.model.embedding_dim == 16
    batches = list(embedder.batches(str(catalog.path), split="test", batch_size=100))
    assert sum(len(rows) for rows, _ in batches) == len(catalog.rows("test"))
    rows, embeddings = batches[0]
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (100, 16))
    assert np.array_equal(embedder.embed(rows.images), embeddings)
    assert not embedder.model.training
