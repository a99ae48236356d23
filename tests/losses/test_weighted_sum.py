"""Weighted sums of losses: each part as it would be alone, by configuration, through checkpoints and resumption."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.errors import ConfigError
from distmetric.functional import JointBatch
from distmetric.losses import (
    ContrastiveLoss,
    ContrastiveLossConfig,
    CrossBatchMemory,
    LiftedStructureLoss,
    MetricLoss,
    TripletLoss,
    TripletLossConfig,
    WeightedPartConfig,
    WeightedSumLoss,
    WeightedSumLossConfig,
    build_loss,
)
from distmetric.losses.build import LossContext, nested_losses
from distmetric.training.saved_model import config_dict
from runs import final_state, run_once, tiny_config


def test_every_part_keeps_its_normalization_distance_and_reduction() -> None:
    rows, labels = 3 * torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    parts: list[tuple[float, MetricLoss]] = [
        (2.0, TripletLoss(0.2, normalize_embeddings=False)),
        (0.25, ContrastiveLoss(distance="cosine", reduction="sum")),
        (-1.0, LiftedStructureLoss(reduction="nonzero_mean")),
        (0.5, WeightedSumLoss({"inner": (4.0, TripletLoss("soft", normalize_embeddings=True))})),
    ]
    whole, alone = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    value = WeightedSumLoss({f"part{i}": part for i, part in enumerate(parts)})(whole, labels)
    expected = sum(weight * loss(alone, labels) for weight, loss in parts)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(whole.grad, alone.grad)


def test_terms_lie_side_by_side_with_their_weights() -> None:
    loss = WeightedSumLoss(
        {"far": (0.5, ContrastiveLoss()), "near": (3.0, WeightedSumLoss({"x": (2.0, TripletLoss())}))}
    )
    batch = JointBatch.alone(torch.randn(6, 3), torch.arange(6) % 2)
    assert [term.weight for term in loss.parts(batch)] == [0.5, 0.5, 6.0]
    loss.weights["far"] = 0.0
    assert [term.weight for term in loss.parts(batch)] == [0.0, 0.0, 6.0]


def test_parts_hear_the_step_and_tell_their_measurements() -> None:
    memory = CrossBatchMemory(ContrastiveLoss(), 3, 8, start_step=10)
    loss = WeightedSumLoss(
        {"batch": (1.0, TripletLoss()), "memory": (1.0, WeightedSumLoss({"xbm": (1.0, memory)}))}
    )
    loss.set_step(9)
    rows, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    before, at_start = (float(loss.parts(JointBatch.alone(rows, labels))[1].num_terms) for _ in range(2))
    assert (before, at_start) == (4, 12)
    told = loss.metrics()
    assert told.keys() == {"memory/xbm/memory_drift", "memory/xbm/memory_fill"}
    assert told["memory/xbm/memory_fill"].item() == 1.0


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "items", "training"])
def test_a_name_that_cannot_be_a_modules_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a part"):
        WeightedSumLoss({name: (1.0, TripletLoss())})


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="parts is empty"):
        WeightedSumLoss({})
    with pytest.raises(ValueError, match="weight=nan"):
        WeightedSumLoss({"a": (float("nan"), TripletLoss())})
    with pytest.raises(ValueError, match="part 'a' is a Identity"):
        WeightedSumLoss({"a": (1.0, nn.Identity())})  # type: ignore[dict-item]


def loss_of(*overrides: str) -> Config:
    return decode(Config, compose("config", ["loss=weighted_sum", *overrides]))


def test_parts_are_composed_overridden_added_and_left_out_by_configuration() -> None:
    whole = WeightedSumLossConfig(
        parts={
            "triplet": WeightedPartConfig(loss=TripletLossConfig()),
            "contrastive": WeightedPartConfig(weight=0.5, loss=ContrastiveLossConfig()),
        }
    )
    assert loss_of().loss == whole
    changed = loss_of("loss.parts.triplet.weight=0.25", "loss.parts.triplet.loss.margin=0.3").loss
    assert changed.parts["triplet"] == WeightedPartConfig(weight=0.25, loss=TripletLossConfig(margin=0.3))
    swapped = loss_of("loss@loss.parts.contrastive.loss=triplet_hard_margin").loss
    assert swapped.parts["contrastive"] == WeightedPartConfig(weight=0.5, loss=TripletLossConfig(margin=0.2))
    other = loss_of("~loss.parts.contrastive", "+loss.parts.far.loss.name=contrastive").loss
    assert other.parts == {
        "triplet": whole.parts["triplet"],
        "far": WeightedPartConfig(loss=ContrastiveLossConfig()),
    }
    nested = loss_of("loss@loss.parts.contrastive.loss=cross_batch_memory").loss
    assert [(key, part.name) for key, part in nested_losses(nested)] == [
        ("loss", "weighted_sum"),
        ("loss.parts.triplet.loss", "triplet"),
        ("loss.parts.contrastive.loss", "cross_batch_memory"),
        ("loss.parts.contrastive.loss.loss", "contrastive"),
    ]
    loss = build_loss(nested, LossContext([4, 4], 8))
    assert isinstance(loss, WeightedSumLoss)
    assert loss.weights == {"triplet": 1.0, "contrastive": 0.5}
    assert isinstance(loss.losses["contrastive"], CrossBatchMemory)
    assert [part.normalize_embeddings for part in loss.modules() if isinstance(part, MetricLoss)] == [
        False
    ] * 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.parts.triplet.loss.margin=-1", 'loss.parts.triplet.loss: margin=-1.0 is wrong: give a number from 0'),
        ("loss.parts.triplet.loss.margin=hard", "loss.parts.triplet.loss.margin='hard' is wrong: it must be a number"),
        ("loss.parts.triplet.loss.margn=1", "loss.parts.triplet.loss.margn is not a setting: did you mean loss.parts."),
        ("loss.parts.tripet.weight=1", "loss.parts.tripet.weight is not a setting: did you mean loss.parts.triplet.w"),
        ("loss.parts.triplet.weight=big", "loss.parts.triplet.weight='big' is wrong: it must be a number"),
        ("loss.parts.triplet=3", "loss.parts.triplet=3 is wrong: it must be a group of settings"),
        ("loss.parts.triplet.loss.name=x", "loss.parts.triplet.loss.name='x' is wrong: it must be one of "),
        ("+loss.parts.far.weight=1", "loss.parts.far.loss is required: give it as loss.parts.far.loss=..."),
        ("~loss.parts", "loss.parts is required: give it as loss.parts=..."),
        ("+loss.parts.items.loss.name=triplet", "loss: 'items' cannot be the name of a part"),
        ("loss.parts.triplet.weight=inf", "loss: part 'triplet' has weight=inf: give a finite number"),
    ],
)  # fmt: skip
def test_mistakes_inside_parts_are_told_with_their_full_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loss_of(override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_memory_inside_a_part_has_to_hold_the_batch() -> None:
    config = loss_of(
        "loss@loss.parts.contrastive.loss=cross_batch_memory", "loss.parts.contrastive.loss.memory_size=9"
    )
    with pytest.raises(ConfigError, match=r"^loss\.parts\.contrastive\.loss\.memory_size=9 is too small"):
        validate(config)


OVERRIDES = (
    "loss=weighted_sum",
    "loss@loss.parts.contrastive.loss=cross_batch_memory",
    "model.widths=[8, 8]",
)


def test_training_with_a_memory_among_the_parts_resumes_where_it_was(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, "train.log_every=3", *OVERRIDES)
    assert decode(Config, json.loads(json.dumps(config_dict(config)))) == config
    whole, tracker = final_state(config, tmp_path / "whole")
    resumed, replayed = final_state(config, tmp_path / "resumed", fail_at=14)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    losses = tracker.series("train/loss")
    assert replayed.series("train/loss") == {step: loss for step, loss in losses.items() if step > 10}
    assert tracker.series("train/contrastive/memory_fill")[1] == 32 / 1024


def test_a_sum_learns_without_collapse(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, "loss=weighted_sum", "train.steps=60", "eval.every_steps=30")
    _, _, tracker = run_once(config, tmp_path)
    losses, gaps = tracker.series("train/loss"), tracker.series("train/hardest_gap")
    # The contrastive part is a mean over pairs that still count, which fall slower than their number does.
    assert np.mean([losses[s] for s in range(51, 61)]) < 0.97 * np.mean([losses[s] for s in range(1, 11)])
    assert tracker.series("eval/recall_at_1")[60] > 0.6
    assert gaps[60] > gaps[1]
