"""Search with a trained checkpoint: own images in, neighbors as tables, JSON and pictures out."""

from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import csv

from distmetric.config.command import run_command
from distmetric.config.jobs import EmbedJob, SearchJob
from distmetric.errors import ResourceError, UserError
from distmetric.evaluation.calibration import Calibration
from distmetric.index import search as index_search
from distmetric.inference import neighbors, search_results
from distmetric.inference import search as search_module
from distmetric.inference.embed import embed_source
from distmetric.inference.search import search
from distmetric.training.run_data import open_data
from runs import run_once, tiny_config

faiss_is_here = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="FAISS is not installed")


def picture(kind: int, seed: int) -> bytes:
    """A disc, a bar or a ring, on noise, in color."""
    generator = np.random.default_rng(100 * kind + seed)
    y, x = np.mgrid[:48, :48] - 23.5 + generator.uniform(-4, 4)
    shape = (np.hypot(x, y) < 12, np.abs(x + y * (seed % 3 - 1) / 4) < 5, np.abs(np.hypot(x, y) - 14) < 3)[
        kind
    ]
    pixels = generator.integers(0, 60, (48, 48, 3)) + 170 * shape[:, :, None]
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def checkpoint(glyph_cache, tmp_path_factory) -> str:
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    return run_once(config, tmp_path_factory.mktemp("run"))[1].checkpoint


@pytest.fixture(scope="module")
def other_checkpoint(glyph_cache, tmp_path_factory) -> str:
    config = tiny_config(
        glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16", "seed=3", "train.steps=2"
    )
    return run_once(config, tmp_path_factory.mktemp("other"))[1].checkpoint


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three classes of six, one of them broken, and an image in no folder."""
    top = tmp_path / "photos"
    for kind, name in enumerate(("disc", "bar", "ring")):
        for seed in range(6):
            (top / name).mkdir(parents=True, exist_ok=True)
            (top / name / f"photo_of_a_{name}_{seed}.png").write_bytes(picture(kind, seed))
    (top / "disc" / "broken.png").write_bytes(b"no image")
    (top / "loose.png").write_bytes(picture(2, 9))
    return top


@pytest.fixture
def job(checkpoint, photos, tmp_path) -> SearchJob:
    return SearchJob(
        checkpoint=checkpoint,
        gallery=str(photos),
        queries=str(photos),
        out=str(tmp_path / "out"),
        k=4,
        pictures=0,
    )


def paths_of(result: dict[str, Any]) -> list[list[str]]:
    listed = json.loads(Path(result["files"]["json"]).read_text())["results"]
    return [[one["path"] for one in query["neighbors"]] for query in listed]


def test_the_nearest_to_a_copy_is_the_image_that_was_copied(job, photos, tmp_path, capsys) -> None:
    original = photos / "ring" / "photo_of_a_ring_3.png"
    copy = tmp_path / "somewhere" / "unknown.png"
    copy.parent.mkdir()
    copy.write_bytes(original.read_bytes())
    found = search(replace(job, queries=str(copy), pictures=3))
    assert (found["queries"], found["gallery_size"]) == (1, 19)
    first = found["neighbors"][0]
    assert (first["path"], first["rank"], first["label_name"]) == (str(original), 1, "ring")
    assert first["distance"] == pytest.approx(0, abs=1e-6)
    assert [one["correct"] for one in found["neighbors"]] == [None] * 4  # nobody says what the query is
    assert [bad["path"] for bad in found["bad_images"]["gallery"]] == [str(photos / "disc" / "broken.png")]
    read = capsys.readouterr().err.splitlines()
    assert any(line.split()[:2] == ["rank", "distance"] for line in read)
    assert any(line.endswith(str(original)) and " ring " in line for line in read)


def test_tables_and_json_say_the_same_in_the_order_of_distance(job) -> None:
    found = search(job)
    table = pq.read_table(found["files"]["parquet"])
    assert table.num_rows == 19 * 4
    assert table.column_names == [
        *("query_id", "query_path", "query_label_name"),
        *("rank", "id", "path", "label_name", "distance", "verdict", "correct"),
    ]
    rows = table.to_pylist()
    for start in range(0, len(rows), 4):
        distances = [row["distance"] for row in rows[start : start + 4]]
        assert distances == sorted(distances)
        assert [row["rank"] for row in rows[start : start + 4]] == [1, 2, 3, 4]
    for row in rows:
        known = row["query_label_name"] is not None and row["label_name"] is not None
        assert row["correct"] == (row["query_label_name"] == row["label_name"] if known else None)
    read = csv.read_csv(found["files"]["csv"])
    assert read["path"].to_pylist() == table["path"].to_pylist()
    assert read["distance"].to_pylist() == pytest.approx(table["distance"].to_pylist())
    document = json.loads(Path(found["files"]["json"]).read_text())
    listed = [
        {"query_id": query["id"], "query_path": query["path"], "query_label_name": query["label_name"], **one}
        for query in document["results"]
        for one in query["neighbors"]
    ]
    assert listed == rows
    assert document["gallery_size"] == 19


def test_a_query_is_not_its_own_neighbor_but_its_copy_is(job, photos) -> None:
    original = photos / "bar" / "photo_of_a_bar_1.png"
    (photos / "bar" / "twin.png").write_bytes(original.read_bytes())
    rows = pq.read_table(search(job)["files"]["parquet"]).to_pylist()
    assert len(rows) == 20 * 4
    assert all(row["query_path"] != row["path"] for row in rows)
    by_file = search(replace(job, queries=str(original)))
    assert by_file["neighbors"][0]["path"] == str(photos / "bar" / "twin.png")
    assert [one["path"] for one in by_file["neighbors"]] == [
        row["path"] for row in rows if row["query_path"] == str(original)
    ]
    own = search(replace(job, queries=str(original), exclude_self=False))
    assert {one["path"] for one in own["neighbors"][:2]} == {str(original), str(photos / "bar" / "twin.png")}


def test_a_folder_of_the_same_names_is_another_folder(job, photos, tmp_path) -> None:
    other = tmp_path / "other"
    for file in photos.rglob("*_0.png"):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        (other / file.parent.name / file.name).write_bytes(file.read_bytes())
    found = search(replace(job, queries=str(other)))
    assert [paths[0] for paths in paths_of(found)] == sorted(map(str, photos.rglob("*_0.png")))


def test_a_kept_index_gives_the_same_answers_without_embedding_again(
    job, photos, monkeypatch, tmp_path
) -> None:
    kept = replace(job, saved_index=str(tmp_path / "kept"), queries=str(photos / "ring"))
    first = search(kept)
    assert (first["index"]["reused"], first["index"]["location"]) == (False, str(tmp_path / "kept"))
    embedded: list[str] = []
    embed = search_module.embedded_images
    monkeypatch.setattr(
        search_module,
        "embedded_images",
        lambda embedder, mark, *rest: embedded.append(mark.source) or embed(embedder, mark, *rest),
    )
    again = search(kept)
    alone = search(replace(kept, saved_index=None, gallery=kept.saved_index))
    assert embedded == [str(photos / "ring")] * 2
    assert again["index"]["reused"]
    assert alone["index"]["reused"]
    for other in (again, alone):
        for key in ("gallery", "gallery_size", "threshold"):
            assert other[key] == first[key]
    tables = [pq.read_table(one["files"]["parquet"]) for one in (first, again, alone)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_a_kept_index_of_other_images_or_another_checkpoint_is_refused(
    job, photos, tmp_path, other_checkpoint
) -> None:
    kept, other = replace(job, saved_index=str(tmp_path / "kept")), other_checkpoint
    search(kept)
    with pytest.raises(
        UserError, match=r"saved_index=.*kept was made with the checkpoint .* not with .* delete this one"
    ):
        search(replace(kept, checkpoint=other))
    with pytest.raises(
        UserError, match=r"gallery=.*kept was made with the checkpoint .* give that checkpoint"
    ):
        search(replace(kept, checkpoint=other, gallery=str(tmp_path / "kept"), saved_index=None))
    with pytest.raises(UserError, match=r"was made of .*photos, not of .*ring"):
        search(replace(kept, gallery=str(photos / "ring")))
    (photos / "ring" / "new.png").write_bytes(picture(1, 40))
    with pytest.raises(UserError, match=r"was made of .*photos, which has changed since") as caught:
        search(kept)
    assert "\n" not in str(caught.value)


@faiss_is_here
def test_faiss_and_torch_agree(job) -> None:
    tables = []
    for backend in ("faiss", "torch"):
        found = search(replace(job, backend=backend))
        assert found["index"]["name"].startswith(backend)
        assert found["index"]["exact"]
        tables.append(pq.read_table(found["files"]["parquet"]))
    assert tables[0].equals(tables[1])


def test_without_faiss_the_error_names_this_jobs_setting(job, monkeypatch) -> None:
    monkeypatch.setattr(index_search, "_without_faiss", lambda: "FAISS is not installed")
    with pytest.raises(ResourceError, match=r"^backend=faiss: FAISS is not installed; .* set backend=torch$"):
        search(replace(job, backend="faiss"))
    assert search(replace(job, backend="auto"))["index"]["name"].startswith("torch")


@pytest.mark.parametrize("rerank", ["k_reciprocal", "query_expansion"])
def test_reranked_neighbors_come_by_their_new_distance_and_keep_the_old_one(job, rerank) -> None:
    reranked = replace(job, rerank=rerank, reciprocal_k1=5, reciprocal_k2=2, expansion_neighbors=3)
    plain = pq.read_table(search(replace(job, k=18))["files"]["parquet"]).to_pylist()
    distance = {(row["query_id"], row["id"]): row["distance"] for row in plain}
    rows = pq.read_table(search(reranked)["files"]["parquet"]).to_pylist()
    assert len(rows) == 19 * 4
    for row in rows:
        assert row["distance"] == pytest.approx(distance[row["query_id"], row["id"]], abs=1e-12)
        assert row["query_id"] != row["id"]
    for start in range(0, len(rows), 4):
        order = [row["reranked_distance"] for row in rows[start : start + 4]]
        assert order == sorted(order)
    assert any(row["distance"] != row["reranked_distance"] for row in rows)


def test_reranking_answers_a_query_alike_whoever_else_is_asked(job, photos, monkeypatch) -> None:
    reranked = replace(job, rerank="k_reciprocal", reciprocal_k1=5, reciprocal_k2=2, k=3)
    together = paths_of(search(reranked))
    monkeypatch.setattr(neighbors, "QUERIES_AT_ONCE", 4)
    assert paths_of(search(reranked)) == together
    files = sorted(str(path) for path in photos.rglob("*.png") if path.name != "broken.png")
    one = search(replace(reranked, queries=files[11]))
    assert [each["path"] for each in one["neighbors"]] in together


def test_the_threshold_gives_a_verdict_and_comes_from_the_checkpoint(job, monkeypatch) -> None:
    table = pq.read_table(search(job)["files"]["parquet"])
    middle = float(np.median(table["distance"].to_numpy()))
    given = search(replace(job, threshold=middle))
    verdicts = pq.read_table(given["files"]["parquet"])["verdict"].to_pylist()
    assert verdicts == ["same" if one <= middle else "different" for one in table["distance"].to_pylist()]
    assert len(set(verdicts)) == 2
    stored = Calibration(threshold=middle, target_far=1e-3, far=0.0, tar=0.5, positives=3, negatives=1000)
    monkeypatch.setattr(search_module, "calibration_of", lambda checkpoint: stored)
    assert search(job)["threshold"] == middle
    monkeypatch.setattr(search_module, "calibration_of", lambda checkpoint: None)
    assert search(job)["threshold"] is None
    assert "verdict" not in pq.read_table(search(job)["files"]["parquet"]).column_names


def test_zip_catalog_and_embeddings_are_searched_alike(job, photos, tmp_path) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(photos.rglob("*.png")):
            zipped.write(file, file.relative_to(photos))
    vectors = tmp_path / "photos.parquet"
    embed_source(EmbedJob(checkpoint=job.checkpoint, source=str(photos), out=str(vectors)))
    folder = paths_of(search(job))
    zipped_too = paths_of(search(replace(job, gallery=str(archive), queries=str(archive))))
    assert [[path.partition(".zip/")[2] for path in line] for line in zipped_too] == [
        [str(Path(path).relative_to(photos)) for path in line] for line in folder
    ]
    ids = [row["id"] for row in pq.read_table(search(job)["files"]["parquet"]).to_pylist()]
    alone = search(replace(job, gallery=str(vectors), queries=str(vectors), checkpoint=None))
    assert [row["id"] for row in pq.read_table(alone["files"]["parquet"]).to_pylist()] == ids


def test_embeddings_of_two_checkpoints_are_compared_with_a_warning(
    job, photos, tmp_path, other_checkpoint, caplog
) -> None:
    vectors = str(tmp_path / "photos.parquet")
    embed_source(EmbedJob(checkpoint=other_checkpoint, source=str(photos), out=vectors))
    search(replace(job, gallery=vectors, checkpoint=other_checkpoint))
    assert caplog.messages == []
    search(replace(job, gallery=vectors))
    (message,) = caplog.messages
    assert f"was embedded by {other_checkpoint}" in message
    assert "compare only what one model has embedded" in message


def test_rows_of_a_catalog_are_known_again_by_id(checkpoint, glyph_cache, job) -> None:
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    path = str(open_data(config.data).path)
    found = search(replace(job, gallery=path, queries=path, queries_split="test", k=1, pictures=2))
    rows = pq.read_table(found["files"]["parquet"]).to_pylist()
    assert len(rows) == found["queries"] > 100
    assert all(row["id"] != row["query_id"] for row in rows)
    assert np.mean([row["correct"] for row in rows]) > 0.3
    assert Path(found["files"]["png"]).is_file()


def test_pictures_are_drawn_of_the_first_queries(job, photos, monkeypatch) -> None:
    drawn: list[Any] = []
    draw = search_results.grid_png
    monkeypatch.setattr(search_results, "grid_png", lambda grid: drawn.extend(grid) or draw(grid))
    found = search(replace(job, pictures=2, threshold=0.5))
    assert [query.path for query in drawn] == [
        str(photos / "bar" / f"photo_of_a_bar_{number}.png") for number in range(2)
    ]
    expected = np.asarray(Image.open(io.BytesIO(picture(1, 0))).resize((128, 128), Image.Resampling.BICUBIC))
    assert np.abs(drawn[0].image.transpose(1, 2, 0).astype(int) - expected).mean() < 3
    for query in drawn:
        assert len(query.found) == 4
        for one in query.found:
            assert one.correct == (
                Path(one.path).parent.name == "bar" if Path(one.path).parent != photos else None
            )
    with Image.open(found["files"]["png"]) as image:
        assert image.width > 500
        assert image.height > 200
    page = Path(found["files"]["html"]).read_text()
    assert page.count("<img") == 2 * 5
    assert "The first 2 of 19 queries in 19 images" in page
    assert "1 image could not be read" in page
    assert "Up to a distance of 0.5 they are called the same." in page
    assert "http" not in page.replace("http-equiv", "")


def test_pictures_of_embeddings_come_from_the_images_they_were_made_from(job, photos, tmp_path) -> None:
    vectors = tmp_path / "photos.parquet"
    embed_source(EmbedJob(checkpoint=job.checkpoint, source=str(photos), out=str(vectors)))
    blind = replace(job, gallery=str(vectors), queries=str(vectors), checkpoint=None, pictures=2)
    search(replace(job, pictures=1))
    assert sorted(search(blind)["files"]) == ["csv", "html", "json", "parquet"]
    assert not (Path(job.out) / "grid.png").exists()  # it was that of the search before
    seeing = search(replace(blind, gallery_images=str(photos), queries_images=str(photos)))
    plain = search(replace(job, pictures=2))
    assert Path(seeing["files"]["png"]).read_bytes() == Path(plain["files"]["png"]).read_bytes()


def test_more_neighbors_than_images_are_all_there_are(job, photos) -> None:
    found = search(replace(job, gallery=str(photos / "ring"), queries=str(photos / "ring"), k=50))
    table = pq.read_table(found["files"]["parquet"])
    assert table.num_rows == 6 * 5
    lonely = photos / "lonely"
    lonely.mkdir()
    (lonely / "one.png").write_bytes(picture(0, 0))
    for rerank in ("none", "k_reciprocal", "query_expansion"):
        found = search(replace(job, gallery=str(lonely), queries=str(lonely), k=3, rerank=rerank, pictures=1))
        assert found["neighbors"] == []


def mistakes(tmp: Path) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "no gallery": ({"gallery": str(tmp / "nope")}, "gallery: .*nope"),
        "no queries": ({"queries": str(tmp / "nope.jpg")}, "queries: .*nope.jpg"),
        "no checkpoint": ({"checkpoint": str(tmp / "nope")}, "checkpoint=.*nope does not exist"),
        "nobody embeds": ({"checkpoint": None}, "queries=.* has to be embedded: give checkpoint"),
        "only bad": ({"queries": str(tmp / "bad")}, "queries=.*bad: none of its 1 images can be read"),
        "split": ({"gallery_split": "test"}, "gallery: split=test but source="),
        "index": (
            {"saved_index": str(tmp / "photos")},
            "saved_index=.*photos holds .* name a new or an empty folder",
        ),
        "file": ({"saved_index": str(tmp / "photos" / "loose.png")}, "saved_index=.*loose.png is a file"),
        "pictures": ({"queries_images": str(tmp), "pictures": 1}, "queries_images=.* leave it out"),
    }


@pytest.mark.parametrize("name", list(mistakes(Path())))
def test_mistakes_get_one_clear_line_and_leave_nothing(job, name, tmp_path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    changes, message = mistakes(tmp_path)[name]
    with pytest.raises(UserError, match=message) as caught:
        search(replace(job, **changes))
    assert "\n" not in str(caught.value)
    assert not Path(job.out).exists()


def test_embeddings_of_other_length_or_not_of_length_one_are_refused(job, photos, tmp_path) -> None:
    def write(name: str, rows: np.ndarray[Any, Any]) -> str:
        columns = {
            "id": list(range(len(rows))),
            "path": [f"{n}.png" for n in range(len(rows))],
            "label_name": ["a"] * len(rows),
            "embedding": rows.tolist(),
        }
        pq.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    long = write("long.parquet", torch.eye(20).numpy())
    with pytest.raises(UserError, match=r"embeddings of 16 numbers, .*long.parquet of 20"):
        search(replace(job, gallery=long))
    large = replace(job, gallery=write("large.parquet", 3 * torch.eye(5).numpy()), checkpoint=None)
    large = replace(large, queries=large.gallery)
    assert search(large)["gallery_size"] == 5
    with pytest.raises(UserError, match="needs length 1"):
        search(replace(large, rerank="query_expansion"))


def test_a_damaged_or_half_written_index_is_one_line_or_made_again(job, tmp_path) -> None:
    kept = replace(job, saved_index=str(tmp_path / "kept"))
    expected = paths_of(search(kept))
    about = tmp_path / "kept" / "search_index.json"
    text = about.read_text()
    about.unlink()  # as if it had been killed before the end
    assert paths_of(search(kept)) == expected
    about.write_text(text[:40])
    with pytest.raises(UserError, match=r"saved_index=.*kept is damaged .* delete it"):
        search(kept)
    about.write_text(text)
    (tmp_path / "kept" / "neighbors.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match=r"neighbors.arrow is damaged"):
        search(kept)


def test_the_command_line_ends_with_one_json_line(job, photos, tmp_path, capsys) -> None:
    place = Path(__file__).parents[2] / "jobs" / "search.py"
    spec = importlib.util.spec_from_file_location("search_job", place)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    query = str(photos / "bar" / "photo_of_a_bar_2.png")
    overrides = [f"checkpoint={job.checkpoint}", f"gallery={photos}", f"queries={query}", "k=3"]
    assert run_command("search", script.__doc__, script.main, [*overrides, f"out={tmp_path}/o"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(last["neighbors"]) == 3
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        *("grid.png", "results.csv", "results.json", "results.parquet", "search.html")
    ]
    assert run_command("search", script.__doc__, script.main, [*overrides, "out=o", "k=0"]) == 2
    assert capsys.readouterr().err == "error: k=0 is too small: set it to 1 or more\n"
