"""Code of others is imported only if the one who starts a job says so now, whatever files say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distmetric.config.compose import load
from distmetric.config.jobs import EmbedJob, EvaluateJob, ExportJob, ReportJob, SearchJob, TuneJob
from distmetric.config.training import load_config
from distmetric.config.tune_plan import plan_trials
from distmetric.config.validate import validate
from distmetric.errors import ConfigError, InputError
from distmetric.inference.compare import make_report
from distmetric.inference.embed import embed_source
from distmetric.inference.evaluate import run_evaluation
from distmetric.inference.export import export_checkpoint
from distmetric.inference.exported import _load_pyfunc, load_exported
from distmetric.inference.search import search
from distmetric.models.build import build_embedder
from distmetric.models.spec import CustomSpec
from distmetric.training.run_folder import RunFolder
from distmetric.training.saved_model import config_dict
from runs import run_once

MODULE = "trunks_of_others"
CODE = """
from torch import nn
class Trunk(nn.Conv2d):
    def __init__(self, width, api_key=""):
        assert api_key != "***"
        super().__init__(1, width, 3, stride=4)
"""
REFUSAL = (
    f"model.target={MODULE}.Trunk is code outside this package, which would be imported and run: "
    "set allow_custom_targets=true if you trust it"
)
CUSTOM = ("model=custom", f"model.target={MODULE}.Trunk", "model.kwargs={width: 8}", "model.embedding_dim=16")


def tiny(cache: Path) -> list[str]:
    steps = ["train.steps=2", "eval.resamples=10"]
    return ["debug=tiny", "data.max_classes=60", "tracking=none", f"data.cache_dir={cache}", *steps]


@pytest.fixture(scope="module")
def run(glyph_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with a trunk of one's own, whose files claim that this is fine; and one picture."""
    folder = tmp_path_factory.mktemp("custom")
    (folder / "code").mkdir()
    (folder / "code" / f"{MODULE}.py").write_text(CODE)
    Image.fromarray(np.full((28, 28), 99, np.uint8)).save(folder / "picture.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "code")
        config = load_config([*tiny(glyph_cache), *CUSTOM, "allow_custom_targets=true"])
        worker, result, _ = run_once(config, folder / "run")
        location = str(folder / "run")
        RunFolder(location, "run", config_dict(config), worker.catalog.fingerprint, "0.1.0").write()
        meta = json.loads(Path(result.checkpoint, "meta.json").read_text())
        assert meta["config"]["allow_custom_targets"] is True, "the files claim it"
        yield SimpleNamespace(
            location=location, picture=str(folder / "picture.png"), catalog=worker.catalog.path
        )
    sys.modules.pop(MODULE, None)


@pytest.fixture(autouse=True)
def _not_imported() -> None:
    sys.modules.pop(MODULE, None)


JOBS: dict[str, tuple[Callable[[Any], Any], type[Any], list[str]]] = {
    "evaluate": (run_evaluation, EvaluateJob, ["checkpoint={run}", "protocol.resamples=0"]),
    "embed": (embed_source, EmbedJob, ["checkpoint={run}", "source={picture}", "out={out}/e.parquet"]),
    "search": (
        search,
        SearchJob,
        [
            *(
                "checkpoint={run}",
                "gallery={picture}",
                "queries={picture}",
                "out={out}/s",
                "exclude_self=false",
            ),
        ],
    ),
    "export": (export_checkpoint, ExportJob, ["checkpoint={run}", "formats=[safetensors]", "out={out}/x"]),
    "report": (make_report, ReportJob, ["runs=[{run}]", "out={out}/r.html"]),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_imports_the_trunk_of_a_checkpoint_only_if_told_to_now(
    name: str, run: Any, tmp_path: Path
) -> None:
    work, schema, overrides = JOBS[name]
    given = [text.format(run=run.location, picture=run.picture, out=tmp_path) for text in overrides]
    with pytest.raises(ConfigError) as caught:
        work(load(name, schema, given))
    assert str(caught.value) == REFUSAL
    assert MODULE not in sys.modules
    assert list(tmp_path.iterdir()) == [], "refused before anything was written"
    work(load(name, schema, [*given, "allow_custom_targets=true"]))
    assert MODULE in sys.modules


def test_an_exported_model_is_loaded_only_if_told_to_now(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = [
        f"checkpoint={run.location}",
        "formats=[safetensors]",
        f"out={tmp_path}",
        "allow_custom_targets=true",
    ]
    export_checkpoint(load("export", ExportJob, job))
    sys.modules.pop(MODULE)
    for load_it in (load_exported, lambda folder: _load_pyfunc(str(folder))):
        with pytest.raises(ConfigError, match="is code outside this package"):
            load_it(tmp_path)
    assert MODULE not in sys.modules
    assert load_exported(tmp_path, allow_custom_targets=True).embedding_dim == 16
    monkeypatch.setenv("DISTMETRIC_ALLOW_CUSTOM_TARGETS", "true")
    _load_pyfunc(str(tmp_path))


def test_training_says_so_before_anything_starts(glyph_cache: Path) -> None:
    for key in ("allow_custom_targets=false", "train.steps=3"):
        with pytest.raises(ConfigError) as caught:
            validate(load_config([*CUSTOM, key]))
        assert str(caught.value) == REFUSAL
    validate(load_config([*CUSTOM, "allow_custom_targets=true"]))
    assert MODULE not in sys.modules


def test_a_search_for_settings_decides_for_its_trials() -> None:
    space = "space={model.embedding_dim: [8, 16]}"
    shared = f"train={{model: custom, model.target: {MODULE}.Trunk}}"
    with pytest.raises(ConfigError, match="is code outside this package"):
        plan_trials(load("tune", TuneJob, [space, shared]))
    plan = plan_trials(load("tune", TuneJob, [space, shared, "allow_custom_targets=true"]))
    assert all(trial.config["allow_custom_targets"] for trial in plan.trials)
    with pytest.raises(ConfigError, match="allow_custom_targets is decided by the search"):
        plan_trials(load("tune", TuneJob, [space, "train={allow_custom_targets: true}"]))


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("os.system", {"command": "true"}, "is code outside this package"),
        ("torch.nn.Flatten", {}, "is code outside this package"),
        ("distmetricx.trunks.Trunk", {}, "is code outside this package"),
        (
            "distmetric.custom_targets.build_target",
            {"key": "model", "target": "os.system", "kwargs": {}},
            "is no module of this package",
        ),
        ("distmetric.custom_targets.importlib", {}, "is no module of this package"),
        ("distmetric.models.conv.nn", {}, "is no module of this package"),
        ("distmetric.models.conv.Tensor", {}, "is no module of this package"),
        ("distmetric.models.conv.ConvTrunk", {"in_channels": "x"}, "cannot be built with these model.kwargs"),
        ("distmetric.models.nothing.Trunk", {}, "cannot be imported"),
        ("Trunk", {}, "is code outside this package"),
        ("", {}, "is code outside this package"),
    ],
)
def test_only_trunks_of_this_package_need_no_permission(
    target: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_embedder(CustomSpec(target=target, kwargs=kwargs), 0)
    assert "\n" not in str(caught.value)


def test_a_trunk_of_this_package_needs_none() -> None:
    kwargs = {"in_channels": 1, "widths": [4, 8], "norm": "batch", "pool_last": True}
    spec = CustomSpec(target="distmetric.models.conv.ConvTrunk", kwargs=kwargs, embedding_dim=5)
    assert build_embedder(spec, 0)(torch.rand(2, 1, 28, 28)).shape == (2, 5)


def test_a_checkpoint_lacks_the_secrets_of_its_model_and_says_so(
    run: Any, glyph_cache: Path, tmp_path: Path
) -> None:
    secret = "model.kwargs={width: 8, api_key: correcthorse}"
    config = load_config(
        [*tiny(glyph_cache), *CUSTOM[:2], secret, "model.embedding_dim=16", "allow_custom_targets=true"]
    )
    _, result, _ = run_once(config, tmp_path)
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and b"correcthorse" in path.read_bytes()
    ]
    _, again, _ = run_once(config, tmp_path)
    assert again.checkpoint == result.checkpoint, "the run itself goes on: it was given the secret"
    given = [f"checkpoint={tmp_path}", f"source={run.picture}", f"out={tmp_path}/e.parquet"]
    job = load("embed", EmbedJob, [*given, "allow_custom_targets=true"])
    with pytest.raises(
        InputError, match=r"model.kwargs.api_key was not stored because it is secret: have the"
    ):
        embed_source(job)
