"""What can be said before Ray is started."""

from __future__ import annotations

import os

import pytest
import torch

from distmetric.cluster import fit as fit_module
from distmetric.cluster.fit import fit
from distmetric.cluster.session import check_local
from distmetric.config.schema import TrainerConfig
from distmetric.data.decode import available_cores
from distmetric.errors import ConfigError, InputError
from runs import tiny_config


def test_more_workers_than_cpus_names_what_fits(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert available_cores() == 3
    check_local(TrainerConfig(num_workers=3))
    check_local(TrainerConfig(num_workers=6, cpus_per_worker=0.5))
    with pytest.raises(
        ConfigError, match=r"needs 4 CPUs but this machine has 3: set trainer.num_workers=3 or"
    ):
        check_local(TrainerConfig(num_workers=4))


def test_of_a_range_of_workers_the_least_has_to_fit(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    check_local(TrainerConfig(num_workers=[3, 64]))
    with pytest.raises(ConfigError, match=r"num_workers=\[4, 64\] x .* needs 4 CPUs but this machine has 3"):
        check_local(TrainerConfig(num_workers=[4, 64]))


@pytest.mark.parametrize(("gpus", "fix"), [(0, "trainer.use_gpu=false"), (2, "trainer.num_workers=2")])
def test_more_workers_than_gpus_names_what_fits(gpus, fix, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=f"needs 3 GPUs but this machine has {gpus}: set {fix}"):
        check_local(TrainerConfig(num_workers=3, cpus_per_worker=0.1, use_gpu=True))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["sampler.samples_per_class=17"],
            ConfigError,
            "samples_per_class=17 but the largest training class",
        ),
        (
            ["sampler.classes_per_batch=500"],
            ConfigError,
            "sampler.classes_per_batch=500 but the training split has",
        ),
        (["trainer.num_workers=3"], ConfigError, "cannot be divided among trainer.num_workers=3"),
        (["data.test_split=nope"], InputError, "nope"),
    ],
)
def test_what_the_data_cannot_give_is_said_before_anything_starts(
    overrides, error, message, glyph_cache, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(fit_module, "ray_session", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(error, match=message):
        fit(tiny_config(glyph_cache, f"output_dir={tmp_path}", *overrides))
    assert list(tmp_path.iterdir()) == []


def test_results_are_not_put_where_ray_deletes_them(glyph_cache) -> None:
    package = "/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_0123/outputs"
    with pytest.raises(ConfigError, match=r"lies in the job's copy of the code, which Ray deletes"):
        fit(tiny_config(glyph_cache, f"output_dir={package}"))
