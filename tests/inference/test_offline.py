"""Checkpoints at work: metrics of a catalog, embeddings of files."""

from __future__ import annotations

import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

import distmetric
from distmetric.config.jobs import EmbedJob, EvaluateData, EvaluateJob
from distmetric.data.catalog import Catalog
from distmetric.errors import InputError
from distmetric.inference.embed import embed_source
from distmetric.inference.evaluate import evaluate_checkpoint
from distmetric.training.worker import open_data
from runs import run_once, tiny_config


@pytest.fixture(scope="module")
def trained(glyph_cache, tmp_path_factory):
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    _, result, _ = run_once(config, tmp_path_factory.mktemp("run"))
    return result, open_data(config.data)


def test_evaluation_repeats_what_training_measured(trained) -> None:
    result, catalog = trained
    job = EvaluateJob(checkpoint=result.checkpoint, data=EvaluateData())
    found = evaluate_checkpoint(job)
    assert found["metrics"] == pytest.approx(result.metrics, abs=1e-9)
    assert (found["split"], found["data"]) == ("test", str(catalog.path))


def test_evaluation_of_another_catalog_and_split(trained) -> None:
    result, catalog = trained
    data = EvaluateData(path=str(catalog.path), split="train")
    found = evaluate_checkpoint(EvaluateJob(checkpoint=result.checkpoint, data=data, ks=[3]))
    assert found["metrics"]["num_queries"] == len(catalog.rows("train"))
    assert set(found["metrics"]) >= {"recall_at_3", "map_at_r"}
    data = EvaluateData(path=str(catalog.path), split="nope")
    with pytest.raises(InputError, match="nope"):
        evaluate_checkpoint(EvaluateJob(checkpoint=result.checkpoint, data=data))


def test_embeddings_of_a_catalog_give_the_same_metrics(trained, tmp_path) -> None:
    result, catalog = trained
    out = tmp_path / "deep" / "embeddings.parquet"
    job = EmbedJob(
        checkpoint=result.checkpoint, source=str(catalog.path), out=str(out), split="test", batch_size=50
    )
    found = embed_source(job)
    table = pq.read_table(out)
    assert table.column_names == ["id", "path", "label_name", "embedding"]
    assert found["rows"] == table.num_rows == len(catalog.rows("test"))
    assert table["id"].to_pylist() == catalog.ids[catalog.rows("test")].tolist()
    embeddings = np.stack(table["embedding"].to_numpy())
    names = np.unique(table["label_name"].to_numpy(), return_inverse=True)[1]
    metrics = distmetric.evaluate(embeddings, names).to_dict()
    assert metrics == pytest.approx(result.metrics, abs=1e-3)


def test_embeddings_of_a_folder_and_of_a_zip_name_unreadable_images(trained, tmp_path) -> None:
    result, catalog = trained
    folder = tmp_path / "images"
    for row in range(5):
        file = folder / f"class{row % 2}" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(catalog.image_bytes(row))
    (folder / "class0" / "broken.png").write_bytes(b"not an image")
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(folder.rglob("*.png")):
            zipped.write(file, file.relative_to(folder))
    tables = []
    for source in (folder, archive):
        out = tmp_path / f"{source.name}.parquet"
        job = EmbedJob(checkpoint=result.checkpoint, source=str(source), out=str(out), batch_size=2)
        found = embed_source(job)
        assert [bad["path"].endswith("broken.png") for bad in found["bad_images"]] == [True]
        tables.append(pq.read_table(out).drop_columns(["path"]))
    assert tables[0].equals(tables[1])
    assert tables[0]["label_name"].to_pylist() == ["class0", "class0", "class0", "class1", "class1"]


def test_nothing_readable_leaves_no_file(trained, tmp_path) -> None:
    result, _ = trained
    source = tmp_path / "images" / "a"
    source.mkdir(parents=True)
    (source / "broken.png").write_bytes(b"")
    out = tmp_path / "out" / "e.parquet"
    with pytest.raises(InputError):
        embed_source(EmbedJob(checkpoint=result.checkpoint, source=str(source.parent), out=str(out)))
    assert list(out.parent.iterdir()) == []


def test_a_split_needs_a_catalog(trained, tmp_path) -> None:
    result, _ = trained
    with pytest.raises(InputError, match="split=test but source="):
        embed_source(
            EmbedJob(
                checkpoint=result.checkpoint, source=str(tmp_path), out=str(tmp_path / "e"), split="test"
            )
        )


def test_catalogs_are_recognized_by_content(trained, tmp_path) -> None:
    result, catalog = trained
    renamed = tmp_path / "no_suffix"
    renamed.write_bytes(catalog.path.read_bytes())
    found = embed_source(
        EmbedJob(checkpoint=result.checkpoint, source=str(renamed), out=str(tmp_path / "e"), split="test")
    )
    assert found["rows"] == len(Catalog.open(renamed).rows("test"))
