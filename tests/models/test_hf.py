import json
import sys
from importlib.util import find_spec

import pytest
import torch

from distmetric.errors import ConfigError, ResourceError
from distmetric.models import TransformersSpec, build_embedder
from distmetric.models.hf import TransformersTrunk

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny random models on disk, as `save_pretrained` leaves them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vit = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4)
    transformers.ViTModel(vit).save_pretrained(root / "vit")
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(resnet).half().save_pretrained(root / "resnet")
    convnext = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=32)
    transformers.ConvNextModel(convnext).save_pretrained(root / "convnext")
    siglip = transformers.SiglipVisionConfig(**SMALL, image_size=16, patch_size=4)
    transformers.SiglipVisionModel(siglip).save_pretrained(root / "siglip")
    swin = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=16, patch_size=4, window_size=2
    )
    transformers.SwinModel(swin).save_pretrained(root / "swin")
    processor = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 2, 3],
        "crop_size": {"height": 32, "width": 32},
    }
    (root / "resnet" / "preprocessor_config.json").write_text(
        json.dumps(processor | {"size": {"shortest_edge": 40}})
    )
    return root


def spec(path, **options) -> TransformersSpec:
    settings = {"embedding_dim": 6, "image_size": 16, "local_files_only": True}
    return TransformersSpec(model=str(path), **(settings | options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {}),
        ("vit", {"token": "mean", "image_size": 28, "channels": 1}),
        ("vit", {"resize_to": 0, "image_size": 24}),
        ("vit", {"pretrained": False}),
        ("resnet", {"pooling": "gem", "norm": "sync_batch"}),
        ("resnet", {"pooling": "flatten", "resize_to": 0, "channels": 1}),
        ("convnext", {}),
        ("siglip", {"token": "mean"}),
        ("swin", {"token": "mean"}),
    ],
)
def test_every_family_embeds_and_all_learned_parameters_get_gradients(folder, name, options):
    model = build_embedder(spec(folder / name, **options), 3)
    size, channels = options.get("image_size", 16), options.get("channels", 3)
    embeddings = model(torch.rand(2, channels, size, size))
    assert embeddings.shape == (2, 6)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    (embeddings * torch.randn(2, 6)).sum().backward()
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in learned if p.grad is None] == []
    assert all(p.dtype == torch.float32 for _, p in learned)


def test_pretrained_weights_are_loaded_and_fresh_ones_follow_the_seed(folder):
    def vector(seed, **options):
        return build_embedder(spec(folder / "vit", **options), seed).trunk.eval()(torch.ones(1, 3, 16, 16))

    saved = transformers.ViTModel.from_pretrained(folder / "vit").eval()
    expected = saved(pixel_values=torch.ones(1, 3, 16, 16)).last_hidden_state
    torch.testing.assert_close(vector(0), expected[:, 0])
    torch.testing.assert_close(vector(1, token="mean"), expected[:, 1:].mean(1))
    assert torch.equal(vector(5, pretrained=False), vector(5, pretrained=False))
    assert not torch.equal(vector(5, pretrained=False), vector(6, pretrained=False))


def test_preprocessing_comes_from_the_processor_then_the_config_then_imagenet(folder):
    resnet = build_embedder(spec(folder / "resnet"), 0)
    assert resnet.image_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert resnet.image_std.flatten().tolist() == [1, 2, 3]
    assert resnet.trunk.side == 32
    vit = TransformersTrunk(str(folder / "vit"), local_files_only=True, image_size=(16, 16))
    assert vit.preprocessing.side == 16
    assert vit.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    own = build_embedder(spec(folder / "vit", image_mean=[0.5], image_std=[0.5]), 0)
    assert own.image_mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_gray_images_equal_their_rgb_copies(folder):
    model = build_embedder(spec(folder / "convnext", channels=1), 0).eval()
    gray = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(model(gray), model(gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("siglip", {}, "has no class token: set model.token=mean"),
        ("nowhere", {}, "nowhere cannot be loaded: "),
        ("vit", {"head": "none"}, "embedding_dim=16"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(folder, name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_embedder(spec(folder / name, **options), 0)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceError, match=r"pip install 'distmetric\[hf\]'") as caught:
        build_embedder(spec("anything"), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    find_spec("torchvision") is not None, reason="transformers itself imports it where it is installed"
)
def test_torchvision_stays_out(folder):
    build_embedder(spec(folder / "resnet"), 0)
    assert "torchvision" not in sys.modules
