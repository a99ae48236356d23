"""A compiled trunk computes what the trunk does, and where nothing can be compiled one line says so."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import nn

from distmetric.errors import ResourceError
from distmetric.models import compiled as module
from distmetric.models.build import build_embedder
from distmetric.models.compiled import compiled
from distmetric.models.spec import ConvSpec

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile on a CPU needs g++, and there is none",
)


def outcome(forward, trunk: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    trunk.zero_grad()
    torch.manual_seed(3)
    features = forward(images)
    features.square().sum().backward()
    return [features.detach(), *(parameter.grad.clone() for parameter in trunk.parameters())]


@needs_compiler
@pytest.mark.timeout(300)
def test_values_gradients_and_random_numbers_are_the_trunks() -> None:
    trunk = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout(0.5), nn.Linear(5, 3))
    images = torch.randn(7, 6)
    ours, plain = outcome(compiled(trunk, CPU), trunk, images), outcome(trunk, trunk, images)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # parameters are looked up at every call
        trunk[3].bias += 1
    torch.testing.assert_close(outcome(trunk, trunk, images)[0], plain[0] + 1)


def test_what_cannot_be_compiled_is_one_line_with_the_fix(monkeypatch) -> None:
    monkeypatch.setattr(module, "BACKEND", "none_such")
    with pytest.raises(
        ResourceError, match=r"train.compile=true, but .*none_such.*set train.compile=false"
    ) as told:
        compiled(nn.Linear(2, 2), CPU)
    assert "\n" not in str(told.value)


def test_only_training_is_compiled_and_names_stay() -> None:
    embedder = build_embedder(ConvSpec(widths=[4, 4]), 0)
    names, calls = list(embedder.state_dict()), []

    def noted(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return embedder.trunk(images)

    embedder.use_compiled(noted)
    embedder.train()(torch.rand(3, 1, 28, 28))
    embedder.eval()(torch.rand(5, 1, 28, 28))
    assert calls == [3]
    assert list(embedder.state_dict()) == names
