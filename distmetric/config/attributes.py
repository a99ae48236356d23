"""Attributes in a configuration: which ones a batch has to carry, and whether model and losses agree about them."""

from __future__ import annotations

from collections.abc import Iterator

from distmetric.config.schema import Config
from distmetric.errors import ConfigError
from distmetric.losses.attribute_classification import AttributeClassificationLossConfig
from distmetric.losses.attribute_identity_hard import AttributeIdentityHardTripletLossConfig
from distmetric.losses.build import nested_losses

AttributeLossConfig = AttributeClassificationLossConfig | AttributeIdentityHardTripletLossConfig


def attribute_names(config: Config) -> list[str]:
    """The attributes of the catalog that a run needs: those the model predicts, then others that losses compare."""
    names = list(config.model.attributes)
    for _, part in _attribute_losses(config):
        names += part.attributes
    return list(dict.fromkeys(names))


def check_attributes(config: Config) -> None:
    """Check that losses find the attributes they name, and that every predicted one is learned.

    Raises:
        ConfigError: For the first contradiction, naming the key, its value and the fix.
    """
    predicted = config.model.attributes
    if len(set(predicted)) < len(predicted):
        raise ConfigError(f"model.attributes={predicted} names one twice: name each once")
    learned: list[str] = []
    for key, part in _attribute_losses(config):
        _check_part(key, part, config)
        if isinstance(part, AttributeClassificationLossConfig):
            learned += part.attributes or predicted
    idle = [name for name in predicted if name not in learned]
    if idle:
        raise ConfigError(
            f"model.attributes names {idle[0]!r}, which no part of the loss learns: leave it out, or add a loss "
            "attribute_classification (as loss=aitl does)"
        )


def _check_part(key: str, part: AttributeLossConfig, config: Config) -> None:
    predicted = config.model.attributes
    if not part.attributes and not predicted:
        raise ConfigError(
            f"{key}.attributes=[] means model.attributes, which is empty: name attributes there"
        )
    missing = [name for name in part.attributes if name not in predicted]
    if missing and not (isinstance(part, AttributeIdentityHardTripletLossConfig) and part.side == "labels"):
        raise ConfigError(
            f"{key}.attributes names {missing[0]!r}, which the model does not predict: add it to "
            f"model.attributes={predicted}, or choose among those"
        )
    if not isinstance(part, AttributeIdentityHardTripletLossConfig) or part.include_self:
        return
    if config.sampler.samples_per_class == 2:
        raise ConfigError(
            f"sampler.samples_per_class=2 leaves {key} nothing to compare: set 3 or more, or "
            f"{key}.include_self=true"
        )


def _attribute_losses(config: Config) -> Iterator[tuple[str, AttributeLossConfig]]:
    """The settings of every loss over attributes, at whatever depth, with its key."""
    for key, part in nested_losses(config.loss):
        if isinstance(part, AttributeLossConfig):
            yield key, part
