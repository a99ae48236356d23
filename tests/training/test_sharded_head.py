"""Runs whose heads are divided among the ranks by class are the runs of one process, wherever they are interrupted."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.distributed import Replica
from distmetric.distributed.gather import gather
from distmetric.errors import ConfigError, InputError, ResourceError
from distmetric.functional.class_sampling import kept_classes
from distmetric.locations import sealed, unsealed
from distmetric.losses import (
    ArcFaceLossConfig,
    CentroidBoundLossConfig,
    CosFaceLossConfig,
    ProxyAnchorLossConfig,
    ProxyNCALossConfig,
    SoftTripleLossConfig,
    WeightedPartConfig,
    WeightedSumLossConfig,
    class_loss,
)
from distmetric.losses.class_shards import class_rows, class_shard
from distmetric.training import class_parts
from distmetric.training.checkpoint import CheckpointStore, find_checkpoint
from distmetric.training.loop import train
from distmetric.training.saved_model import load_embedder
from distmetric.training.worker import Worker
from processes import run_ranks
from runs import CPU, LeaveAt, ListTracker, run_once, tiny_config

SETTINGS = (
    *("train.precision=float64", "train.steps=12", "eval.every_steps=12", "checkpoint.every_steps=4"),
    *("train.log_every=1", "sampler.classes_per_batch=7", "model.norm=sync_batch", "eval.resamples=0"),
    *("model.widths=[8, 8]", "model.embedding_dim=16", "schedule.warmup_steps=2", "optim.clip_norm=1.0"),
)
LOGGED = ("train/loss", "train/gradient_norm", "eval/map_at_r")
SGD, ADAMW = ("optim=sgd", "optim.lr=0.01"), ("optim=adamw",)


def config_of(cache: Path, optimizer=ADAMW, sharded=True, rate=1.0, *overrides: str) -> Config:
    """All losses with classes at once, parts of one sum."""
    shared = {"sharded": sharded, "negative_sample_rate": rate}
    parts = {
        "soft": SoftTripleLossConfig(centers_per_class=3, **shared),
        "hard": SoftTripleLossConfig(centers_per_class=2, assignment="hard", **shared),
        "arc": ArcFaceLossConfig(scale=8.0, **shared),
        "cos": CosFaceLossConfig(scale=8.0, **shared),
        "nca": ProxyNCALossConfig(**shared),
        "anchor": ProxyAnchorLossConfig(**shared),
        "bound": CentroidBoundLossConfig(weighted=True, sharded=sharded),
    }
    loss = WeightedSumLossConfig(parts={name: WeightedPartConfig(loss=part) for name, part in parts.items()})
    return replace(tiny_config(cache, *SETTINGS, *optimizer, *overrides), loss=loss)


def run(replica: Replica, config: Config, run_dir: Path) -> dict[str, np.ndarray]:
    """What a run learns, the whole head put together from all ranks, and, on rank 0, what it logs."""
    worker, _, tracker = run_once(config, run_dir, replica=replica)
    found = {f"trunk.{name}": value.numpy() for name, value in worker.embedder.state_dict().items()}
    for name, rows in class_rows(worker.criterion):
        shares = replica.world_size if rows.is_sharded else 1
        assert len(rows.classes) == len(class_shard(rows.num_classes, replica.rank % shares, shares))
        state = worker.optimizer.state.get(rows.tensor, {})
        for key, value in {"": rows.tensor.detach(), **state}.items():
            if value.ndim:
                assert value.shape == rows.tensor.shape
                whole = gather(value.contiguous(), replica) if shares > 1 else value
                found[f"{name}.{key}"] = whole.numpy()
    for name in LOGGED if replica.is_main else ():
        found[name] = np.array(list(tracker.series(name).values()))
    return found


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 1e-9) -> None:
    assert found.keys() >= expected.keys() - set(LOGGED)
    for name, value in found.items():
        against = expected[name][-len(value) :] if name in LOGGED else expected[name]  # of its last steps
        np.testing.assert_allclose(value, against, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def whole(glyph_cache, tmp_path_factory):
    """Runs of one process whose heads are whole, by optimizer and rate."""
    known = {}

    def get(optimizer, rate=1.0):
        if (optimizer, rate) not in known:
            folder = tmp_path_factory.mktemp("whole")
            known[optimizer, rate] = run(
                Replica(), config_of(glyph_cache, optimizer, sharded=False, rate=rate), folder
            )
        return known[optimizer, rate]

    return get


@pytest.mark.parametrize("rate", [1.0, 0.3], ids=["all classes", "sampled"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_with_sharded_heads_is_the_run_with_whole_ones(
    world_size, rate, whole, glyph_cache, tmp_path
) -> None:
    expected = whole(ADAMW, rate)
    assert (expected["train/gradient_norm"] > 1.0).any(), "clipping is to be at work"
    for found in run_ranks(world_size, run, config_of(glyph_cache, rate=rate), tmp_path):
        assert_equal(found, expected, 1e-8)


def stretch(replica: Replica, config: Config, run_dir: Path, until: int) -> dict[str, np.ndarray]:
    if until == config.train.steps:
        return run(replica, config, run_dir)
    stop = LeaveAt(until)
    worker = Worker(config, str(run_dir), ListTracker(), replica, CPU, stop=stop)
    stop.worker = worker
    train(worker)
    return {}


CHAINS = {
    "2, 3 and 1 workers": (ADAMW, 1.0, ((2, True, 3), (3, True, 7), (1, True, 12))),
    "sampled": (ADAMW, 0.3, ((2, True, 5), (3, True, 12))),
    "whole to sharded and back": (SGD, 1.0, ((1, False, 3), (2, True, 6), (2, False, 9), (3, True, 12))),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_goes_on_with_its_classes_divided_among_other_workers(
    chain, whole, glyph_cache, tmp_path, monkeypatch
) -> None:
    optimizer, rate, stretches = CHAINS[chain]
    monkeypatch.setattr(class_parts, "PART_BYTES", 30_000)  # so that a rank has several
    for world_size, sharded, until in stretches:
        config = config_of(glyph_cache, optimizer, sharded, rate)
        found = run_ranks(world_size, stretch, config, tmp_path, until)[0]
        if until < config.train.steps:
            parts = list(Path(tmp_path, "checkpoints", f"step_{until:08d}").glob("classes_*"))
            assert len(parts) > world_size if sharded else not parts
    assert len(found["train/loss"]) == 12 - stretches[-2][2]
    assert_equal(found, whole(optimizer, rate))


ARCFACE = (*SETTINGS, "loss=arcface", "loss.scale=8", "loss.sharded=true")


@pytest.fixture(scope="module")
def finished(glyph_cache, tmp_path_factory):
    """A run of one process that is over, its folder, and what it has learned."""
    folder = tmp_path_factory.mktemp("finished")
    worker, _, _ = run_once(tiny_config(glyph_cache, *ARCFACE), folder)
    return worker, folder


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_used(
    damage, finished, glyph_cache, tmp_path, caplog
) -> None:
    expected, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    (part,) = (tmp_path / "run" / "checkpoints" / "step_00000012").glob("classes_*")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "removed":
        part.unlink()
    else:
        part.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        worker, _, tracker = run_once(tiny_config(glyph_cache, *ARCFACE), tmp_path / "run")
    assert part.name in caplog.text
    assert min(tracker.series("train/loss")) == 9, "from the checkpoint of step 8"
    assert torch.equal(worker.criterion.loss.weight, expected.criterion.loss.weight)


def test_a_checkpoint_with_sharded_heads_is_one_of_the_model(finished) -> None:
    worker, folder = finished
    embedder, config = load_embedder(find_checkpoint(str(folder)))
    assert config.loss.sharded
    for name, value in embedder.state_dict().items():
        assert torch.equal(value, worker.embedder.state_dict()[name].to(value.dtype))


def test_parts_that_leave_classes_out_are_refused(finished, glyph_cache, tmp_path) -> None:
    _, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoints" / "step_00000012" / "manifest.json"
    document = unsealed(manifest.read_bytes())
    name = next(name for name in document["files"] if name.startswith("classes_"))
    document["files"] = {key: value for key, value in document["files"].items() if key != name}
    manifest.write_bytes(sealed(document))
    with pytest.raises(InputError, match=r"the loss in .* has the vectors of 0 of the 40 classes"):
        run_once(tiny_config(glyph_cache, *ARCFACE), tmp_path / "run")


def test_unsharded_checkpoints_are_what_they_were(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *ARCFACE, "loss.sharded=false", "train.steps=4")
    worker, _, _ = run_once(config, tmp_path)
    newest = CheckpointStore(f"{tmp_path}/checkpoints").latest()
    assert set(newest.files) == {"model.pt", "training.pt", "meta.json"}
    state = newest.tensors("training")
    assert torch.equal(state["loss"]["loss.weight"], worker.criterion.loss.weight)
    moments = list(worker.optimizer.state_dict()["state"].values())
    for ours, theirs in zip(state["optimizer"]["state"].values(), moments, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def refused(replica: Replica, config: Config, run_dir: Path) -> str:
    def write_part(self, step, name, tensors):
        if replica.rank == 1 and step == 8:
            raise ResourceError("its disk is full")
        return original(self, step, name, tensors)

    original = CheckpointStore.write_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "write_part", write_part)
        with pytest.raises(ResourceError) as caught:
            run_once(config, run_dir, replica=replica)
    return str(caught.value)


def test_a_rank_that_cannot_write_its_part_stops_all_and_leaves_the_checkpoint_before(
    glyph_cache, tmp_path
) -> None:
    said = run_ranks(2, refused, tiny_config(glyph_cache, *ARCFACE), tmp_path)
    assert said == ["another rank could not write into the run's folder", "its disk is full"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
    assert CheckpointStore(f"{tmp_path}/checkpoints").latest().step == 4


def skipping(replica: Replica, config: Config, run_dir: Path, rank: int) -> tuple[list[float], np.ndarray]:
    """A run in which, at step 5, the gradient of the vectors of one rank is infinite, and no other number is."""
    tracker = ListTracker()
    worker = Worker(config, str(run_dir), tracker, replica, CPU)

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        bad = worker.step == 5 and replica.rank == rank
        return gradient * torch.inf if bad else gradient

    worker.criterion.loss.weight.register_hook(poisoned)
    train(worker)
    told = list(tracker.series("train/skipped_steps").values())
    return told, gather(worker.criterion.loss.weight.detach(), replica).numpy()


def test_all_ranks_leave_a_step_out_whose_gradient_is_infinite_on_one_of_them(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *ARCFACE, "train.non_finite=skip")
    told, expected = skipping(Replica(), config, tmp_path / "one", 0)
    assert told == [0] * 5 + [1] * 7
    ranks = run_ranks(2, skipping, config, tmp_path / "two", 1)
    assert ranks[0][0] == told
    for _, weight in ranks:
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-9)


def test_a_batch_in_chunks_meets_a_sharded_head(glyph_cache, tmp_path) -> None:
    settings = (*ARCFACE, "model.norm=group", "train.steps=6")
    expected = run(Replica(), tiny_config(glyph_cache, *settings), tmp_path / "whole")
    chunked = tiny_config(glyph_cache, *settings, "train.chunk_size=5")
    assert_equal(run_ranks(2, run, chunked, tmp_path / "chunks")[0], expected)


HARD = (
    *(
        "sampler=hard_neighbors",
        "sampler.round_steps=2",
        "sampler.warmup_steps=0",
        "sampler.classes_per_batch=6",
    ),
    *("index=inline", "index.refresh_steps=4", "loss.negative_sample_rate=0.4", "loss.negatives=hard"),
)


def test_hard_negatives_come_from_the_snapshot_and_are_those_of_one_process(
    glyph_cache, tmp_path, monkeypatch
) -> None:
    config = tiny_config(glyph_cache, *ARCFACE, *HARD)
    seen = []

    def spied(labels, *rest, nearest=None):
        kept = kept_classes(labels, *rest, nearest=nearest)
        if nearest is not None:
            first = {int(nearest[label, 0]) for label in labels.tolist()}
            seen.append(first <= set(kept.tolist()) and len(kept) == 16)
        return kept

    monkeypatch.setattr(class_loss, "kept_classes", spied)
    expected = run(Replica(), config, tmp_path / "one")
    assert len(seen) > 5
    assert all(seen)
    found = run_ranks(2, run, config, tmp_path / "two")[0]
    assert_equal(found, expected)


def test_settings_that_do_not_go_together_are_one_line(glyph_cache, tmp_path) -> None:
    for overrides, message in (
        (["loss=triplet", "loss.sharded=true"], "loss.sharded"),
        (["loss=arcface", "loss.negative_sample_rate=0"], "negative_sample_rate=0"),
        (["loss=centroid_bound", "loss.negative_sample_rate=0.5"], "loss.negative_sample_rate"),
        (["loss=arcface", "loss.negatives=hard"], "negative_sample_rate=1.0 takes all"),
        (
            ["loss=arcface", "loss.negatives=hard", "loss.negative_sample_rate=0.5"],
            "sampler=pk does without: set sampler=hard_neighbors",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            validate(tiny_config(glyph_cache, *overrides))
        assert "\n" not in str(caught.value)


def too_many(replica: Replica, config: Config, run_dir: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Worker(config, str(run_dir), ListTracker(), replica, CPU)
    return str(caught.value)


def test_fewer_classes_than_workers_are_one_line(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *ARCFACE, "data.max_classes=3", "sampler.classes_per_batch=2")
    said = run_ranks(3, too_many, config, tmp_path)[0]
    assert "loss=arcface with this data and model: 2 classes cannot be divided among 3 ranks" in said
