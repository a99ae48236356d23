"""Checkpoints: complete or not there, verified, kept by policy."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from distmetric.errors import InputError, ResourceError
from distmetric.locations import open_location
from distmetric.training.checkpoint import CheckpointStore, find_checkpoint, read_checkpoint


def save(store: CheckpointStore, step: int, recall: float | None = None):
    metrics = None if recall is None else {"recall_at_1": recall}
    return store.save(
        step, {"model": {"w": torch.full((3,), float(step))}}, {"metrics": metrics, "version": "x"}
    )


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_round_trip_on_a_path_and_on_a_uri(scheme, tmp_path) -> None:
    store = CheckpointStore(f"{scheme}{tmp_path}/checkpoints")
    assert store.latest() is None
    assert store.best() is None
    saved = save(store, 7, 0.5)
    loaded = store.latest()
    assert loaded.location == saved.location == f"{scheme}{tmp_path}/checkpoints/step_00000007"
    assert (loaded.step, loaded.metrics) == (7, {"recall_at_1": 0.5})
    assert torch.equal(loaded.tensors("model")["w"], torch.full((3,), 7.0))


def test_the_newest_and_the_best_are_kept(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path), keep_last=2)
    for step, recall in [(1, 0.3), (2, 0.9), (3, None), (4, 0.5), (5, None)]:
        save(store, step, recall)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_0000000{s}" for s in (2, 4, 5)]
    assert store.best().step == 2
    assert store.latest().step == 5


def test_without_an_evaluation_the_newest_is_the_best(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    save(store, 2)
    assert store.best().step == 2


def test_an_equally_good_later_one_is_the_best(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1, 0.5)
    save(store, 2, 0.5)
    assert store.best().step == 2


@pytest.mark.parametrize("name", ["model.pt", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(name, damage, tmp_path, caplog) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    file = tmp_path / "step_00000002" / name
    save(store, 2)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 1
    assert "step_00000002" in caplog.text
    with pytest.raises(InputError, match="step_00000002"):
        read_checkpoint(str(tmp_path / "step_00000002"))


def test_an_interrupted_save_is_no_checkpoint_and_is_overwritten(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    (tmp_path / "step_00000002").mkdir()
    (tmp_path / "step_00000002" / "model.pt").write_bytes(b"half")
    assert store.latest().step == 1
    save(store, 2)
    assert store.latest().step == 2


def test_pruning_does_not_count_incomplete_checkpoints(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path), keep_last=1)
    save(store, 1)
    (tmp_path / "step_00000009").mkdir()
    save(store, 2)
    assert store.latest().step == 2


def test_another_format_is_refused_with_the_version_that_wrote_it(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    manifest = tmp_path / "step_00000001" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99, "version": "7.1"}))
    with pytest.raises(InputError, match=r"format 99 \(written by distmetric 7\.1\)"):
        read_checkpoint(str(tmp_path / "step_00000001"))


def test_an_unwritable_store_leaves_older_checkpoints_whole(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    (tmp_path / "step_00000002").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="older checkpoints are untouched"):
        save(store, 2)
    assert store.latest().step == 1


def test_checkpoints_hold_no_pickled_code(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    store.save(1, {"model": {"x": Evil()}}, {})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        store.latest().tensors("model")


def test_find_checkpoint_takes_a_run_or_a_checkpoint(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    config = {"checkpoint": {"best_metric": "map_at_r"}}
    for step, score in ((1, 0.9), (2, 0.1)):
        metrics = {"map_at_r": score, "recall_at_1": 1 - score}
        store.save(step, {"model": {}}, {"metrics": metrics, "config": config})
    assert find_checkpoint(str(tmp_path)).step == 1
    assert find_checkpoint(str(tmp_path / "checkpoints" / "step_00000002")).step == 2
    with pytest.raises(InputError, match="does not exist"):
        find_checkpoint(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="not a complete checkpoint"):
        find_checkpoint(str(tmp_path / "checkpoints"))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="has no complete checkpoint yet"):
        find_checkpoint(str(tmp_path / "empty"))


def test_an_unknown_scheme_is_a_one_line_error() -> None:
    with pytest.raises(InputError, match=r"ftp9://x cannot be opened"):
        open_location("ftp9://x")
