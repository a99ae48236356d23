"""Training on clips: learned from moving glyphs, exact on any number of ranks, resumed, and used afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch

from distmetric.config.jobs import EmbedJob, EvaluateJob, ExportJob, SearchJob
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.data.catalog import Catalog
from distmetric.data.clips import ClipStore
from distmetric.data.decode import decode_image
from distmetric.distributed import Replica
from distmetric.errors import ConfigError, InputError
from distmetric.inference.embed import embed_source
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.evaluate import run_evaluation
from distmetric.inference.export import export_checkpoint
from distmetric.inference.exported import load_exported
from distmetric.inference.run_report import _examples
from distmetric.inference.search import search
from distmetric.training.batches import BatchLoader
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.run_data import build_sampler, known_attributes, open_data, sample_store, split_rows
from distmetric.training.worker import Worker
from processes import run_ranks
from runs import CPU, ListTracker, final_state, run_once, tiny_config

MOVING = (
    *("data=moving_glyphs", "data.max_classes=45", "data.tracklets_per_class=6", "model.frames_per_clip=4"),
    *("data.frames_per_tracklet=6", "eval.resamples=0"),
)
AITL = (
    *("loss=aitl", "model.temporal=attribute_attention", "model.attributes=[motion,angle,hidden,serif]"),
    *("model.attribute_groups=[[motion,angle,hidden],[serif]]",),
    "loss.parts.irrelevant.loss.attributes=[motion,angle,hidden]",
    "loss.parts.relevant.loss.attributes=[serif]",
)
SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16")
LEARNING = ("optim.lr=0.01", "schedule.warmup_steps=5", "model.widths=[8, 16]", "model.embedding_dim=16")


def moving(cache: Path, *overrides: str) -> Config:
    config = tiny_config(cache, *MOVING, *overrides)
    validate(config)
    return config


def untrained(config: Config, run_dir: Path) -> float:
    return float(Worker(config, str(run_dir), ListTracker(), Replica(), CPU)._evaluate().metrics.recall_at[1])


@pytest.fixture(scope="module")
def trained(
    glyph_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Worker, Any, ListTracker, float]:
    """A run of the attribute-aware loss with its attention, and what the same model found before it."""
    config = moving(glyph_cache, *AITL, *LEARNING, "train.steps=80", "eval.every_steps=80")
    before = untrained(config, tmp_path_factory.mktemp("before"))
    folder = tmp_path_factory.mktemp("clips")
    return folder, *run_once(config, folder), before


def test_the_attribute_aware_loss_learns_identities_and_attributes_of_clips(trained: Any) -> None:
    _, worker, result, tracker, before = trained
    assert len(worker.test_rows) == 15 * 6 == len(worker.catalog.rows("test")) / 6
    assert result.metrics["recall_at_1"] > before + 0.12
    losses = list(tracker.series("train/loss").values())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    accuracies = list(tracker.series("train/attributes/attribute_accuracy").values())
    assert np.mean(accuracies[-10:]) > 0.15 + np.mean(accuracies[:10])


def test_four_frames_find_more_than_one(glyph_cache: Path, tmp_path: Path) -> None:
    recall = {}
    for frames in (1, 4):
        config = moving(
            *(
                glyph_cache,
                *LEARNING,
                "train.steps=60",
                "eval.every_steps=60",
                f"model.frames_per_clip={frames}",
            )
        )
        recall[frames] = run_once(config, tmp_path / str(frames))[1].metrics["recall_at_1"]
    assert recall[4] > recall[1] + 0.05
    assert recall[4] > untrained(config, tmp_path / "before") + 0.15


def test_the_planned_clips_arrive_in_slices_and_change_from_step_to_step(glyph_cache: Path) -> None:
    config = moving(glyph_cache, "data.frame_sampling=consecutive")
    catalog = open_data(config.data)
    rows = split_rows(config, catalog, "train")
    store, sampler = sample_store(config, catalog, rows), build_sampler(config, catalog)
    assert isinstance(store, ClipStore)
    loaders = [BatchLoader(sampler, catalog, store, rows, Replica(rank, 2), CPU) for rank in range(2)]
    for step in (0, 1, 7):
        parts, plan = [loader.get(step) for loader in loaders], sampler.batch(step)
        assert set(plan) <= set(rows)
        images = torch.cat([part.images for part in parts])
        assert images.shape == (32, 4, 1, 28, 28)
        assert torch.equal(images, store.drawn(plan, step))
        assert not torch.equal(images, store.drawn(plan, step + 1))
    for loader in loaders:
        loader.close()


def five_steps(
    replica: Replica, cache: Path, run_dir: Path, *more: str
) -> tuple[dict[int, float], list[Any]]:
    exact = (
        "train.steps=5",
        "train.precision=float64",
        "model.norm=sync_batch",
        "sampler.classes_per_batch=7",
    )
    config = moving(cache, *AITL, *SMALL, *exact, "augment=affine", *more)
    worker, _, tracker = run_once(config, run_dir, replica=replica)
    weights = [parameter.detach().numpy() for parameter in worker.embedder.parameters()]
    return tracker.series("train/loss"), weights


def test_world_size_invariance_of_training_on_clips(glyph_cache: Path, tmp_path: Path) -> None:
    losses, weights = five_steps(Replica(), glyph_cache, tmp_path / "one")
    ranks = run_ranks(2, five_steps, glyph_cache, tmp_path / "two")
    assert ranks[0][0] == pytest.approx(losses, abs=1e-9)
    for rank in ranks:
        for ours, single in zip(rank[1], weights, strict=True):
            np.testing.assert_allclose(ours, single, rtol=0, atol=1e-8)


def test_chunks_of_clips_train_as_all_at_once(glyph_cache: Path, tmp_path: Path) -> None:
    exact = ("train.steps=4", "train.precision=float64", "model.norm=group", "augment=affine")
    config = moving(glyph_cache, *AITL, *SMALL, *exact)
    whole, _ = final_state(config, tmp_path / "whole")
    chunked, _ = final_state(
        moving(glyph_cache, *AITL, *SMALL, *exact, "train.chunk_size=5"), tmp_path / "chunked"
    )
    for ours, theirs in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)
    auto = moving(glyph_cache, *SMALL, "train.steps=2", "model.norm=group", "train.chunk_size=auto")
    assert run_once(auto, tmp_path / "auto")[1].step == 2


@pytest.mark.parametrize("more", [("model.temporal=attention",), AITL])
def test_interrupted_and_resumed_equals_never_interrupted(
    more: tuple[str, ...], glyph_cache: Path, tmp_path: Path
) -> None:
    config = moving(glyph_cache, *more, *SMALL, "augment=affine", "data.frame_sampling=consecutive")
    whole, expected = final_state(config, tmp_path / "whole")
    resumed, tracker = final_state(config, tmp_path / "resumed", fail_at=14)
    losses = expected.series("train/loss")
    assert tracker.series("train/loss") == {step: loss for step, loss in losses.items() if step >= 11}
    for ours, theirs in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_hard_neighbors_are_planned_among_clips(glyph_cache: Path, tmp_path: Path) -> None:
    hard = (
        *(
            "sampler=hard_neighbors",
            "sampler.classes_per_batch=8",
            "sampler.samples_per_class=4",
            "index=inline",
        ),
        *("sampler.round_steps=3", "sampler.warmup_steps=3", "index.refresh_steps=5", "sampler.mode=sample"),
    )
    worker, _, tracker = run_once(moving(glyph_cache, *SMALL, *hard), tmp_path)
    assert tracker.series("index/version")[18] > 0
    assert worker.rounds is not None
    assert worker.rounds._snapshot.row_negatives.shape[0] == len(worker.train_rows) == 30 * 6


def test_settings_cannot_change_on_the_way(glyph_cache: Path, tmp_path: Path) -> None:
    run_once(moving(glyph_cache, *SMALL, "train.steps=2"), tmp_path)
    for override, message in {
        "data.frame_sampling=consecutive": "data.frame_sampling=consecutive here and segments there",
        "model.frames_per_clip=3": "model.frames_per_clip=3 here and 4 there",
    }.items():
        with pytest.raises(InputError, match=message):
            run_once(moving(glyph_cache, *SMALL, "train.steps=4", override), tmp_path)


def test_evaluation_and_embedding_see_the_clips_of_the_run(trained: Any, tmp_path: Path) -> None:
    folder, worker, result, _, _ = trained
    found = run_evaluation(EvaluateJob(checkpoint=str(folder)))
    assert found["metrics"] == pytest.approx(result.metrics, abs=1e-9)
    out = tmp_path / "e.parquet"
    source = str(worker.catalog.path)
    job = EmbedJob(checkpoint=result.checkpoint, source=source, out=str(out), split="test", part_rows=40)
    assert embed_source(job)["rows"] == len(worker.test_rows)
    table = pq.read_table(out)
    assert table["id"].to_pylist() == worker.catalog.ids[worker.test_rows].tolist()
    assert table["path"][0].as_py() == worker.catalog.source_path(int(worker.test_rows[0]))
    assert table["attribute.motion"][0].as_py() in ("left", "right", "up", "down")
    embedder = CheckpointEmbedder(result.checkpoint, CPU)
    expected = embedder.embed(worker.images.images(worker.test_rows[:8]))
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()[:8]), expected, atol=1e-6)


def test_exports_take_clips_and_mlflow_is_refused(trained: Any, tmp_path: Path) -> None:
    _, worker, result, _, _ = trained
    job = ExportJob(checkpoint=result.checkpoint, out=str(tmp_path / "out"), formats=["onnx", "safetensors"])
    assert set(export_checkpoint(job)["parity"]["max_abs_difference"]) == {"onnx", "safetensors"}
    clips = worker.images.images(worker.test_rows[:5])
    expected = worker.embedder.eval()(clips).detach().numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.get_inputs()[0].shape[1:] == [4, 1, 28, 28]
    np.testing.assert_allclose(session.run(None, {"images": clips.numpy()})[0], expected, atol=1e-5)
    loaded = load_exported(tmp_path / "out")
    np.testing.assert_array_equal(loaded(clips).detach().numpy(), expected)
    with pytest.raises(
        InputError, match=r"formats=\[mlflow\] serves single images, and the model takes clips"
    ):
        export_checkpoint(
            ExportJob(checkpoint=result.checkpoint, out=str(tmp_path / "m"), formats=["mlflow"])
        )


def test_a_folder_of_stills_is_embedded_as_clips_of_one_frame(trained: Any, tmp_path: Path) -> None:
    _, worker, result, _, _ = trained
    catalog: Catalog = worker.catalog
    (tmp_path / "stills").mkdir()
    for row in worker.test_rows[:3]:
        (tmp_path / "stills" / f"{row}.png").write_bytes(catalog.image_bytes(row))
    out = str(tmp_path / "e.parquet")
    embed_source(EmbedJob(checkpoint=result.checkpoint, source=str(tmp_path / "stills"), out=out))
    found = dict(zip(*(pq.read_table(out)[name].to_pylist() for name in ("path", "embedding")), strict=True))
    stills = worker.images.images(worker.test_rows[:3])[:, :1]
    expected = CheckpointEmbedder(result.checkpoint, CPU).embed(stills)
    for row, vector in zip(worker.test_rows[:3], expected, strict=True):
        np.testing.assert_allclose(found[f"{row}.png"], vector, atol=1e-6)


def test_a_still_finds_clips_and_reports_show_their_first_frames(trained: Any, tmp_path: Path) -> None:
    _, worker, result, _, _ = trained
    catalog: Catalog = worker.catalog
    row = int(worker.test_rows[4])
    (tmp_path / "still.png").write_bytes(catalog.image_bytes(row))
    job = SearchJob(
        checkpoint=result.checkpoint,
        gallery=str(catalog.path),
        gallery_split="test",
        queries=str(tmp_path / "still.png"),
        out=str(tmp_path / "found"),
        k=3,
    )
    found = json.loads(Path(search(job)["files"]["json"]).read_text())["results"][0]["neighbors"]
    assert {one["path"] for one in found} <= {catalog.source_path(int(each)) for each in worker.test_rows}
    shown = _examples(worker.config, read_checkpoint(result.checkpoint), catalog)
    assert len(shown["embeddings"]) == len(worker.test_rows)
    assert shown["images"][np.array([4])].shape == (1, 1, 28, 28)
    assert np.array_equal(shown["images"][np.array([4])][0], decode_image(catalog.image_bytes(row), 28, 1))


def test_attributes_that_change_within_a_tracklet_are_one_line(
    glyph_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = moving(glyph_cache, *AITL)
    catalog = open_data(config.data)
    changed = catalog.attribute("motion").copy()
    changed[0] = "around"
    monkeypatch.setattr(Catalog, "attribute", lambda self, name: changed)
    with pytest.raises(
        InputError, match=r"frames of tracklet 'U\+.*/0' have two values of attribute motion, 'around'"
    ):
        known_attributes(config, catalog)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.frames_per_clip=4", "model.framing=0.8"],
            r"model.framing=0.8 brings what moves .* model.framing=0.0",
        ),
        (["data=glyphs", "model.frames_per_clip=4"], r"glyphs do not move: set data=moving_glyphs, or"),
        (
            ["model.temporal=attention"],
            r"model.frames_per_clip=null takes images: set model.frames_per_clip=4",
        ),
        (
            ["data=moving_glyphs", "model.frames_per_clip=0"],
            r"frames_per_clip=0 is too small: set it to 1 or more",
        ),
        (["data=moving_glyphs", "data.frame_stride=0"], r"data.frame_stride=0 is too small"),
        (["data=moving_glyphs", "model.channels=3"], r"model.channels=3 but glyphs are gray"),
        (
            ["data=moving_glyphs", "model.frames_per_clip=2", "model.temporal=attribute_attention"],
            r"attends to model.attributes, which is empty: name some there",
        ),
        (
            ["data=moving_glyphs", "model.frames_per_clip=2", "model.attribute_groups=[[serif]]"],
            r"is for model.temporal=attribute_attention: set that, or model.attribute_groups=null",
        ),
        (
            ["data=moving_glyphs", "model.frames_per_clip=2", "tracking=mlflow", "tracking.register=best"],
            r"tracking.register=best makes a model that takes single images",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(tiny_config(tmp_path, *overrides))
