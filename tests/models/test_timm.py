import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distmetric.errors import ConfigError, ResourceError
from distmetric.models import TimmSpec, build_embedder


class Net(nn.Module):
    """What timm's models look like from outside."""

    def __init__(self, layout: str):
        super().__init__()
        self.layout = layout
        self.num_features = 8
        self.num_prefix_tokens = int(layout == "tokens")
        self.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "input_size": (3, 16, 16)}
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.unused = nn.Linear(2, 2)

    def forward_features(self, images):
        features = self.norm(self.conv(images))
        if self.layout == "channels_last":
            return features.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            tokens = features.flatten(2).transpose(1, 2)
            return torch.cat([tokens.sum(1, keepdim=True), tokens], 1)
        return features


@pytest.fixture
def timm(monkeypatch):
    def create_model(name, pretrained, num_classes):
        assert num_classes == 0
        if name == "pickled":
            torch.load(monkeypatch.weights, weights_only=False)  # as timm reads files of weights
        if name not in ("map", "channels_last", "tokens"):
            raise RuntimeError(f"Unknown model\n({name})")
        return Net(name)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))


@pytest.mark.parametrize("name", ["map", "channels_last", "tokens"])
def test_all_layouts_embed(timm, name):
    model = build_embedder(TimmSpec(model=name, embedding_dim=6, pretrained=False, norm="sync_batch"), 0)
    assert model(torch.rand(2, 3, 20, 20)).shape == (2, 6)
    assert model.trunk(torch.rand(2, 3, 16, 16)).shape == ((2, 8) if name == "tokens" else (2, 8, 4, 4))
    assert model.image_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not model.trunk.model.unused.weight.requires_grad


def test_token_choice(timm):
    cls, mean = (build_embedder(TimmSpec(model="tokens", token=token), 0) for token in ("cls", "mean"))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(cls.trunk(images), mean.trunk(images) * 16)


def test_unknown_model_is_one_line(timm):
    with pytest.raises(ConfigError, match="nothing cannot be loaded: Unknown model") as caught:
        build_embedder(TimmSpec(model="nothing"), 0)
    assert "\n" not in str(caught.value)


def test_missing_timm_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ResourceError, match="needs torchvision") as caught:
        build_embedder(TimmSpec(), 0)
    assert "\n" not in str(caught.value)


class Payload:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_a_file_of_weights_is_not_run(timm, tmp_path, monkeypatch):
    torch.save({"weight": Payload(tmp_path / "run")}, tmp_path / "weights.pt")
    monkeypatch.weights = tmp_path / "weights.pt"
    with pytest.raises(ConfigError, match=r"^model.model=pickled cannot be loaded: Weights only load failed"):
        build_embedder(TimmSpec(model="pickled"), 0)
    assert not (tmp_path / "run").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)["weight"].close()
    assert (tmp_path / "run").exists(), "it would have been run"
