"""Checkpoints: complete or not there, verified, kept by policy."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil

import pytest
import torch

from distmetric.errors import InputError, ResourceError
from distmetric.locations import open_location, sealed
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
    files = json.loads(manifest.read_text())["files"]
    for number in (0, 99):
        other = {"format": number, "version": "7.1", "files": files}
        for written in (sealed(other), json.dumps(other).encode()):
            manifest.write_bytes(written)
            expected = rf"format {number} \(written by distmetric 7\.1\), .* use the version that wrote it"
            for ask in (store.latest, store.best, lambda: read_checkpoint(f"{tmp_path}/step_00000001")):
                with pytest.raises(InputError, match=expected):
                    ask()


def test_a_manifest_of_older_versions_has_no_checksum_and_is_read(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    manifest = tmp_path / "step_00000001" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["check"]
    manifest.write_text(json.dumps(content, indent=1))
    assert store.latest().step == 1
    manifest.write_text(json.dumps({**content, "more": 1}, indent=1))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        store.at(1)


META = {"step": 1, "metrics": None, "config": {}}


@pytest.mark.parametrize(
    "content",
    [
        "[]", "null", "7", '"text"', "{", "[" * 100_000, "[1]".encode("utf-16"), b"\xff\xfe\x00",
        *(json.dumps(META | change) for change in (
            {"step": "1"}, {"step": None}, {"step": -1}, {"step": 1.0}, {"step": True}, {"step": 2},
            {"metrics": 3}, {"metrics": []}, {"config": "x"},
        )),
        json.dumps({"step": 1}), json.dumps({"metrics": None}),
    ],
)  # fmt: skip
def test_an_odd_meta_file_with_fitting_checksums_is_refused_in_one_line(content, tmp_path, caplog) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    forge(tmp_path / "step_00000001", content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="step_00000001") as told:
        store.at(1)
    assert "\n" not in str(told.value)
    save(store, 2)
    assert store.latest().step == 2
    assert store.best().step == 2


def forge(folder, meta: bytes) -> None:
    """Replace meta.json, and the manifest by one that fits it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "meta.json").write_bytes(meta)
    manifest["files"]["meta.json"] = hashlib.sha256(meta).hexdigest()
    (folder / "manifest.json").write_bytes(sealed(manifest))


@pytest.mark.parametrize("score", [math.nan, math.inf, "high", None, [1]])
def test_a_score_that_is_no_number_makes_no_checkpoint_the_best(score, tmp_path) -> None:
    store = CheckpointStore(str(tmp_path), keep_last=1)
    save(store, 1, 0.5)
    save(store, 2, score)
    save(store, 3)
    assert store.best().step == 1
    assert store.steps() == [1, 3]


@pytest.mark.parametrize("names", [["../x.pt"], ["/etc/passwd"], [], ["model.pt"], ["meta.json", "a/b.pt"]])
def test_a_manifest_names_files_of_its_own_folder(names, tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    manifest = {"format": 1, "version": "x", "files": dict.fromkeys(names, "0" * 64)}
    (tmp_path / "step_00000001" / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        store.at(1)


def test_a_renamed_checkpoint_is_refused(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, 1)
    save(store, 2)
    (tmp_path / "step_00000002").rename(tmp_path / "step_00000009")
    assert store.latest().step == 1
    with pytest.raises(InputError, match="holds step 2: it was renamed"):
        store.at(9)


@pytest.mark.parametrize("damage", ["flipped", "empty", "no manifest"])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(damage, tmp_path, caplog) -> None:
    store = CheckpointStore(str(tmp_path))
    for step in (1, 2):
        save(store, step, 0.1 * step)
    for step in (1, 2):
        file = tmp_path / f"step_0000000{step}" / "model.pt"
        if damage == "flipped":
            data = bytearray(file.read_bytes())
            data[step] ^= 4
            file.write_bytes(data)
        elif damage == "empty":
            file.write_bytes(b"")
        else:
            file.with_name("manifest.json").unlink()
    for ask in (store.latest, store.best):
        with pytest.raises(InputError) as told:
            ask()
        message = str(told.value)
        assert "none of the 2 checkpoints" in message
        assert "step_00000001" in message
        assert "step_00000002" in message
        assert "start a new run with another name" in message
        assert "\n" not in message


def test_a_first_checkpoint_that_was_never_completed_is_none(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path))
    (tmp_path / "step_00000005").mkdir()
    (tmp_path / "step_00000005" / "model.pt").write_bytes(b"half")
    assert store.latest() is None
    assert store.best() is None
    save(store, 3)
    assert store.steps() == [3]


def test_what_comes_after_the_one_just_saved_is_dropped_as_damaged(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path), keep_last=1)
    save(store, 20)
    (tmp_path / "step_00000020").rename(tmp_path / "copy")
    save(store, 30)
    (tmp_path / "step_00000030" / "model.pt").write_bytes(b"")
    (tmp_path / "copy").rename(tmp_path / "step_00000020")
    assert store.latest().step == 20
    save(store, 25)
    assert store.steps() == [25]
    assert store.latest().step == 25


def test_a_store_is_seen_to_be_writable_before_the_first_step(tmp_path) -> None:
    store = CheckpointStore(f"{tmp_path}/run/checkpoints")
    store.open()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot be written to .*/file/checkpoints .*another output_dir"):
        CheckpointStore(f"{tmp_path}/file/checkpoints").open()
    with pytest.raises(ResourceError, match="cannot be written to /proc/"):
        CheckpointStore("/proc/checkpoints").open()


def test_a_folder_that_is_removed_while_the_run_goes_on_is_not_made_again(tmp_path) -> None:
    store = CheckpointStore(f"{tmp_path}/run/checkpoints")
    store.open()
    save(store, 1)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ResourceError, match="was removed while the run was going on"):
        save(store, 2)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_named(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path), keep_last=1)
    first = save(store, 1)
    save(store, 2)
    with pytest.raises(InputError, match=r"step_00000001/model\.pt is missing"):
        first.tensors("model")


@pytest.mark.parametrize("location", ["\0", "~nobody_has_this_name/x", "x" * 5000])
def test_a_path_that_cannot_be_one_is_one_line(location) -> None:
    with pytest.raises(InputError) as told:
        find_checkpoint(location)
    assert "\n" not in str(told.value)


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
            return (os.makedirs, (str(tmp_path / "executed"),))

    store.save(1, {"model": {"x": Evil()}}, {})
    with pytest.raises(
        InputError, match=r"model\.pt was not loaded, .* \(it would run os\.makedirs\): use a checkpoint"
    ) as told:
        store.latest().tensors("model")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "executed").exists()


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
