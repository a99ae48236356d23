"""Model and losses must agree about attributes; a contradiction is one line with key, value and fix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distmetric.config.attributes import attribute_names
from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.errors import ConfigError
from distmetric.losses import AttributeClassificationLossConfig as Learns
from distmetric.losses import AttributeIdentityHardTripletLossConfig as Compares
from runs import default_config

CONFIG = default_config()


def config_with(loss: Any, attributes: list[str], samples_per_class: int = 4) -> Config:
    return replace(
        CONFIG,
        loss=loss,
        model=replace(CONFIG.model, attributes=attributes),
        sampler=replace(CONFIG.sampler, samples_per_class=samples_per_class),
    )


def test_the_recipe_of_conf_is_consistent_for_the_glyphs_and_for_names_of_ones_own() -> None:
    config = decode(Config, compose("config", ["loss=aitl"]))
    validate(config)
    assert attribute_names(config) == ["serif", "mono", "bold", "italic"]
    own = ["model.attributes=[pose,hat]", "loss.parts.irrelevant.loss.attributes=[pose]"]
    config = decode(
        Config, compose("config", ["loss=aitl", *own, "loss.parts.relevant.loss.attributes=[hat]"])
    )
    validate(config)
    assert attribute_names(config) == ["pose", "hat"]


def test_names_in_parts_of_a_loss_are_looked_for_and_named_with_their_key() -> None:
    config = decode(Config, compose("config", ["loss=aitl", "loss.parts.relevant.loss.attributes=[hat]"]))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert str(caught.value) == (
        "loss.parts.relevant.loss.attributes names 'hat', which the model does not predict: add it to "
        "model.attributes=['serif', 'mono', 'bold', 'italic'], or choose among those"
    )


def test_true_values_are_compared_without_being_predicted() -> None:
    config = config_with(Compares(side="labels", attributes=["hat"]), [])
    validate(config)
    assert attribute_names(config) == ["hat"]


@pytest.mark.parametrize(
    ("loss", "attributes", "message"),
    [
        (
            CONFIG.loss,
            ["hat"],
            "model.attributes names 'hat', which no part of the loss learns: leave it out",
        ),
        (Learns(attributes=["hat"]), ["hat", "pose"], "names 'pose', which no part of the loss learns"),
        (Compares(), ["hat"], "names 'hat', which no part of the loss learns"),
        (Learns(attributes=["hat"]), [], "loss.attributes names 'hat', which the model does not predict"),
        (Compares(attributes=["hat"]), [], "loss.attributes names 'hat', which the model does not predict"),
        (Learns(), [], r"loss.attributes=\[\] means model.attributes, which is empty"),
        (Compares(side="labels"), [], r"loss.attributes=\[\] means model.attributes, which is empty"),
        (Learns(), ["hat", "hat"], "names one twice"),
    ],
)
def test_contradictions_are_told_with_the_fix(loss: Any, attributes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(config_with(loss, attributes))
    assert "\n" not in str(caught.value)


def test_two_images_of_a_class_leave_nothing_to_compare() -> None:
    loss = Compares(side="labels", attributes=["hat"])
    with pytest.raises(ConfigError, match=r"sampler\.samples_per_class=2 leaves loss nothing to compare"):
        validate(config_with(loss, [], samples_per_class=2))
    validate(config_with(replace(loss, include_self=True), [], samples_per_class=2))
