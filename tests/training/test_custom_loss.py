"""Losses of others in our loop: what our losses of the same names learn, and only where code of others is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmetric.config.compose import load
from distmetric.config.jobs import StudyJob
from distmetric.config.study_plan import plan_study
from distmetric.config.training import load_config
from distmetric.config.validate import validate
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError
from processes import run_ranks
from runs import LOSS_OF_OTHERS, run_once, tiny_config

STEPS = 12
PEERS = load("study", StudyJob, ["study=peers", "study.seeds=[0]", "allow_custom_targets=true"])
NAMES = sorted({arm.partition(",")[0] for arm in PEERS.study.arms})
SUPCON = LOSS_OF_OTHERS[0]


def losses_of(cache: Path, folder: Path, *overrides: str, replica: Replica | None = None) -> list[float]:
    short = (f"train.steps={STEPS}", f"eval.every_steps={STEPS}", f"checkpoint.every_steps={STEPS}")
    config = tiny_config(cache, *overrides, *short, "train.log_every=1", "allow_custom_targets=true")
    _, _, tracker = run_once(config, folder, replica=replica)
    return list(tracker.series("train/loss").values())


def arm(name: str) -> list[str]:
    plan = plan_study(PEERS)
    found = next(trial for run, trial in zip(plan.runs, plan.trials.trials, strict=True) if run.arm == name)
    return [text for text in found.overrides if text.startswith(("loss", "model"))]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_the_same_name_learns_the_same(name: str, glyph_cache: Path, tmp_path: Path) -> None:
    ours = losses_of(glyph_cache, tmp_path / "ours", *arm(f"{name}, ours"))
    theirs = losses_of(glyph_cache, tmp_path / "theirs", *arm(f"{name}, PML"))
    assert len(ours) == STEPS
    assert theirs == pytest.approx(ours, rel=1e-3)


def test_two_ranks_learn_what_one_process_does(glyph_cache: Path, tmp_path: Path) -> None:
    settings = ("loss=custom", SUPCON, "miner=batch_hard", "train.precision=float64", "model.norm=sync_batch")

    def of_rank(replica: Replica) -> list[float]:
        return losses_of(glyph_cache, tmp_path / "two", *settings, replica=replica)

    alone = losses_of(glyph_cache, tmp_path / "one", *settings)
    assert run_ranks(2, of_rank)[0] == pytest.approx(alone, rel=1e-9)


def test_code_of_others_is_refused_before_it_is_imported(glyph_cache: Path, tmp_path: Path) -> None:
    refusal = (
        "loss.target=losses_of_others.Loss is code outside this package, which would be imported and run: "
        "set allow_custom_targets=true if you trust it"
    )
    settings = ("loss=custom", "loss.target=losses_of_others.Loss")
    with pytest.raises(ConfigError) as caught:
        validate(load_config([*settings, "tracking=none"]))
    assert str(caught.value) == refusal
    with pytest.raises(ConfigError) as caught:  # whoever comes around validate meets it again
        run_once(tiny_config(glyph_cache, *settings), tmp_path)
    assert str(caught.value) == refusal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("loss.target=torch.nn.nothing",), "loss.target=torch.nn.nothing: torch.nn has no nothing"),
        (("loss.target=os.getcwd",), "loss.target=os.getcwd gave a str instead of a torch.nn.Module"),
        (
            (SUPCON, "loss.kwargs={heat: 1}"),
            "loss.target=pytorch_metric_learning.losses.SupConLoss cannot be built with these loss.kwargs: ",
        ),
    ],
)
def test_a_target_that_is_no_loss_is_told_in_one_line(
    settings: tuple[str, ...], message: str, glyph_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        losses_of(glyph_cache, tmp_path, "loss=custom", *settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_inside_another_loss_it_would_see_a_share_of_the_batch_and_is_refused() -> None:
    inner = ("loss=weighted_sum", "loss@loss.parts.triplet.loss=custom", f"loss.parts.triplet.{SUPCON}")
    with pytest.raises(ConfigError, match=r"^loss\.parts\.triplet\.loss\.name=custom is a loss of others"):
        validate(load_config([*inner, "tracking=none", "allow_custom_targets=true"]))
