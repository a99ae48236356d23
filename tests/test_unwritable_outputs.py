"""Every job, told to write where nothing can be written: one line, exit code 2 or 3, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disks import UNWRITABLE, fill
from distmetric.training.run_folder import RunFolder
from in_process import Scene, job


@pytest.fixture(scope="module")
def scene(glyph_cache, tmp_path_factory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"), glyph_cache)


COMMANDS = {
    "ingest": ("source={images}", "out={out}.arrow", "test_fraction=0.5"),
    "embed": ("checkpoint={run}", "source={catalog}", "out={out}.parquet"),
    "embed arrow": ("checkpoint={run}", "source={catalog}", "out={out}.arrow", "part_rows=50"),
    "evaluate": ("checkpoint={run}", "data.path={catalog}", "out={out}.json"),
    "search": ("checkpoint={run}", "gallery={catalog}", "queries={catalog}", "out={out}"),
    "search index": (
        *("checkpoint={run}", "gallery={catalog}", "queries={catalog}", "out={scratch}/found"),
        "saved_index={out}.index",
    ),
    "export": ("checkpoint={run}", "out={out}", "formats=[safetensors]"),
    "export onnx": ("checkpoint={run}", "out={out}", "formats=[onnx]"),
    "mine": ("embeddings={embeddings}", "out={out}"),
    "report": ("runs=[{run}]", "out={out}.html"),
    "report two": ("runs=[{run},{copy}]", "out={out}.html"),
    "benchmark": (
        *("suite=losses", "losses=[batch_hard]", "sizes=[64]", "processes=[1]", "peers=false", "out={out}"),
        "tracking=none",
    ),
    "train": ("debug=tiny", "data=catalog", "data.path={catalog}", "output_dir={out}", "tracking=none"),
    "train mlflow": (
        "debug=tiny",
        "data=catalog",
        "data.path={catalog}",
        "output_dir={out}",
        "tracking=mlflow",
    ),
    "tune": ("train={{debug: tiny}}", "space={{optim.lr: [0.1, 0.2]}}", "num_trials=1", "output_dir={out}"),
}


def told_by(command: str, scene: Scene, out: Path, scratch: Path) -> tuple[int, str]:
    copy = scratch / "copy"
    if "two" in command and not copy.exists():
        RunFolder(
            str(copy), "copy", json.loads((scene.run / "run.json").read_text())["config"], "f", "0.1.0"
        ).write()
    values = {**vars(scene), "out": out, "scratch": scratch, "copy": copy}
    return job(command.split()[0], *(text.format(**values) for text in COMMANDS[command]))


def check(code: int, told: str) -> None:
    """One line on what cannot be written, and why."""
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert code in (2, 3), told
    assert len(errors) == 1, told
    assert "Traceback" not in told


@pytest.mark.parametrize("command", COMMANDS)
def test_where_nothing_can_be_made_is_said(command, scene, tmp_path) -> None:
    code, told = told_by(command, scene, Path(UNWRITABLE, "folder", "x"), tmp_path)
    check(code, told)
    assert "/proc/distmetric" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_place_of_a_folder_is_said(command, scene, tmp_path) -> None:
    place = tmp_path / "place"
    place.write_text("a file")
    code, told = told_by(command, scene, place / "x", tmp_path)
    check(code, told)
    assert str(place) in told
    assert place.read_text() == "a file"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_leaves_no_half_of_anything(command, scene, small_disk, tmp_path) -> None:
    fill(small_disk)
    out = small_disk / "x"
    code, told = told_by(command, scene, out, tmp_path / "scratch")
    check(code, told)
    left = {str(path.relative_to(small_disk)) for path in small_disk.rglob("*") if path.is_file()}
    assert left == {"ballast"}, told
