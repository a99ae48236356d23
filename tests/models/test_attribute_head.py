"""Predicted attributes: logits beside embeddings, from weights that the seed fixes, and where their gradient goes."""

from __future__ import annotations

import pytest
import torch

from distmetric.errors import ConfigError
from distmetric.models import ConvSpec, ResNetSpec, build_embedder

VALUES = {"hat": ["no", "yes"], "pose": ["back", "front", "side"], "keys": ["one"]}
SPEC = ConvSpec(widths=[4, 8], embedding_dim=6, attributes=["pose", "hat"])


def test_logits_are_by_name_in_the_order_of_the_values() -> None:
    model = build_embedder(SPEC, 0, attribute_values=VALUES)
    images = torch.rand(5, 1, 28, 28)
    embeddings, logits = model(images, with_attributes=True)
    assert {name: tuple(part.shape) for name, part in logits.items()} == {"pose": (5, 3), "hat": (5, 2)}
    assert model.attribute_values == {"pose": ["back", "front", "side"], "hat": ["no", "yes"]}
    features = model.trunk(model._standardize(images)).flatten(1)
    expected = torch.nn.functional.linear(
        features, model.attribute_head.weight[:3], model.attribute_head.bias[:3]
    )
    torch.testing.assert_close(logits["pose"], expected)
    assert torch.equal(embeddings, model(images))


def test_without_attributes_the_dict_is_empty_and_no_parameter_is_there_for_it() -> None:
    model = build_embedder(ConvSpec(widths=[4], embedding_dim=6), 0, attribute_values=VALUES)
    _, logits = model(torch.rand(2, 1, 28, 28), with_attributes=True)
    assert logits == {}
    assert not any("attribute" in name for name in model.state_dict())


@pytest.mark.parametrize("spec", [SPEC, ResNetSpec(widths=[4], blocks_per_stage=[1], attributes=["pose"])])
def test_weights_depend_on_the_seed_alone_and_leave_those_of_the_others_as_they_were(spec) -> None:
    model, twin, other = (build_embedder(spec, seed, attribute_values=VALUES) for seed in (7, 7, 8))
    head, of_twin, of_other = (m.attribute_head.weight for m in (model, twin, other))
    assert torch.equal(head, of_twin)
    assert not torch.equal(head, of_other)
    plain = build_embedder(type(spec)(**{**vars(spec), "attributes": []}), 7)
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


@pytest.mark.parametrize("detached", [True, False])
def test_the_gradient_reaches_the_trunk_unless_detached(detached: bool) -> None:
    spec = ConvSpec(widths=[4], embedding_dim=6, attributes=["hat"], attributes_detached=detached)
    model = build_embedder(spec, 0, attribute_values=VALUES)
    _, logits = model(torch.rand(3, 1, 28, 28), with_attributes=True)
    logits["hat"][:, 0].sum().backward()
    reached = {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached == {"attribute_head"} if detached else {"attribute_head", "trunk"}


def test_logits_are_float32_under_autocast_and_float64_in_a_float64_model() -> None:
    model = build_embedder(SPEC, 0, attribute_values=VALUES)
    with torch.autocast("cpu", torch.bfloat16):
        _, logits = model(torch.rand(3, 1, 28, 28), with_attributes=True)
    assert {part.dtype for part in logits.values()} == {torch.float32}
    _, logits = model.double()(torch.rand(3, 1, 28, 28), with_attributes=True)
    assert {part.dtype for part in logits.values()} == {torch.float64}


def test_values_that_are_not_known_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="names 'pose', whose values are not known: choose among hat, or"):
        build_embedder(SPEC, 0, attribute_values={"hat": ["no", "yes"]})
    with pytest.raises(ConfigError, match="choose among none"):
        build_embedder(SPEC, 0)
