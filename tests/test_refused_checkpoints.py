"""Checkpoints of other versions, of strangers, and damaged ones, as every job that reads them meets them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distmetric.errors import InputError
from distmetric.locations import sealed
from distmetric.training.checkpoint import CheckpointStore
from in_process import Scene, job
from runs import run_once

JOBS = {
    "train": ("resume={run}",),
    "evaluate": ("checkpoint={run}",),
    "embed": ("checkpoint={run}", "source={images}", "out={out}/e.parquet"),
    "search": ("checkpoint={run}", "gallery={images}", "queries={images}", "out={out}/found"),
    "export": ("checkpoint={run}", "out={out}/exported", "formats=[safetensors]"),
}


@pytest.fixture(scope="module")
def scene(glyph_cache, tmp_path_factory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"), glyph_cache)


@pytest.fixture
def run(scene, tmp_path) -> Path:
    """A copy of the run, to be spoiled."""
    shutil.copytree(scene.run, tmp_path / "run")
    return tmp_path / "run"


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (eval, ("open('/tmp/distmetric-was-here', 'w')",))


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint, and the manifest by one that fits."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_bytes(sealed(manifest))


def of_format(number: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_bytes(sealed({**manifest, "format": number, "version": "7.1"}))

    return spoil


def malicious(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": Evil()}, buffer)
    for name in ("model.pt", "training.pt"):
        forge(folder, name, buffer.getvalue())


def no_tensors(folder: Path) -> None:
    for name in ("model.pt", "training.pt"):
        forge(folder, name, b"PK\x03\x04 something else")


def flipped(folder: Path) -> None:
    data = bytearray((folder / "model.pt").read_bytes())
    data[len(data) // 2] ^= 16
    (folder / "model.pt").write_bytes(data)


def odd_meta(folder: Path) -> None:
    forge(folder, "meta.json", b'{"step": "4", "metrics": []}')


def odd_settings(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    forge(folder, "meta.json", json.dumps({**meta, "version": "7.1", "config": {"unheard": "of"}}).encode())


SPOILED = {
    "older": (
        of_format(0),
        r"checkpoint format 0 \(written by distmetric 7\.1\), .* use the version that wrote it",
    ),
    "newer": (
        of_format(9),
        r"checkpoint format 9 \(written by distmetric 7\.1\), .* use the version that wrote it",
    ),
    "malicious": (malicious, r"(model|training)\.pt was not loaded, .*it would run"),
    "no tensors": (no_tensors, r"(model|training)\.pt was not loaded"),
    "flipped": (flipped, r"none of the \d checkpoints in .*model\.pt is damaged"),
    "odd meta": (odd_meta, r"none of the \d checkpoints in .*meta\.json is not what distmetric writes"),
    "odd settings": (odd_settings, r"settings .*7\.1"),
}


CASES = [
    (name, kind)
    for name in JOBS
    for kind in SPOILED
    if name != "train"
    or kind not in ("malicious", "no tensors")  # whose tensors only a worker reads, see below
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_job_refuses_it_in_one_line_and_writes_nothing(name, kind, run, scene, tmp_path) -> None:
    spoil, message = SPOILED[kind]
    for folder in (run / "checkpoints").glob("step_*"):
        spoil(folder)
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    out = tmp_path / "out"
    overrides = (text.format(run=run, images=scene.images, out=out) for text in JOBS[name])
    code, told = job(name, *overrides, *(("train.steps=9",) if name == "train" else ()))
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert code == 2, told
    assert len(errors) == 1, told
    assert "Traceback" not in told
    assert re.search(message, errors[0]), errors[0]
    assert sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file()) == before
    assert not any(path.is_file() for path in out.rglob("*"))
    assert not Path("/tmp/distmetric-was-here").exists()


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_a_damaged_best_one_is_named_and_the_next_best_is_used(name, run, scene, tmp_path, caplog) -> None:
    store = CheckpointStore(f"{run}/checkpoints")
    best = store.best()
    earlier = best.step - 1
    store.keep_last = 3
    tensors = {key: best.tensors(key) for key in ("model", "training")}
    shutil.move(f"{run}/checkpoints/step_{best.step:08d}", tmp_path / "kept")
    store.save(earlier, tensors, {**best.meta, "step": earlier})
    shutil.move(tmp_path / "kept", f"{run}/checkpoints/step_{best.step:08d}")
    flipped(run / "checkpoints" / f"step_{best.step:08d}")
    overrides = (text.format(run=run, images=scene.images, out=tmp_path / "out") for text in JOBS[name])
    code, told = job(name, *overrides)
    assert code == 0, told
    assert f"step_{best.step:08d}/model.pt is damaged" in caplog.text


@pytest.mark.parametrize("kind", ["malicious", "no tensors"])
def test_a_worker_refuses_to_go_on_from_it(kind, run, scene) -> None:
    spoil, message = SPOILED[kind]
    for folder in (run / "checkpoints").glob("step_*"):
        spoil(folder)
    with pytest.raises(InputError, match=message):
        run_once(scene.config, run)
    assert not Path("/tmp/distmetric-was-here").exists()
