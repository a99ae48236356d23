import copy
import itertools

import pytest
import torch
from torch import nn

from distmetric.errors import ConfigError, InputError
from distmetric.functional.distances import unit_length
from distmetric.models.conv import ConvTrunk
from distmetric.models.embedder import Embedder
from distmetric.models.pooling import GeMPool
from distmetric.models.resnet import SmallResNet

POOLINGS = ["avg", "max", "gem", "flatten"]


def trunks(channels: int = 1) -> dict[str, nn.Module]:
    return {
        "conv": ConvTrunk(channels, (4, 8), norm="group"),
        "conv_open": ConvTrunk(channels, (4, 8), pool_last=False),
        "resnet": SmallResNet(channels, (4, 8), (1, 1)),
    }


@pytest.mark.parametrize(
    ("trunk", "pooling", "head"),
    list(itertools.product(trunks(), POOLINGS, ["linear_bn", "linear", "mlp", "none"])),
)
def test_shape_norm_and_gradients_for_every_combination(trunk, pooling, head):
    module = trunks()[trunk]
    width = module(torch.rand(2, 1, 8, 8)).flatten(1).shape[1] if pooling == "flatten" else 8
    dim = width if head == "none" else 5
    model = Embedder(module, pooling, dim, head=head, image_shape=(1, 8, 8))
    embeddings = model(torch.rand(3, 1, 8, 8))
    assert embeddings.shape == (3, model.embedding_dim) == (3, dim)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    (embeddings * torch.randn(3, dim)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(p.grad.abs().sum() for p in model.parameters()) > 0


def test_float64_model_gives_float64():
    model = Embedder(ConvTrunk(1, (4, 8)), "gem", 5).double()
    assert model(torch.rand(2, 1, 8, 8)).dtype == torch.float64
    norms = model(torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_autocast_gives_float32_of_length_one(pooling, norm):
    model = Embedder(SmallResNet(3, (8, 8), (1, 1), norm), pooling, 16, image_shape=(3, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model(torch.rand(4, 3, 8, 8))
        embeddings.sum().backward()
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_bytes_equal_floats_and_gray_is_repeated():
    model = Embedder(ConvTrunk(3, (4, 8)), "avg", 5, image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3]).eval()
    gray = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model(gray), model(gray.expand(-1, 3, -1, -1).float() / 255))


def test_standardization_uses_mean_and_deviation():
    model = Embedder(nn.Flatten(), "avg", 12, False, "none", [0.5, 0.1, 0.2], [0.5, 2.0, 1.0], (3, 2, 2))
    images = torch.rand(2, 3, 2, 2)
    expected = (images - torch.tensor([0.5, 0.1, 0.2]).view(3, 1, 1)) / torch.tensor([0.5, 2, 1]).view(
        3, 1, 1
    )
    torch.testing.assert_close(model(images), expected.flatten(1))


def test_zero_rows_stay_zero_and_pass_no_gradient():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    unit = unit_length(rows)
    unit.sum().backward()
    torch.testing.assert_close(unit.detach(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert torch.equal(rows.grad[0], torch.zeros(2))
    assert rows.grad[1].isfinite().all()


def test_rows_that_are_no_numbers_are_not_taken_for_rows_of_zeros():
    unit = unit_length(torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [3.0, 4.0]]))
    assert unit.isfinite().all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("trunk", [ConvTrunk(1, (8, 12), "group"), SmallResNet(1, (8, 12), (1, 2), "group")])
def test_group_norm_does_not_see_the_rest_of_the_batch(trunk):
    model = Embedder(trunk.double(), "avg", 6, head="linear").double()
    images = torch.rand(6, 1, 12, 12)
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=1e-12, atol=1e-12)


def test_generalized_mean_lies_between_average_and_maximum():
    features = torch.rand(2, 3, 4, 5).double() + 0.01
    torch.testing.assert_close(GeMPool(1.0).double()(features), features.mean((2, 3)))
    torch.testing.assert_close(GeMPool(1e4)(features), features.amax((2, 3)), rtol=1e-3, atol=0)
    cubic = features.pow(3).mean((2, 3)).pow(1 / 3)
    torch.testing.assert_close(GeMPool()(features), cubic)
    assert GeMPool()(-features.float()).isfinite().all()
    pool = GeMPool().double()
    assert torch.autograd.gradcheck(pool, features.requires_grad_())
    pool(features).sum().backward()
    assert pool.p.grad.abs() > 0


def test_state_dict_round_trip():
    model = Embedder(SmallResNet(1, (4, 8), (1, 1)), "gem", 5, image_mean=[0.3])
    model(torch.rand(4, 1, 8, 8))
    other = Embedder(SmallResNet(1, (4, 8), (1, 1)), "gem", 5)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.eval()(images), other.eval()(images))


def test_fresh_residual_branches_are_silent():
    trunk = SmallResNet(1, (4,), (3,)).eval()
    images = torch.rand(1, 1, 6, 6)
    torch.testing.assert_close(trunk(images), torch.relu(trunk.stem(images)))


def test_no_idle_pooling_parameter_beside_a_trunk_that_gives_vectors():
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    model = Embedder(trunk, "gem", 5, image_shape=(1, 4, 4))
    assert not isinstance(model.pooling, GeMPool)
    assert model(torch.rand(2, 1, 4, 4)).shape == (2, 5)


def test_dry_run_leaves_mode_and_statistics_alone():
    trunk = ConvTrunk(1, (4,))
    trunk.blocks[0][1].eval()
    Embedder(trunk, "flatten", 5, image_shape=(1, 8, 8))
    assert trunk.training
    assert not trunk.blocks[0][1].training
    assert trunk.blocks[0][1].num_batches_tracked == 0


class Wordy(nn.Module):
    def forward(self, images):
        return {"features": images}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Embedder(ConvTrunk(1, (8,)), "avg", 5, head="none"), "embedding_dim=8 or"),
        (lambda: Embedder(ConvTrunk(1, (8,)), image_mean=[0.5, 0.5]), "equally long"),
        (lambda: Embedder(ConvTrunk(1, (8,)), image_std=[0.0]), "positive"),
        (lambda: Embedder(ConvTrunk(1, (8,)), "flatten"), "image_shape"),
        (lambda: Embedder(Wordy(), image_shape=(1, 4, 4)), "Wordy gives dict"),
        (lambda: Embedder(nn.Linear(3, 3), image_shape=(1, 4, 4)), "Linear fails on an image"),
        (lambda: ConvTrunk(1, ()), "widths is empty"),
        (lambda: SmallResNet(1, (4, 8), (1,)), "equally long"),
        (
            lambda: Embedder(ConvTrunk(1, (8,)), image_shape=(1, 8, 8))(torch.rand(1, 3, 8, 8)),
            r"takes \(batch, 1, height",
        ),
        (lambda: Embedder(ConvTrunk(1, (8,)))(torch.rand(1, 8, 8)), "shape"),
        (lambda: Embedder(ConvTrunk(1, (8,)))(torch.ones(1, 1, 8, 8).long()), "int64"),
    ],
)
def test_wrong_use_is_one_clear_line(build, message):
    with pytest.raises((ConfigError, InputError), match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
