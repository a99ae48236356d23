"""Plans of searches: all of their trials are whole, possible configurations, or nothing starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmetric.config.compose import compose, load
from distmetric.config.decode import leaves
from distmetric.config.jobs import TuneJob
from distmetric.config.tune_plan import TunePlan, plan_trials
from distmetric.errors import ConfigError


def plan(*overrides: str) -> TunePlan:
    return plan_trials(load("tune", TuneJob, overrides))


def test_a_trial_is_the_shared_configuration_with_its_own_settings() -> None:
    found = plan(
        "train={debug: tiny, optim.weight_decay: 0.5, model.widths: [8, 8]}",
        "space={loss: [triplet, supcon], optim.lr: [0.25]}",
        "metric=map_at_r",
    )
    assert [trial.settings for trial in found.trials] == [
        {"loss": "triplet", "optim.lr": 0.25},
        {"loss": "supcon", "optim.lr": 0.25},
    ]
    assert [trial.name for trial in found.trials] == ["trial_000", "trial_001"]
    for trial in found.trials:
        alone = compose("config", [*found.shared, *trial.overrides])
        assert trial.config == alone
        assert trial.config["loss"]["name"] == trial.settings["loss"]
        values = leaves(trial.config)
        assert values["optim.lr"] == trial.settings["optim.lr"]
        assert (values["optim.weight_decay"], values["model.widths"]) == (0.5, [8, 8])
        assert (values["checkpoint.best_metric"], values["report"]) == ("map_at_r", False)


def test_shared_settings_and_space_may_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("debug: tiny\noptim:\n  weight_decay: 0.5\n")
    (tmp_path / "space.yaml").write_text(
        "optim.lr: {low: 1e-4, high: 1e-2, log: true}\nloss:\n  margin: [0.1, 0.2]\n"
    )
    found = plan(f"train={tmp_path}/train.yaml", f"space={tmp_path}/space.yaml", "num_trials=3")
    assert len(found.trials) == 3
    assert found.job.space["loss"] == {"margin": [0.1, 0.2]}  # not the file, which may change
    assert found.job.train["debug"] == "tiny"
    for trial in found.trials:
        assert list(trial.settings) == ["optim.lr", "loss.margin"]
        assert leaves(trial.config)["optim.weight_decay"] == 0.5
        assert leaves(trial.config)["optim.lr"] == trial.settings["optim.lr"]


def test_drawn_trials_are_planned_again_as_they_were() -> None:
    job = load("tune", TuneJob, ["space={optim.lr: {low: 1e-4, high: 1e-2}}", "num_trials=2", "seed=3"])
    first = plan_trials(job)
    assert plan_trials(job, [trial.settings for trial in first.trials]) == first


def test_a_range_of_whole_ends_over_a_fraction_has_fractions_in_it() -> None:
    found = plan(
        "space={optim.weight_decay: {low: 0, high: 1}, train.steps: {low: 5, high: 9}}", "num_trials=4"
    )
    assert all(0 < trial.settings["optim.weight_decay"] < 1 for trial in found.trials)
    assert all(isinstance(trial.settings["train.steps"], int) for trial in found.trials)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "space is required"),
        (["space={optim.rl: [0.1]}"], "optim.rl is not a setting: did you mean optim.lr?"),
        (["space={optim.rl: {low: 0.1, high: 0.2}}", "num_trials=2"], "optim.rl is not a setting"),
        (
            ["space={optim.lr: [0.1, fast]}"],
            "the trial with optim.lr=fast is impossible: optim.lr='fast' is wrong",
        ),
        (["space={loss: [triplet, tripl]}"], "loss=tripl does not exist: choose one of"),
        (
            ["space={loss: [triplet, supcon], loss.margin: [0.1]}"],
            "the trial with loss=supcon loss.margin=0.1 is impossible: loss.margin is not a setting",
        ),
        (
            ["space={optim.lr: [0.1, -0.1]}"],
            "the trial with optim.lr=-0.1 is impossible: optim.lr=-0.1 is wrong",
        ),
        (["space={optim.lr: {low: 1e-3, high: 1e-2}}"], "num_trials is required"),
        (
            ["space={optim.lr: [0.1]}", "metric=recall_at_3"],
            "metric=recall_at_3 is not measured: choose one of",
        ),
        (["space={optim.lr: [0.1]}", "train={optim.rl: 1}"], "optim.rl is not a setting"),
        (["space={optim.lr: [0.1]}", "train={output_dir: x}"], "train: output_dir is decided by the search"),
        (["space={name: [a]}"], "space: name is decided by the search"),
        (
            ["space={checkpoint.best_metric: [map_at_r]}"],
            "space: checkpoint.best_metric is decided by .* metric=...",
        ),
        (["space={tracking: [none]}"], "space: tracking cannot differ"),
        (["space={optim.lr: [0.1]}", "scheduler=hyperband"], "scheduler='hyperband' is wrong"),
        (["space={optim.lr: [0.1]}", "grace_steps=5"], "grace_steps=5 needs scheduler=asha"),
        (["space={optim.lr: [0.1]}", "num_trials=0"], "num_trials=0 is too small"),
        (["space={optim.lr: [0.1]}", "reduction=1"], "reduction=1 is wrong"),
        (["space=nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan(*overrides)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    for text in ("[1, 2]", "a: [", "a: ${b}"):
        (tmp_path / "space.yaml").write_text(text)
        with pytest.raises(ConfigError, match="is not a YAML file of settings") as caught:
            plan(f"space={tmp_path}/space.yaml")
        assert "\n" not in str(caught.value)
