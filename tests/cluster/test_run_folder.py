"""The folder of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distmetric.cluster.run_folder import new_run_location
from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.errors import InputError
from distmetric.locations import absolute
from distmetric.training.run_folder import RunFolder, read_run
from runs import tiny_config


def test_round_trip_also_when_the_folder_was_moved(tmp_path) -> None:
    folder = RunFolder(str(tmp_path / "run"), "run", {"seed": 1}, "abc", "0.1.0", "sqlite:///x", "id")
    folder.write()
    assert read_run(str(tmp_path / "run")) == folder
    (tmp_path / "run").rename(tmp_path / "moved")
    assert read_run(f"{tmp_path}/moved/").location == str(tmp_path / "moved")


def test_names_are_unique_and_taken_names_are_refused(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, f"output_dir={tmp_path}")
    assert new_run_location(config)[0] != new_run_location(config)[0]
    assert new_run_location(config)[0].startswith("glyphs-triplet-")
    named = replace(config, name="mine")
    name, location = new_run_location(named)
    assert (name, location) == ("mine", str(tmp_path / "mine"))
    RunFolder(location, name, {}, "abc", "0.1.0").write()
    with pytest.raises(InputError, match=r"name=mine is taken: .* resume=.*/mine"):
        new_run_location(named)
    with pytest.raises(InputError, match="cannot name a folder"):
        new_run_location(replace(config, name="../escape"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/omniglot.arrow", "omniglot"),
        ("s3://bucket/my cars (v2).arrow", "my_cars_v2_"),
        ("/data/photos", "photos"),
        ("/data/.hidden.arrow", "hidden"),
        ("/data/" + "x" * 90, "x" * 40),
        ("/data/.arrow", "catalog"),
    ],
)
def test_a_run_is_named_after_its_catalog_loss_and_sampler(path, name, tmp_path) -> None:
    chosen = ["data=catalog", f"data.path='{path}'", "loss=circle", f"output_dir={tmp_path}"]
    config = decode(Config, compose("config", chosen))
    assert new_run_location(config)[0].startswith(f"{name}-circle-2")
    config = decode(Config, compose("config", [*chosen, "sampler=hard_neighbors"]))
    assert new_run_location(config)[0].startswith(f"{name}-circle-hard_neighbors-2")


@pytest.mark.parametrize("content", ["{", "[]", '{"unknown": 1}'])
def test_a_damaged_run_file_is_one_line(content, tmp_path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json is damaged"):
        read_run(str(tmp_path))


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="is not the folder of a run"):
        read_run(str(tmp_path))


def test_locations_become_absolute(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("outputs/") == str(tmp_path / "outputs")
    assert absolute("s3://bucket/runs/") == "s3://bucket/runs"
