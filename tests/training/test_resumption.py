"""A run goes on as the run it was, or not at all: one sentence names what is different, and nothing is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.distributed import Replica
from distmetric.errors import InputError
from distmetric.locations import sealed
from distmetric.training.__main__ import main as train_here
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.resumption import check_resumable, check_same_run, load_state, newest_of
from distmetric.training.run_data import open_data
from distmetric.training.run_folder import RunFolder, read_run
from distmetric.training.saved_model import config_dict
from distmetric.training.worker import Worker
from processes import run_ranks
from runs import CPU, ListTracker, run_once, tiny_config

SMALL = (
    "model.widths=[8, 8]",
    "model.embedding_dim=16",
    "train.steps=6",
    "checkpoint.every_steps=3",
    "loss=circle",
)
PROXIES = (*SMALL[:-1], "loss=proxy_anchor")


@pytest.fixture(scope="module")
def stopped(glyph_cache, tmp_path_factory) -> Path:
    """A run with proxies that was stopped after step 3 of 6."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(InterruptedError):
        run_once(tiny_config(glyph_cache, *PROXIES, "train.log_every=1"), folder, ListTracker(fail_at=5))
    return folder


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "claim.json")
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


CHANGES = {
    "model.embedding_dim=8": "another architecture .*model.embedding_dim=8 here and 16 there",
    "model.widths=[8, 16]": "another architecture .*model.widths",
    "model=resnet": "another architecture",
    "model.norm=group": "another architecture .*model.norm=group here",
    "optim=sgd": r"another run .*\(optim\.",
    "optim.lr=0.5": "optim.lr=0.5 here and",
    "optim.weight_decay=0.5": "optim.weight_decay=0.5 here and",
    "loss=proxy_nca": r"another run .*\(loss\.",
    "loss=triplet": r"another run .*\(loss\.",
    "loss.margin=0.7": "loss.margin=0.7 here and",
    "miner=batch_hard": "miner.name=batch_hard here and none there",
    "sampler.samples_per_class=2": "sampler.samples_per_class=2 here and",
    "schedule.warmup_steps=1": "schedule.warmup_steps=1 here and",
    "seed=4": "seed=4 here and 0 there",
    "train.precision=float64": "train.precision=float64 here and float32 there",
    "train.chunk_size=4": "train.chunk_size=4 here and None there",
    "augment.rotation=77": "augment.rotation=77.0 here and",
    "data.seed=1": "the data has changed",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_makes_another_run_is_named(change, stopped, glyph_cache) -> None:
    before = everything(stopped)
    rest = PROXIES
    if change.startswith("model="):
        rest = PROXIES[2:]
    if change.startswith("loss="):
        rest = PROXIES[:-1]
    if "samples_per_class" in change:
        rest = (*PROXIES, "sampler.classes_per_batch=8")
    with pytest.raises(InputError, match=CHANGES[change]) as told:
        run_once(tiny_config(glyph_cache, *rest, change), stopped)
    assert "\n" not in str(told.value)
    assert everything(stopped) == before


@pytest.mark.parametrize(
    "change",
    [
        "train.steps=9",
        "eval.every_steps=2",
        "checkpoint.keep_last=5",
        "data.memory_limit_gib=0",
        "train.log_every=2",
    ],
)
def test_what_changes_no_numbers_may_change(change, stopped, glyph_cache) -> None:
    config = tiny_config(glyph_cache, *PROXIES, change)
    newest = CheckpointStore(f"{stopped}/checkpoints").latest()
    check_same_run(config, newest, open_data(config.data).fingerprint)


def test_a_driver_is_told_before_anything_is_started(stopped, glyph_cache) -> None:
    config = tiny_config(glyph_cache, *PROXIES)
    fingerprint = open_data(config.data).fingerprint
    RunFolder(str(stopped), "stopped", config_dict(config), fingerprint, "0.1.0").write()
    try:
        assert check_resumable(replace(config, resume=str(stopped)), fingerprint).step == 3
        with pytest.raises(InputError, match=r"the data has changed since .* was started"):
            check_resumable(replace(config, resume=str(stopped)), "other")
        other = tiny_config(glyph_cache, *PROXIES, "optim.lr=0.5")
        with pytest.raises(InputError, match="is of another run"):
            check_resumable(replace(other, resume=str(stopped)), fingerprint)
    finally:
        (stopped / "run.json").unlink()


def test_torchrun_with_other_settings_is_told_too(stopped, glyph_cache, tmp_path, capsys) -> None:
    before = everything(stopped)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_dict(tiny_config(glyph_cache, *PROXIES, "optim=sgd"))))
    assert train_here([str(file), str(stopped)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "is of another run than this configuration (optim." in errors[0]
    assert everything(stopped) == before


def test_a_state_that_does_not_fit_is_named_though_the_settings_are_the_same(
    stopped, glyph_cache, tmp_path
) -> None:
    config = tiny_config(glyph_cache, *PROXIES)
    worker = Worker(config, str(tmp_path), ListTracker(), Replica(), CPU)
    newest = CheckpointStore(f"{stopped}/checkpoints").latest()
    model, training = newest.tensors("model"), newest.tensors("training")
    parts = (worker.embedder, worker.criterion, worker.optimizer, worker.sampler, worker.health)
    name = next(iter(training["loss"]))
    groups = training["optimizer"]["param_groups"]
    for number, (broken, message) in enumerate(
        [
            ({"loss": {name: torch.zeros(3, 2)}}, "the loss in .* does not fit .*size mismatch"),
            ({"loss": {}}, "the loss in .* does not fit .*Missing key"),
            ({"loss": 7}, "the loss in .* does not fit"),
            ({"optimizer": {"state": {}, "param_groups": groups[:1]}}, "the optimizer in .* does not fit"),
            ({"optimizer": {}}, "the optimizer in .* does not fit"),
            ({"sampler": None}, "the sampler in .* does not fit"),
        ]
    ):
        store = CheckpointStore(str(tmp_path / str(number)))
        kept = store.save(
            1, {"model": model, "training": {**training, **broken}}, dict(newest.meta) | {"step": 1}
        )
        with pytest.raises(InputError, match=message) as told:
            load_state(kept, *parts)
        assert "\n" not in str(told.value)
    del training["loss"]
    store.save(2, {"model": model, "training": training}, dict(newest.meta) | {"step": 2})
    with pytest.raises(InputError, match=r"the loss in .* does not fit"):
        load_state(store.at(2), *parts)
    worker.batches.close()


@pytest.mark.parametrize("settings", [{}, {"loss": {"name": "unheard of"}}, {"unheard_of": 1}])
def test_settings_of_another_version_name_the_version(settings, stopped, glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *PROXIES)
    newest = CheckpointStore(f"{stopped}/checkpoints").latest()
    kept = {**newest.meta["config"], **settings} if settings else {}
    meta = {**newest.meta, "config": kept, "version": "7.7"}
    found = CheckpointStore(str(tmp_path)).save(3, {"model": {}}, meta)
    with pytest.raises(
        InputError, match=r"written with settings that this version does not have .*distmetric 7\.7"
    ):
        check_same_run(config, found, newest.meta["fingerprint"])


def found_by(replica: Replica, location: str, others: str) -> tuple[str, float]:
    store = CheckpointStore(location if replica.is_main else others)
    try:
        newest, best = newest_of(store, replica, CPU)
    except InputError as error:
        return str(error), 0.0
    return ("none" if newest is None else newest.location), best


def test_all_ranks_go_on_from_the_checkpoint_that_rank_0_has_chosen_or_none_does(tmp_path) -> None:
    one, two, empty = tmp_path / "one", tmp_path / "two", str(tmp_path / "empty")
    for folder in (one, two):
        for step, score in ((3, 0.75), (6, 0.5)):
            CheckpointStore(str(folder)).save(step, {"model": {}}, {"metrics": {"recall_at_1": score}})
    told = run_ranks(2, found_by, str(one), str(one))
    assert told == [(f"{one}/step_00000006", 0.75)] * 2
    assert run_ranks(2, found_by, empty, str(one)) == [("none", -1.0)] * 2
    (two / "step_00000006" / "model.pt").write_bytes(b"")
    assert run_ranks(2, found_by, str(two), str(one))[1] == (f"{one}/step_00000003", 0.75)
    told = run_ranks(2, found_by, str(one), str(two))  # as where a disk is not the same on all machines
    assert "cannot be read by all workers" in told[0][0]
    assert "model.pt is empty" in told[1][0]
    (two / "step_00000003" / "model.pt").write_bytes(b"")
    told = run_ranks(2, found_by, str(two), str(one))
    assert "none of the 2 checkpoints" in told[0][0]
    assert "rank 0 found no checkpoint" in told[1][0]


def test_all_checkpoints_damaged_ends_the_run_before_it_writes(stopped, glyph_cache, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for file in folder.glob("checkpoints/*/training.pt"):
        file.write_bytes(file.read_bytes()[:-1])
    before = everything(folder)
    with pytest.raises(InputError, match=r"none of the \d checkpoints .* start a new run with another name"):
        run_once(tiny_config(glyph_cache, *PROXIES), folder)
    assert everything(folder) == before


def test_a_damaged_run_file_is_one_line_whichever_byte_it_is(tmp_path) -> None:
    folder = RunFolder(
        str(tmp_path), "a", {"optim": {"lr": 0.1}}, "f", "0.1.0", "sqlite:///x", "id", "python x", {"a": "b"}
    )
    folder.write()
    file = tmp_path / "run.json"
    intact = file.read_bytes()
    assert read_run(str(tmp_path)) == folder
    for place in range(len(intact)):
        for bit in (1, 4, 32, 128):
            damaged = bytearray(intact)
            damaged[place] ^= bit
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=r"run\.json is damaged") as told:
                read_run(str(tmp_path))
            assert "\n" not in str(told.value)
    changed = json.loads(intact)
    changed["tracking_uri"] = "http://elsewhere"
    file.write_text(json.dumps(changed))
    with pytest.raises(InputError, match='it must lose its "check"'):
        read_run(str(tmp_path))
    del changed["check"]
    file.write_text(json.dumps(changed, indent=4))
    assert read_run(str(tmp_path)).tracking_uri == "http://elsewhere"
    for wrong in ({"name": 5}, {"config": []}, {"run_id": 7}, {"environment": "x"}, {"command": None}):
        file.write_bytes(sealed({**changed, **wrong}))
        with pytest.raises(InputError, match=r"run\.json is damaged"):
            read_run(str(tmp_path))


def test_a_configuration_survives_its_way_through_a_checkpoint(glyph_cache) -> None:
    config = tiny_config(glyph_cache, *PROXIES)
    assert decode(Config, json.loads(json.dumps(config_dict(config)))) == config
