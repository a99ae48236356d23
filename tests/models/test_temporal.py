"""Pooling over time: the formulas as plain loops in float64, and where gradients of attributes go."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distmetric.errors import ConfigError, InputError
from distmetric.models import ConvSpec, ResNetSpec, build_embedder
from distmetric.models.embedder import Embedder
from distmetric.models.pooling import pooling_layer
from distmetric.models.temporal import AttentionOverTime, AttributeAttention, MeanOverTime, divided

VALUES = {"pose": ["back", "front", "side"], "hat": ["no", "yes"], "walk": ["left", "right", "still"]}
SPEC = ConvSpec(widths=[4, 8], embedding_dim=6, image_size=12, frames_per_clip=3, pooling="avg")
MODES = ("mean", "attention", "attribute_attention")


def maps_of(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def spatial_convolution(layer: nn.Conv2d, image: Tensor) -> list[list[list[float]]]:
    """Zero padding of half the kernel; (C, h, w) -> [out][h][w]."""
    channels, height, width = image.shape
    out, _, size, _ = layer.weight.shape
    half, bias = size // 2, layer.bias
    found = [[[0.0] * width for _ in range(height)] for _ in range(out)]
    for o in range(out):
        for y in range(height):
            for x in range(width):
                total = 0.0 if bias is None else bias[o].item()
                for c in range(channels):
                    for i in range(size):
                        for j in range(size):
                            v, u = y + i - half, x + j - half
                            if 0 <= v < height and 0 <= u < width:
                                total += layer.weight[o, c, i, j].item() * image[c, v, u].item()
                found[o][y][x] = total
    return found


def convolution_over_time(layer: nn.Conv1d, rows: list[list[float]]) -> list[list[float]]:
    """rows[t][channel] -> [t][out], zeros before and after."""
    out, channels, size = layer.weight.shape
    found = []
    for t in range(len(rows)):
        line = []
        for o in range(out):
            total = layer.bias[o].item()
            for k in range(size):
                at = t + k - size // 2
                if 0 <= at < len(rows):
                    total += sum(layer.weight[o, c, k].item() * rows[at][c] for c in range(channels))
            line.append(total)
        found.append(line)
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_mean_is_the_mean_of_the_frames() -> None:
    maps = maps_of(2, 3, 4, 2, 5)
    found = MeanOverTime(pooling_layer("avg"))(maps)
    for b in range(2):
        for f in range(4):
            expected = (
                sum(maps[b, t, f, y, x].item() for t in range(3) for y in range(2) for x in range(5)) / 30
            )
            assert found[b, f].item() == pytest.approx(expected, abs=1e-12)


def test_attention_weighs_frames_by_what_they_and_their_neighbors_show() -> None:
    maps = maps_of(2, 4, 3, 2, 2)
    layer = AttentionOverTime(pooling_layer("avg"), 3, hidden=5).double()
    found = layer(maps)
    weights = layer.weights(maps.mean((3, 4)))
    for b in range(2):
        vectors = [[maps[b, t, f].mean().item() for f in range(3)] for t in range(4)]
        hidden = [
            [
                max(
                    0.0,
                    layer.reduce.bias[h].item()
                    + sum(layer.reduce.weight[h, f].item() * v[f] for f in range(3)),
                )
                for h in range(5)
            ]
            for v in vectors
        ]
        scores = [line[0] for line in convolution_over_time(layer.score, hidden)]
        total = sum(math.exp(s) for s in scores)
        expected = [math.exp(s) / total for s in scores]
        assert weights[b].tolist() == pytest.approx(expected, abs=1e-12)
        for f in range(3):
            assert found[b, f].item() == pytest.approx(
                sum(w * v[f] for w, v in zip(expected, vectors, strict=True))
            )
    assert layer.weights(maps[:, :1].mean((3, 4))).tolist() == [[1.0], [1.0]]


def recognized(recognizer: nn.Module, maps: Tensor) -> tuple[list, list[float]]:
    """Attention [t][y][x] and logits of one clip (T, F, h, w), in evaluation mode."""
    reduce, norm, _, one_map = recognizer.spatial
    frames, features, height, width = maps.shape
    seen = []
    for t in range(frames):
        hidden = torch.tensor(spatial_convolution(reduce, maps[t]), dtype=torch.float64)
        for c in range(len(hidden)):
            scale = norm.weight[c] / (norm.running_var[c] + norm.eps).sqrt()
            hidden[c] = ((hidden[c] - norm.running_mean[c]) * scale + norm.bias[c]).clamp(min=0)
        (image,) = spatial_convolution(one_map, hidden)
        seen.append([value for line in image for value in line])
    along = convolution_over_time(recognizer.temporal, seen)
    attention = [
        [[sigmoid(line[y * width + x]) for x in range(width)] for y in range(height)] for line in along
    ]
    pooled = []
    for f in range(features):
        total = 0.0
        for t in range(frames):
            for y in range(height):
                for x in range(width):
                    total += attention[t][y][x] * maps[t, f, y, x].item()
        pooled.append(max(0.0, total / (frames * height * width)))
    linear = recognizer.classify
    logits = [
        linear.bias[o].item() + sum(linear.weight[o, f].item() * pooled[f] for f in range(features))
        for o in range(len(linear.bias))
    ]
    return attention, logits


def attribute_attention(**more: bool) -> AttributeAttention:
    groups = divided(VALUES, [["walk", "pose"], ["hat"]])
    layer = AttributeAttention(pooling_layer("avg"), (5, 2, 3), 5, groups, **more).double()
    with torch.no_grad():
        for name, buffer in layer.named_buffers():
            if buffer.is_floating_point():  # so that normalization in evaluation mode does something
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else 0))
    return layer


def test_attribute_attention_is_the_formula_of_the_paper() -> None:
    maps, layer = maps_of(2, 4, 5, 2, 3), attribute_attention().eval()
    found = layer(maps)
    logits = layer.logits(found)
    assert found.shape == (2, (1 + 2 * 2) * 5)
    assert layer.width == 15
    for b in range(2):
        own = [
            [[sigmoid(value) for value in line] for line in spatial_convolution(layer.spatial, maps[b, t])[0]]
            for t in range(4)
        ]
        known = [recognized(each, maps[b]) for each in layer.recognizers]
        for place, attention in enumerate([None, *(a for a, _ in known)]):
            for f in range(5):
                total = 0.0
                for t in range(4):
                    for y in range(2):
                        for x in range(3):
                            weight = own[t][y][x] * (1.0 if attention is None else attention[t][y][x])
                            total += weight * maps[b, t, f, y, x].item()
                assert found[b, 5 * place + f].item() == pytest.approx(total / 24, abs=1e-12)
        of_first, of_second = known[0][1], known[1][1]
        assert logits["walk"][b].tolist() == pytest.approx(of_first[:3], abs=1e-12)
        assert logits["pose"][b].tolist() == pytest.approx(of_first[3:], abs=1e-12)
        assert logits["hat"][b].tolist() == pytest.approx(of_second, abs=1e-12)


def test_attributes_never_train_the_trunk_and_identities_train_the_attention() -> None:
    maps = maps_of(3, 4, 5, 2, 3).requires_grad_()
    layer = attribute_attention()
    found = layer(maps)
    logits = layer.logits(found)
    sum(part.square().sum() for part in logits.values()).backward(retain_graph=True)
    assert maps.grad.count_nonzero() == layer.spatial.weight.grad.count_nonzero() == 0
    assert all(each.classify.weight.grad.abs().sum() > 0 for each in layer.recognizers)
    layer.zero_grad()
    maps.grad = None
    found[:, : layer.width].square().sum().backward()
    assert maps.grad.abs().sum() > 0
    assert layer.spatial.weight.grad.abs().sum() > 0
    assert all(each.temporal.weight.grad.abs().sum() > 0 for each in layer.recognizers)
    assert all(each.classify.weight.grad is None for each in layer.recognizers)


def test_not_detached_attributes_train_the_trunk() -> None:
    maps = maps_of(3, 4, 5, 2, 3).requires_grad_()
    layer = attribute_attention(detached=False)
    layer.logits(layer(maps))["hat"].sum().backward()
    assert maps.grad.abs().sum() > 0


def spec_of(mode: str, **more: object) -> ConvSpec:
    groups = {"attribute_groups": [["pose"], ["hat"]]} if mode == "attribute_attention" else {}
    return replace(SPEC, temporal=mode, attributes=["hat", "pose"], **groups, **more)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten"])
def test_every_trunk_and_pooling_takes_clips_and_trains_all_parameters(mode: str, pooling: str) -> None:
    resnet = ResNetSpec(
        widths=[4, 8],
        blocks_per_stage=[1, 1],
        **{
            key: getattr(spec_of(mode, pooling=pooling), key)
            for key in (
                "embedding_dim",
                "image_size",
                "frames_per_clip",
                "pooling",
                "temporal",
                "attributes",
                "attribute_groups",
            )
        },
    )
    for spec in (spec_of(mode, pooling=pooling), resnet):
        model = build_embedder(spec, 0, attribute_values=VALUES)
        clips = torch.randint(256, (4, 3, 1, 12, 12), dtype=torch.uint8)
        embeddings, logits = model(clips, with_attributes=True)
        assert embeddings.shape == (4, 6)
        assert {name: part.shape[1] for name, part in logits.items()} == {"hat": 2, "pose": 3}
        assert list(logits) == ["hat", "pose"]
        (embeddings @ torch.randn(6, 1)).sum().backward(retain_graph=True)
        sum(part.square().sum() for part in logits.values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("mode", MODES)
def test_frames_go_through_the_trunk_as_images(mode: str) -> None:
    model = build_embedder(spec_of(mode), 0, attribute_values=VALUES).double().eval()
    clips = torch.rand(2, 3, 1, 12, 12, dtype=torch.float64)
    maps = torch.stack([model.trunk(model._standardize(clip)) for clip in clips])
    torch.testing.assert_close(model.features(clips), model.pooling(maps))
    if mode == "mean":
        torch.testing.assert_close(model.features(clips), maps.mean((1, 3, 4)))
    for clip, whole in zip(clips, model(clips), strict=True):
        torch.testing.assert_close(model(clip[None])[0], whole)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_a_clip_of_one_frame(mode: str) -> None:
    model = build_embedder(spec_of(mode), 0, attribute_values=VALUES).eval()
    images = torch.rand(3, 1, 12, 12)
    assert torch.equal(model(images), model(images[:, None]))
    with pytest.raises(
        InputError, match=r"shape \(1, 12, 12\), but the model takes clips \(batch, frames, 1, height"
    ):
        model(images[0])


def test_a_model_of_images_refuses_clips() -> None:
    model = build_embedder(replace(SPEC, frames_per_clip=None), 0)
    with pytest.raises(InputError, match=r"the model takes \(batch, 1, height, width\)"):
        model(torch.rand(2, 3, 1, 12, 12))


def test_trunks_that_give_vectors_attend_over_time() -> None:
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(16, 7))
    model = Embedder(
        *(trunk, "avg", 5),
        image_shape=(1, 4, 4),
        attribute_values={"hat": ["no", "yes"]},
        temporal="attribute_attention",
    )
    embeddings, logits = model(torch.rand(3, 4, 1, 4, 4), with_attributes=True)
    assert embeddings.shape == (3, 5)
    assert logits["hat"].shape == (3, 2)


@pytest.mark.parametrize(
    "groups", [[["pose"]], [["pose", "hat"], ["hat"]], [["pose", "hat"], []], [["pose", "hut"]]]
)
def test_groups_that_do_not_divide_the_attributes_are_one_line(groups: list[list[str]]) -> None:
    with pytest.raises(
        ConfigError, match=r"model.attribute_groups=.* must divide model.attributes=\['hat', 'pose'\]"
    ):
        build_embedder(
            replace(spec_of("attribute_attention"), attribute_groups=groups), 0, attribute_values=VALUES
        )


def test_models_of_images_have_the_state_that_they_had() -> None:
    names = set(
        build_embedder(
            replace(spec_of("mean"), frames_per_clip=None), 0, attribute_values=VALUES
        ).state_dict()
    )
    clips = set(build_embedder(spec_of("mean"), 0, attribute_values=VALUES).state_dict())
    assert names == clips
    assert not any("pooling" in name for name in names)
