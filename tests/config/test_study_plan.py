"""Plans of studies: every arm in every variant with every seed, all possible, or nothing starts."""

from __future__ import annotations

import pytest

from distmetric.config.compose import compose, groups, load
from distmetric.config.decode import leaves
from distmetric.config.jobs import StudyJob
from distmetric.config.study_plan import StudyPlan, StudyRun, plan_study
from distmetric.errors import ConfigError


def plan(*overrides: str) -> StudyPlan:
    return plan_study(load("study", StudyJob, ["study=custom", *overrides]))


def test_every_arm_meets_every_variant_and_seed_seeds_outermost() -> None:
    found = plan(
        "study.arms={plain: {}, wide: {model.widths: [8, 8]}}",
        "study.variants={soft: {loss: triplet}, hard: {loss: triplet_hard_margin, optim.lr: 0.5}}",
        "study.seeds=[3, 4]",
        "study.train={debug: tiny, optim.lr: 0.25}",
        "train={optim.weight_decay: 0.125}",
    )
    assert [(run.arm, run.variant, run.seed) for run in found.runs] == [
        (arm, variant, seed) for seed in (3, 4) for variant in ("soft", "hard") for arm in ("plain", "wide")
    ]
    assert found.runs[3] == StudyRun("trial_003", "wide", "hard", 3)
    for run, trial in zip(found.runs, found.trials.trials, strict=True):
        values = leaves(trial.config)
        assert trial.name == run.trial
        assert values["seed"] == run.seed
        assert values["optim.weight_decay"] == 0.125
        assert values["optim.lr"] == (0.5 if run.variant == "hard" else 0.25)  # what is shared gives way
        assert values["loss.margin"] == ("soft" if run.variant == "soft" else 0.2)
        assert (values["model.widths"] == [8, 8]) == (run.arm == "wide")
        assert trial.config == compose("config", [*found.trials.shared, *trial.overrides])


def test_what_is_given_for_all_runs_wins_over_the_study_and_may_come_from_a_file(tmp_path) -> None:
    (tmp_path / "train.yaml").write_text("optim:\n  lr: 0.5\n")
    found = plan("study.arms={a: {}}", "study.train={optim.lr: 0.25}", f"train={tmp_path}/train.yaml")
    assert found.job.train == {"optim": {"lr": 0.5}}  # not the file, which may change
    assert all(leaves(trial.config)["optim.lr"] == 0.5 for trial in found.trials.trials)


@pytest.mark.parametrize("name", [name for name in groups()["study"] if name != "custom"])
def test_the_studies_that_come_along_are_possible(name: str) -> None:
    job = load("study", StudyJob, [f"study={name}", "study.seeds=[0]", "allow_custom_targets=true"])
    found = plan_study(job)
    assert len(found.runs) == len(job.study.arms) * max(1, len(job.study.variants))
    assert job.study.baseline in {None, *job.study.arms}
    seen = [
        trial.config["train"]["steps"]
        * trial.config["sampler"]["classes_per_batch"]
        * trial.config["sampler"]["samples_per_class"]
        for trial in found.trials.trials
    ]
    assert max(seen) <= 1.02 * min(seen)  # of images: what is compared must not have seen more


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "study=custom has no arms: choose another study, or give"),
        (
            ["study.arms={a: {optim.rl: 1}}"],
            "the trial with optim.rl=1 seed=0 is impossible",
        ),
        (["study.arms={a: {seed: 1}}"], r"study.arms.a: seed is decided by the study: give study.seeds"),
        (["study.arms={a: {}}", "train={seed: 1}"], "train: seed is decided by the study"),
        (["study.arms={a: {}}", "study.variants={b: {seed: 1}}"], "study.variants.b: seed is decided"),
        (["study.arms={a: {}}", "study.seeds=[]"], "study: seeds is empty"),
        (
            ["study.arms={a: {}}", "study.seeds=[1,1]"],
            r"study: seeds=\[1, 1\] is wrong: give each of them once",
        ),
        (["study.arms={a: {}}", "study.seeds=[-1]"], "study: seeds=-1 is too small"),
        (
            ["study.arms={a: {}}", "study.baseline=b"],
            "study: baseline=b is none of the arms: choose one of a",
        ),
        (["study.arms={a: {}}", "study.measures=[]"], "study: measures is empty"),
        (["study.arms={a: {output_dir: x}}"], "study.arms.a: output_dir is decided by the study"),
        (["study.arms={a: {}}", "concurrent=0"], "concurrent=0 is too small"),
        (["study.arms={a: {}}", "metric=accuracy"], "metric=accuracy is not measured"),
        (["study.arms={a: {}}", "train=nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan(*overrides)
    assert "\n" not in str(caught.value)
