"""Every mistake on a command line ends in one line that names the key and the fix."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distmetric.config import compose as compose_module
from distmetric.config.compose import (
    compose,
    groups,
    groups_of,
    load,
    read_settings,
    resume,
    resumed_folder,
)
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
        (["name=${nope}"], "'name=${nope}' has ${...}, which is not looked up: give the value itself"),
        (["~nope"], "nope is not a setting: --cfg prints all there are"),
        (["~loss"], f"~loss is wrong: choose one of {LOSSES} with loss=NAME"),
        (["model.widths.x=5"], "model.widths.x is not a setting: did you mean model.widths?"),
        (["model.widths.3=5"], "model.widths.3 is not a setting: did you mean model.widths?"),
        (["~model.widths.0"], "~model.widths.0 is one value of a list: give the whole list instead"),
        (["train.steps.x=5"], "train.steps.x is not a setting: did you mean train.steps?"),
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
        (["+train.steps.x=1"], "train.steps.x is not a setting: did you mean train.steps?"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(overrides)
        assert str(caught.value) == message
    assert (
        message_of("embed", *EMBED, "+batch_size=3") == "+batch_size is there already: give it without the +"
    )
    assert load("embed", EmbedJob, [*EMBED, "++batch_size=3"]).batch_size == 3


def test_wrong_values_are_told_by_what_they_must_be() -> None:
    with pytest.raises(ConfigError, match=r"^batch_size='many' is wrong: it must be a whole number$"):
        load("embed", EmbedJob, [*EMBED, "batch_size=many"])


def test_groups_of_other_jobs_are_no_settings() -> None:
    assert message_of("embed", *EMBED, "loss=triplet") == "loss is not a setting: --cfg prints all there are"
    assert message_of("config", "protocol=reid") == "protocol is not a setting: --cfg prints all there are"
    assert groups_of("embed") == groups_of("ingest") == []
    assert groups_of("evaluate") == ["protocol"]
    assert groups_of("config") == sorted(set(groups()) - {"protocol", "study"})


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
        "train.non_finite": "skip",
        "train.max_skipped": 5,
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
    with pytest.raises(
        ConfigError, match=r"^'trainer.address=\$\{nope\}' has \$\{...\}, which is not looked up"
    ):
        resumed("trainer.address=${nope}")
    for text in ("+trainer.num_workers=3", "~trainer.address", "trainer.address@x=y"):
        with pytest.raises(ConfigError, match="would make it another run"):
            resumed(text)


ENVIRONMENT = (
    "${oc.env:DM_MARK}",
    "'${oc.env:DM_MARK}'",
    "\\${oc.env:DM_MARK}",
    "a${oc.env:DM_MARK,x}b",
    "[${oc.env:DM_MARK}]",
)


@pytest.mark.parametrize("value", ENVIRONMENT)
@pytest.mark.parametrize("key", ["name", "+new", "loss", "experiment", "output_dir", "model.widths.0"])
def test_the_environment_is_not_read_into_settings(
    key: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DM_MARK", "quickstart")
    assert message_of("config", f"{key}={value}").endswith(
        "has ${...}, which is not looked up: give the value itself"
    )


def test_what_a_runs_folder_says_is_not_looked_up_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DM_MARK", "secret")
    stored = json.loads(started()) | {"name": "${oc.env:DM_MARK}", "output_dir": "${seed}"}
    assert {key: resume(stored, [])[key] for key in ("name", "output_dir")} == {
        "name": "${oc.env:DM_MARK}",
        "output_dir": "${seed}",
    }


@pytest.mark.parametrize(
    "text",
    [
        *(
            "hydra.run.dir=/tmp",
            "hydra/launcher=basic",
            "hydra.searchpath=[file:///tmp]",
            "+hydra.job.chdir=true",
        ),
        *("hydra={run: {dir: /tmp}}", "~hydra", "+loss@hydra.job=triplet", "hydra/job_logging=none"),
    ],
)
def test_hydra_itself_cannot_be_set(text: str) -> None:
    assert message_of("config", text) == f"{text} is wrong: Hydra itself has no settings here"


@pytest.mark.parametrize(
    "arguments", [["--config-dir=/tmp"], ["--config-dir", "/tmp"], ["-cd", "."], ["-m"], ["--package", "x"]]
)
def test_hydras_flags_are_none_of_ours(arguments: list[str]) -> None:
    assert message_of("config", *arguments).startswith(f"{arguments[0]!r} cannot be read: ")


def test_files_are_chosen_from_conf_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    for path in (tmp_path / "evil.yaml", tmp_path / "conf" / "loss" / "evil.yaml"):
        path.write_text("name: ${oc.env:HOME}\n")
    monkeypatch.chdir(tmp_path)
    for choice in (
        "evil",
        "../../evil",
        f"../../../../../../../..{tmp_path}/evil",
        f"/{tmp_path}/evil",
        "a/../triplet",
    ):
        assert message_of("config", f"loss={choice}").startswith(
            f"loss={choice} does not exist: choose one of "
        )
    assert message_of("config", "loss=[triplet,../x]").startswith("loss=[triplet,../x] does not exist")


def test_what_looks_like_code_is_text() -> None:
    for value in ("!!python/object/apply:os.system [id]", "__import__('os')", "{_target_: os.system}"):
        quoted = value if value.startswith("{") else f'"{value}"'
        assert compose("config", [f"name={quoted}"])["name"] in (value, {"_target_": "os.system"})
    with pytest.raises(ConfigError, match=r"^loss._target_ is not a setting"):
        compose("config", ["loss={_target_: os.system}"])
    with pytest.raises(ConfigError, match=r"^_target_ is not a setting"):
        load_config(["+_target_=os.system"])


def test_endless_overrides_are_refused_before_they_are_read() -> None:
    for text in ("name=" + "a" * 30_000, "name=" + "[" * 5_000, "a" * 500 + "=1", "seed=" + "9" * 5_000):
        assert len(message_of("config", text)) < 400


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: !!python/object/apply:os.system [touch gone]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: ${oc.env:HOME}", "give values, not ${...}"),
        ("a: &x [1]\nb: *x", "write out what its aliases"),
        ("a: [" * 3000, ""),
        ("- 1", "must have keys and values"),
        ("a: 1\na: 2", "line 2: found duplicate key"),
        ("x" * 1_000_001, "shorter than 1 MB"),
    ],
)
def test_a_file_of_settings_is_values_and_nothing_else(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_settings(str(path))
    assert str(caught.value).startswith(f"{path} is not a YAML file of settings: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_of_settings_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("a: \u00fc".encode("latin-1"))
    with pytest.raises(ConfigError, match="must be a text in UTF-8"):
        read_settings(str(tmp_path / "a.yaml"))
    with pytest.raises(ConfigError, match="must be a text in UTF-8"):
        read_settings("a\0b")


def test_permission_for_code_of_others_is_never_taken_from_a_run() -> None:
    stored = json.loads(started()) | {"allow_custom_targets": True}
    assert resume(stored, ["resume=x"])["allow_custom_targets"] is False
    assert resume(stored, ["resume=x", "allow_custom_targets=true"])["allow_custom_targets"] is True


@pytest.mark.parametrize("value", ["5", "[a]", "{a:1}", "true", "''", ""])
def test_what_is_resumed_is_a_folder(value: str) -> None:
    with pytest.raises(ConfigError, match=r"is wrong: it must be the folder of a run$"):
        resumed_folder([f"resume={value}"])
    assert resumed_folder(["resume=null"]) is None
    assert resumed_folder(["resume=a/b", "seed=1"]) == "a/b"


def test_groups_that_are_empty_take_any_setting_and_parts_come_and_go() -> None:
    custom = ["model=custom", "model.target=a.b"]
    for overrides in (["model.kwargs={depth:3,width:4}"], ["model.kwargs.depth=3", "+model.kwargs.width=4"]):
        assert compose("config", [*custom, *overrides])["model"]["kwargs"] == {"depth": 3, "width": 4}
    assert compose("config", [*custom, "model.kwargs.inner.depth=3"])["model"]["kwargs"] == {
        "inner": {"depth": 3}
    }
    parts = compose(
        "config", ["loss=weighted_sum", "~loss.parts.contrastive", "+loss@loss.parts.far.loss=circle"]
    )
    assert sorted(parts["loss"]["parts"]) == ["far", "triplet"]
    assert compose("config", ["train={steps:5,log_every:1}"])["train"] == {
        "steps": 5,
        "log_every": 1,
        **{
            key: value
            for key, value in compose("config", [])["train"].items()
            if key not in ("steps", "log_every")
        },
    }
