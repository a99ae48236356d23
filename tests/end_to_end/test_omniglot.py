"""Real images: handwritten characters, from the official zips to retrieval of alphabets never seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distmetric
from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore
from runs import run_once

REPOSITORY = Path(__file__).parents[2]
ZIPS = [REPOSITORY.parent / f"shared/data/omniglot/images_background_small{n}.zip" for n in (1, 2)]

pytestmark = pytest.mark.skipif(
    not all(file.is_file() for file in ZIPS), reason=f"needs the Omniglot zips in {ZIPS[0].parent}"
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Catalog:
    out = tmp_path_factory.mktemp("omniglot") / "omniglot.arrow"
    command = [sys.executable, "jobs/ingest.py", f"source=[{ZIPS[0]},{ZIPS[1]}]", f"out={out}"]
    command += ["split_by=group", "test_groups=[Sanskrit,Tagalog]"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.strip().splitlines()[-1])
    assert (result["rows"], result["classes"], result["duplicates_skipped"]) == (4840, 242, 1000)
    assert result["splits"] == {"test": 1180, "train": 3660}
    assert result["split_classes"] == {"test": 59, "train": 183}
    return Catalog.open(out)


@pytest.mark.parametrize("loss", ["triplet", "lifted_structure"])
def test_unseen_alphabets_are_retrieved_better_than_by_their_pixels(loss, catalog, tmp_path) -> None:
    rows = catalog.rows("test")
    assert {catalog.groups[row] for row in rows} == {"Sanskrit", "Tagalog"}
    pixels = ImageStore(catalog, 28, 1, rows=rows).images(rows).flatten(1).float()
    raw = distmetric.evaluate(pixels, catalog.labels[rows]).recall_at[1]
    overrides = [
        "experiment=omniglot",
        f"loss={loss}",
        f"data.path={catalog.path}",
        "model.widths=[16, 32, 32]",
    ]
    short = ["train.steps=160", "eval.every_steps=160", "trainer.num_workers=1", "tracking=none"]
    config = decode(Config, compose("config", [*overrides, *short]))
    torch.set_num_threads(2)
    _, result, _ = run_once(config, tmp_path)
    assert result.metrics["recall_at_1"] > raw + 0.15
