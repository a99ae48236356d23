"""Every mistake on a command line ends in one line that names the key and the fix."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distmetric.config import compose as compose_module
from distmetric.config.compose import compose, groups, groups_of, load, resume
from distmetric.config.decode import decode, leaves
from distmetric.config.jobs import EmbedJob
from distmetric.config.schema import Config
from distmetric.config.training import load_config
from distmetric.errors import ConfigError

EMBED = ["checkpoint=a", "source=b", "out=c"]
ROOT = Path(__file__).parents[2]
LOSSES = ", ".join(sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")))


def message_of(config_name: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(config_name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=5"], "train.stepz is not a setting: did you mean train.steps?"),
        (["trian.steps=5"], "trian.steps is not a setting: did you mean train.steps?"),
        (["train={stepz:5}"], "train.stepz is not a setting: did you mean train.steps?"),
        (["losss=triplet"], "losss is not a setting: did you mean loss?"),
        (["data=catalog", "data.pth=x"], "data.pth is not a setting: did you mean data.path?"),
        (["tracking=none", "tracking.uri=x"], "tracking.uri is not a setting: did you mean tracking.name?"),
        (["loss=tripletx"], f"loss=tripletx does not exist: choose one of {LOSSES}"),
        (["loss=null"], f"loss=null does not exist: choose one of {LOSSES}"),
        (
            ["experiment=null"],
            f"experiment=null does not exist: choose one of {', '.join(groups()['experiment'])}",
        ),
        (["data=catalog"], "data.path is required: give it as data.path=..."),
        (["name=${nope}"], "Interpolation key 'nope' not found full_key: name"),
        (["~nope"], "Could not delete from config. 'nope' does not exist."),
        (
            ["model.widths.x=5"],
            "model.widths.x=5 cannot be applied: invalid literal for int() with base 10: 'x'",
        ),
    ],
)
def test_what_cannot_be_composed_is_told_in_one_line(overrides: list[str], message: str) -> None:
    assert message_of("config", *overrides) == message


@pytest.mark.parametrize(
    "text",
    ["train.steps", "train.steps==5", "=5", "a b=1", "name=[", "train..steps=5", "--multirun", "", "out=a=b"],
)
def test_what_cannot_be_read_is_quoted(text: str) -> None:
    expected = f"{text!r} cannot be read: give settings as key=value, quoting odd values"
    assert message_of("config", "seed=1", text) == expected
    with pytest.raises(ConfigError, match="cannot be read"):
        resume({"seed": 0}, [text])


@pytest.mark.parametrize("text", ["seed=1,2", "seed=range(1,3)", "seed=choice(1,2)", "loss=triplet,other"])
def test_a_sweep_is_refused(text: str) -> None:
    assert message_of("config", text) == f"{text} names several values: a run takes one"
    with pytest.raises(ConfigError, match="names several values"):
        resume({"seed": 0}, [text])


def test_what_is_added_is_no_setting_either() -> None:
    for overrides, message in (
        (["+new.key=1"], "new is not a setting: --cfg prints all there are"),
        (["++train.stepz=1"], "train.stepz is not a setting: did you mean train.steps?"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(overrides)
        assert str(caught.value) == message
    assert message_of("embed", *EMBED, "+batch_size=3").startswith(
        "Could not append to config. An item is already"
    )


def test_wrong_values_are_told_by_what_they_must_be() -> None:
    with pytest.raises(ConfigError, match=r"^batch_size='many' is wrong: it must be a whole number$"):
        load("embed", EmbedJob, [*EMBED, "batch_size=many"])


def test_groups_of_other_jobs_are_no_settings() -> None:
    assert message_of("embed", *EMBED, "loss=triplet") == "loss is not a setting: --cfg prints all there are"
    assert message_of("config", "protocol=reid") == "protocol is not a setting: --cfg prints all there are"
    assert groups_of("embed") == groups_of("ingest") == []
    assert groups_of("evaluate") == ["protocol"]
    assert groups_of("config") == sorted(set(groups()) - {"protocol"})


def test_what_is_missing_is_named() -> None:
    assert message_of("embed", *EMBED[:2]) == "out is required: give it as out=..."


def test_without_conf_there_is_nothing_to_compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compose_module, "CONF_DIR", tmp_path / "conf")
    assert message_of("config", "seed=1").startswith(f"{tmp_path}/conf does not exist: ")


def test_awkward_values_arrive_as_they_were_quoted() -> None:
    source = "/a b/c=d,{e}.zip"
    job = load("embed", EmbedJob, ["checkpoint=s3://bucket/run", f"source='{source}'", "out=C:/x.parquet"])
    assert (job.checkpoint, job.source, job.out) == ("s3://bucket/run", source, "C:/x.parquet")


def test_load_config_is_the_configuration_of_a_training_run() -> None:
    config = load_config(["loss.margin=0.3", "eval.ks=[1,5]", "resume=somewhere"])
    assert (config.eval.ks, config.resume) == ([1, 5], "somewhere")
    assert config.loss.name == "triplet"
    assert config.loss.margin == 0.3


@cache
def started() -> str:
    """A run's configuration as its folder keeps it."""
    values = compose("config", ["data=catalog", "data.path=/old", "train.steps=30", "loss.margin=0.2"])
    return json.dumps(values | {"resume": "/runs/a"})


def resumed(*overrides: str) -> dict[str, Any]:
    return resume(json.loads(started()), ["resume=/runs/a", *overrides])


def test_a_resumed_run_keeps_its_configuration() -> None:
    assert resumed() == json.loads(started())
    assert decode(Config, resumed()).loss == decode(Config, json.loads(started())).loss


def test_where_and_how_a_resumed_run_computes_may_change() -> None:
    new = {
        "trainer.num_workers": 3,
        "trainer.address": "auto",
        "eval.ks": [1, 3],
        "checkpoint.keep_last": 5,
        "train.steps": 60,
        "train.log_every": 1,
        "data.path": "/new",
        "data.memory_limit_gib": 0.0,
        "report": False,
    }
    changed = leaves(resumed(*(f"{key}={json.dumps(value)}" for key, value in new.items())))
    assert changed == leaves(json.loads(started())) | new


@pytest.mark.parametrize(
    "text",
    [
        *("seed=1", "loss.margin=0.3", "sampler.classes_per_batch=8", "train.precision=bfloat16", "name=b"),
        *("optim.lr=0.1", "model.embedding_dim=8", "output_dir=x", "data.train_split=test"),
        *("loss=triplet", "trainer=gpu", "experiment=omniglot"),
    ],
)
def test_what_would_make_another_run_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resumed(text)
    assert str(caught.value) == f"{text} would make it another run: resume without it, or start a new run"


def test_a_resumed_run_has_no_other_settings() -> None:
    with pytest.raises(ConfigError, match=r"^train\.stepz is not a setting: did you mean train\.steps\?$"):
        resumed("train.stepz=3")
    with pytest.raises(ConfigError, match=r"^protocol is not a setting"):
        resumed("protocol=reid")
    with pytest.raises(ConfigError, match=r"^Interpolation key 'nope' not found"):
        resumed("trainer.address=${nope}")
