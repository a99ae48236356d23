"""A cell of the data path in this process, and the whole suite, small."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from distmetric.benchmarks.data_path import measure, sets
from distmetric.benchmarks.data_path.measure import DataSpec, measure_data
from distmetric.benchmarks.data_path.sets import SETS, open_set
from distmetric.benchmarks.run import run_benchmark
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    monkeypatch.setattr(measure, "_BATCHES", 2)
    monkeypatch.setattr(measure, "_keep_to_cores", lambda count: None)  # of this process, that goes on


@pytest.mark.parametrize("name", ["glyphs", "jpeg256"])
def test_a_set_has_as_many_images_of_the_size_it_says(name, tmp_path) -> None:
    catalog = open_set(name, tmp_path, 24)
    assert len(catalog) >= 24
    assert len(catalog.rows("train")) >= 16
    image = Image.open(io.BytesIO(catalog.image_bytes(0)))
    assert image.size == ((28, 28) if name == "glyphs" else (256, 256))


def test_drawn_photographs_take_about_as_many_bytes_as_real_ones(tmp_path) -> None:
    catalog = open_set("jpeg256", tmp_path, 8)
    assert 0.1 < catalog.image_nbytes / len(catalog) / 256**2 < 1.0
    assert sets._jpeg(64, 1) == sets._jpeg(64, 1) != sets._jpeg(64, 2)


@pytest.mark.parametrize("name", ["jpeg256_held", "jpeg256"])
def test_a_cell_has_the_parts_and_the_whole(name) -> None:
    found = measure_data(DataSpec(name, 8, steps=2))
    assert len(found.seconds) == len(found.matmul_seconds) == 2
    assert min(*found.seconds, *found.matmul_seconds, found.read_seconds, found.augment_seconds) > 0
    assert (found.decode_seconds == 0) == SETS[name].held
    assert found.cpu_seconds > 0
    assert found.encoded_bytes > 1000


@pytest.mark.timeout(300)  # fresh processes, which import torch
def test_a_small_suite_leaves_a_table(tmp_path) -> None:
    settings = ["suite=data", "tracking=none", "threads=1", "steps=1", f"out={tmp_path}"]
    result = run_benchmark(load("benchmark", BenchmarkJob, [*settings, "images=[jpeg256]", "sizes=[8]"]))
    assert (result["suite"], result["statuses"]) == ("data", {"ok": 1})
    text = Path(result["markdown"]).read_text(encoding="utf-8")
    assert "| jpeg256: JPEG 256 px to 224 | 1 | 8 |" in text
    (cell,) = json.loads(Path(result["json"]).read_text(encoding="utf-8"))["cells"]
    assert cell["share"] > 0
    assert cell["spec"]["images"] == "jpeg256"
