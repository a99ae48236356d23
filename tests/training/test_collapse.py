"""Runs that collapse are told so once, with what to do; healthy ones never."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmetric.distributed.replica import Replica
from distmetric.training.collapse import PATIENCE, Collapse
from distmetric.training.notices import read_notices
from processes import run_ranks
from runs import ListTracker, run_once, tiny_config

SMALL = (
    *("model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=45", "train.log_every=7"),
    *("eval.every_steps=100", "eval.resamples=0", "checkpoint.every_steps=20", "schedule.warmup_steps=5"),
)
COLLAPSES = (*SMALL, "loss=triplet_hard_margin", "model.head=linear", "optim.lr=0.03")


def measured(**changes: float) -> dict[str, float]:
    healthy = {
        "loss": 0.2,
        "active_fraction": 1.0,
        "gradient_norm": 0.1,
        "embedding_variance": 0.9,
        "embedding_norm_mean": 1.0,
    }
    return {f"train/{name}": value for name, value in (healthy | changes).items()}


def watching(cache: Path, *overrides: str) -> Collapse:
    return Collapse(tiny_config(cache, "schedule.warmup_steps=0", *overrides))


def kinds(collapse: Collapse, steps: list[dict[str, float]], first: int = 0) -> list[tuple[int, str]]:
    return [
        (step, kind)
        for step, metrics in enumerate(steps, first)
        for kind, _ in collapse.observe(step, metrics)
    ]


ONE_POINT = measured(embedding_variance=0.004)
SIGNS = {
    "one_point": (measured(), ONE_POINT, "collapse"),
    "one_point_of_any_scale": (
        measured(embedding_variance=90.0, embedding_norm_mean=10.0),
        measured(embedding_variance=0.4, embedding_norm_mean=10.0),
        "collapse",
    ),
    "the_origin": (measured(), measured(embedding_variance=1e-6, embedding_norm_mean=1e-3), "collapse"),
    "exactly_the_origin": (measured(), measured(embedding_variance=0.0, embedding_norm_mean=0.0), "collapse"),
    "no_active_term": (measured(), measured(active_fraction=0.0), "idle"),
    "no_gradient": (measured(), measured(gradient_norm=0.0), "idle"),
}


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_is_told_once_when_it_has_lasted(name: str, glyph_cache: Path) -> None:
    before, sign, kind = SIGNS[name]
    for lasts in (PATIENCE - 1, PATIENCE, 3 * PATIENCE):
        collapse = watching(glyph_cache)
        found = kinds(collapse, [before, *[sign] * lasts, before, *[sign] * lasts])
        assert found == ([(PATIENCE, kind)] if lasts >= PATIENCE else [])
        assert collapse.metrics() == {"train/collapsed": float(kind == "collapse" and lasts >= PATIENCE)}
        assert kinds(collapse, [before], 9999) == []
        assert collapse.metrics() == {"train/collapsed": 0.0}


@pytest.mark.parametrize(
    "fine",
    [
        measured(embedding_variance=0.006),
        measured(
            embedding_variance=0.004, active_fraction=0.8
        ),  # small distances that the loss is content with
        measured(embedding_variance=0.02, embedding_norm_mean=0.2),  # a scale that shrinks
        measured(active_fraction=1e-4),
        {},
    ],
)
def test_what_healthy_runs_show_is_no_sign(fine: dict[str, float], glyph_cache: Path) -> None:
    collapse = watching(glyph_cache)
    assert kinds(collapse, [measured(), *[fine] * 100]) == []
    assert collapse.metrics() == {"train/collapsed": 0.0}


def test_embeddings_may_begin_close_to_each_other(glyph_cache: Path) -> None:
    collapse = watching(glyph_cache, "schedule.warmup_steps=50")
    assert kinds(collapse, [ONE_POINT] * (50 + PATIENCE - 1)) == []
    assert kinds(collapse, [ONE_POINT], 50 + PATIENCE - 1) == [(50 + PATIENCE - 1, "collapse")]


def test_steps_that_were_left_out_neither_count_nor_interrupt(glyph_cache: Path) -> None:
    collapse = watching(glyph_cache)
    left_out = {"train/gradient_norm": 0.0}
    found = kinds(collapse, [step for _ in range(PATIENCE) for step in (ONE_POINT, left_out)])
    assert found == [(2 * PATIENCE - 2, "collapse")]


def test_it_goes_on_where_another_stood(glyph_cache: Path) -> None:
    for stop in (3, PATIENCE - 1, PATIENCE, PATIENCE + 5):
        first, second = watching(glyph_cache), watching(glyph_cache)
        found = kinds(first, [ONE_POINT] * stop)
        second.load_state_dict(first.state_dict())
        found += kinds(second, [ONE_POINT] * 50, stop)
        assert found == [(PATIENCE - 1, "collapse")]


@pytest.mark.parametrize(
    ("overrides", "told", "not_told"),
    [
        (
            ("model.head=linear",),
            ["model.head=linear_bn", "loss.strategy=batch_all", "optim.lr=0.003"],
            ["miner"],
        ),
        (
            ("loss=contrastive", "miner=batch_hard"),
            ["miner=none in place of batch_hard"],
            ["loss.strategy", "head"],
        ),
        (("sampler=hard_neighbors",), ["sampler.hard_fraction", "schedule.warmup_steps=0"], ["miner"]),
    ],
)
def test_the_advice_names_what_this_run_can_change(
    overrides: tuple[str, ...], told: list[str], not_told: list[str], glyph_cache: Path
) -> None:
    collapse = watching(glyph_cache, *overrides)
    ((_, message),) = [said for step in range(PATIENCE) for said in collapse.observe(step, ONE_POINT)]
    assert "\n" not in message
    assert all(text in message for text in told)
    assert not any(text in message for text in not_told)


def test_a_run_that_collapses_says_so_in_its_folder_and_its_metrics(
    glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *COLLAPSES)
    _, _, whole = run_once(config, tmp_path / "whole")
    (notice,) = read_notices(str(tmp_path / "whole"))
    assert notice["kind"] == "collapse"
    collapsed = whole.series("train/collapsed")
    assert collapsed == {step: float(step >= notice["step"]) for step in range(1, 46)}
    with pytest.raises(InterruptedError):
        run_once(config, tmp_path / "resumed", ListTracker(fail_at=30))
    _, _, again = run_once(config, tmp_path / "resumed")
    assert again.series("train/collapsed") == {step: value for step, value in collapsed.items() if step > 20}
    assert read_notices(str(tmp_path / "resumed")) == [notice]


def collapsing(replica: Replica, cache: Path, run_dir: Path) -> dict[int, float]:
    worker, _, _ = run_once(tiny_config(cache, *COLLAPSES), run_dir, replica=replica)
    return worker.health.state_dict()["collapse"]


def test_all_ranks_come_to_the_same_verdict(glyph_cache: Path, tmp_path: Path) -> None:
    first, second = run_ranks(2, collapsing, glyph_cache, tmp_path)
    assert first == second
    assert first["told"] == ["collapse"]
    assert [one["kind"] for one in read_notices(str(tmp_path))] == ["collapse"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=triplet_hard_margin",),
        ("loss=triplet_hard_margin", "optim.lr=0.03"),
        ("loss=multi_similarity", "model.head=linear"),
        ("loss=triplet", "loss.strategy=batch_all", "loss.margin=0.2", "model.head=linear"),
        ("loss=lifted_structure", "model.head=linear", "model.normalize=false"),
        ("loss=contrastive",),
    ],
)
def test_a_healthy_run_hears_nothing(overrides: tuple[str, ...], glyph_cache: Path, tmp_path: Path) -> None:
    _, _, tracker = run_once(tiny_config(glyph_cache, *SMALL, *overrides), tmp_path)
    assert set(tracker.series("train/collapsed").values()) == {0.0}
    assert read_notices(str(tmp_path)) == []
