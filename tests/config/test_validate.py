"""Settings that are impossible, alone or together, are told with key, value and fix."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from distmetric.config import schema as c
from distmetric.config.validate import validate
from distmetric.errors import ConfigError
from distmetric.functional.dial import Dial
from distmetric.losses.arcface import ArcFaceLossConfig
from distmetric.losses.build import CrossBatchMemoryConfig
from distmetric.losses.contrastive import ContrastiveLossConfig
from distmetric.samplers import HardNeighborSamplerConfig
from runs import default_config

CONFIG = default_config()


def changed(config: c.Config, changes: dict[str, Any]) -> c.Config:
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        new = replace(getattr(config, section), **{leaf: value}) if section else value
        config = replace(config, **{section or leaf: new})
    return config


def message_for(changes: dict[str, Any], config: c.Config = CONFIG) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(changed(config, changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_possible() -> None:
    validate(CONFIG)
    validate(replace(CONFIG, optim=c.SGDConfig()))


@pytest.mark.parametrize(
    ("key", "least"),
    [
        ("trainer.num_workers", 1),
        ("train.steps", 1),
        ("train.log_every", 1),
        ("train.max_skipped", 1),
        ("train.local_batches", 1),
        ("eval.every_steps", 1),
        ("eval.batch_size", 1),
        ("checkpoint.every_steps", 1),
        ("checkpoint.keep_last", 1),
        ("seed", 0),
        ("model.embedding_dim", 1),
        ("sampler.samples_per_class", 2),
        ("sampler.classes_per_batch", 2),
        ("schedule.warmup_steps", 0),
    ],
)
def test_whole_numbers_have_a_least_value(key: str, least: int) -> None:
    assert message_for({key: least - 1}) == f"{key}={least - 1} is too small: set it to {least} or more"
    validate(changed(CONFIG, {key: least}))


@pytest.mark.parametrize(
    ("chunk_size", "norm", "message"),
    [
        (0, "group", "train.chunk_size=0 is too small: set it to 1 or more, to auto, or to null"),
        (64, "sync_batch", r"train.chunk_size=64 with model.norm=sync_batch: .* set model.norm=group"),
        ("auto", "sync_batch", r"train.chunk_size=auto with model.norm=sync_batch: .* set model.norm=group"),
        ("auto", "batch", r"train.chunk_size=auto with model.norm=batch: .*=null or a number of rows$"),
        (1, "batch", r"train.chunk_size=1 with model.norm=batch: .* two rows or more: .*=null or more rows$"),
    ],
)
def test_chunks_go_with_norms_that_see_no_more_than_a_chunk(
    chunk_size: int | str, norm: str, message: str
) -> None:
    assert re.match(message, message_for({"train.chunk_size": chunk_size, "model.norm": norm}))
    for possible in (64, None, "auto"):
        validate(changed(CONFIG, {"train.chunk_size": possible, "model.norm": "group"}))
    validate(changed(CONFIG, {"train.chunk_size": 64, "model.norm": "batch"}))


@pytest.mark.parametrize(
    "key",
    [
        "trainer.cpus_per_worker",
        "trainer.timeout_s",
        "trainer.resize_check_s",
        "trainer.start_timeout_s",
        "optim.lr",
        "optim.clip_norm",
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_some_numbers_are_above_zero(key: str, value: float) -> None:
    assert message_for({key: value}) == f"{key}={value} is wrong: it must be above 0 and finite"


@pytest.mark.parametrize("key", ["optim.weight_decay", "optim.loss_lr_multiplier", "data.memory_limit_gib"])
@pytest.mark.parametrize("value", [-0.1, float("inf")])
def test_some_numbers_are_not_negative(key: str, value: float) -> None:
    assert message_for({key: value}) == f"{key}={value} is wrong: it must be 0 or more and finite"
    validate(changed(CONFIG, {key: 0.0}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**63}, f"seed={2**63} is too large: set it below 2**63"),
        ({"eval.ks": []}, "eval.ks=[] is wrong: give one or more numbers from 1 on"),
        ({"eval.ks": [1, 0]}, "eval.ks=[1, 0] is wrong: give one or more numbers from 1 on"),
        ({"eval.resamples": -1}, "eval.resamples=-1 is too small: set it to 0 or more"),
        ({"eval.target_far": 1.0}, "eval.target_far=1.0 is wrong: 0 < target_far < 1"),
        ({"schedule.decay_start": 1.0}, "schedule.decay_start=1.0 is wrong: 0 <= decay_start < 1"),
        ({"schedule.decay_start": -0.1}, "schedule.decay_start=-0.1 is wrong: 0 <= decay_start < 1"),
        ({"schedule.final_fraction": 0.0}, "schedule.final_fraction=0.0 is wrong: 0 < fraction <= 1"),
        (
            {"schedule.milestones": [0.5, 0.4]},
            "schedule.milestones=[0.5, 0.4] is wrong: give ascending fractions of the steps, between 0 and 1",
        ),
        (
            {"schedule.milestones": [0.5, 1.0]},
            "schedule.milestones=[0.5, 1.0] is wrong: give ascending fractions of the steps, between 0 and 1",
        ),
        (
            {"schedule.milestone_factor": 0.0},
            "schedule.milestone_factor=0.0 is wrong: 0 < milestone_factor <= 1",
        ),
        ({"schedule.final_fraction": 1.1}, "schedule.final_fraction=1.1 is wrong: 0 < fraction <= 1"),
        ({"optim.beta1": 1.0}, "optim.beta1=1.0 is wrong: 0 <= beta1 < 1"),
        ({"optim.beta2": -0.5}, "optim.beta2=-0.5 is wrong: 0 <= beta2 < 1"),
        ({"optim": c.SGDConfig(momentum=1.0)}, "optim.momentum=1.0 is wrong: 0 <= momentum < 1"),
        (
            {"checkpoint.best_metric": "recall_at_3"},
            "checkpoint.best_metric=recall_at_3 is not measured: choose one of map_at_r, r_precision, "
            "recall_at_1, recall_at_2, recall_at_4, recall_at_8",
        ),
        ({"model.channels": 3}, "model.channels=3 but glyphs are gray: set model.channels=1"),
    ],
)
def test_contradictions_are_told_with_the_fix(changes: dict[str, Any], message: str) -> None:
    assert message_for(changes) == message


def test_a_miner_needs_a_loss_that_looks_at_pairs() -> None:
    from distmetric.losses.build import WeightedPartConfig, WeightedSumLossConfig
    from distmetric.losses.centroid_bound import CentroidBoundLossConfig
    from distmetric.miners.batch_hard import BatchHardMinerConfig

    both = WeightedSumLossConfig(
        parts={
            "a": WeightedPartConfig(loss=CONFIG.loss),
            "b": WeightedPartConfig(loss=CentroidBoundLossConfig()),
        }
    )
    message = message_for({"loss": both, "miner": BatchHardMinerConfig()})
    assert message == (
        "miner=batch_hard chooses pairs, and loss.parts.b.loss.name=centroid_bound looks at none: set miner=none"
    )


def test_color_is_fine_for_catalogs_and_metrics_follow_their_ks() -> None:
    validate(changed(CONFIG, {"data": c.CatalogDataConfig(path="x"), "model.channels": 3}))
    validate(changed(CONFIG, {"eval.ks": [3], "checkpoint.best_metric": "recall_at_3"}))
    validate(changed(CONFIG, {"eval.ks": [3], "checkpoint.best_metric": "map_at_r"}))
    assert "recall_at_1 is not measured" in message_for({"eval.ks": [3]})


@pytest.mark.parametrize(
    ("classes", "samples", "workers", "fix"),
    [(64, 4, 3, 63), (2, 2, 3, 3), (10, 3, 4, 8), (3, 5, 7, 7), (2, 2, 64, 32)],
)
def test_a_batch_that_cannot_be_divided_gets_the_nearest_that_can(
    classes: int, samples: int, workers: int, fix: int
) -> None:
    changes: dict[str, Any] = {
        "sampler.classes_per_batch": classes,
        "sampler.samples_per_class": samples,
        "trainer.num_workers": workers,
    }
    assert message_for(changes) == (
        f"sampler.classes_per_batch={classes} x sampler.samples_per_class={samples} = {classes * samples} "
        f"rows cannot be divided among trainer.num_workers={workers}: set sampler.classes_per_batch={fix}"
    )
    validate(changed(CONFIG, changes | {"sampler.classes_per_batch": fix}))


@pytest.mark.parametrize(
    ("classes", "samples", "workers", "fix"),
    [(2, 2, [1, 3], [1, 2]), (3, 5, [8, 9], [7, 7]), (2, 3, [4, 4], [3, 3])],
)
def test_a_range_of_workers_needs_two_rows_for_each_and_no_equal_slices(
    classes: int, samples: int, workers: list[int], fix: list[int]
) -> None:
    changes: dict[str, Any] = {
        "sampler.classes_per_batch": classes,
        "sampler.samples_per_class": samples,
        "trainer.num_workers": workers,
    }
    assert message_for(changes) == (
        f"sampler.classes_per_batch={classes} x sampler.samples_per_class={samples} = {classes * samples} "
        f"rows cannot be divided among trainer.num_workers={workers} with two or more for each: "
        f"set trainer.num_workers={fix}"
    )
    validate(changed(CONFIG, changes | {"trainer.num_workers": fix}))


HARD = replace(CONFIG, sampler=HardNeighborSamplerConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampler.skip": 5.0, "sampler.width": Dial(start=120, end=10, end_step=50)},
            "sampler.skip and sampler.width reach to neighbor 125, but index.neighbors=100 are listed: "
            "set index.neighbors=125 or a smaller window",
        ),
        (
            {"sampler.mode": "sample", "index.positives": 2},
            "sampler.mode=sample with sampler.samples_per_class=4 asks for the 3 farthest positives, but "
            "index.positives=2 are listed: set index.positives=3",
        ),
        (
            {"index.refresh_steps": 9},
            "index.refresh_steps=9 is less than sampler.round_steps=10, and only one snapshot a round is used: "
            "set index.refresh_steps=10 or more",
        ),
    ],
)
def test_hard_batches_ask_for_no_more_than_the_index_lists(changes: dict[str, Any], message: str) -> None:
    assert message_for(changes, HARD) == message
    validate(changed(CONFIG, {key: value for key, value in changes.items() if key.startswith("index")}))


def test_a_window_without_end_is_all_that_is_listed() -> None:
    validate(changed(HARD, {"sampler.width": math.inf}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.local_batches": 7}, "sampler.classes_per_batch=64 with two or more for each: set .*=63$"),
        ({"train.local_batches": 64}, "sampler.classes_per_batch=64 with two or more for each: set .*=128$"),
        (
            {"train.local_batches": 4, "trainer.num_workers": [1, 2]},
            r"cannot be divided among trainer.num_workers=\[1, 2\]: set trainer.num_workers=1, or "
            "train.local_batches=2$",
        ),
        (
            {"train.local_batches": 2, "trainer.num_workers": 4},
            "cannot be divided among trainer.num_workers=4: set trainer.num_workers=1, or train.local_batches=4$",
        ),
        (
            {
                "train.local_batches": 2,
                "loss": CrossBatchMemoryConfig(memory_size=512, loss=ContrastiveLossConfig()),
            },
            "with loss.name=cross_batch_memory, which remembers the global batch: set one",
        ),
        (
            {"train.local_batches": 2, "loss": ArcFaceLossConfig(sharded=True)},
            "with loss.sharded=true, which needs the global batch: set one of them",
        ),
    ],
)
def test_local_batches_have_to_fit(changes: dict[str, Any], message: str) -> None:
    told = message_for(changes)
    assert told.startswith(f"train.local_batches={changes['train.local_batches']} ")
    assert re.search(message, told)


def test_local_batches_that_fit_are_fine() -> None:
    validate(changed(CONFIG, {"train.local_batches": 8, "trainer.num_workers": 4}))
