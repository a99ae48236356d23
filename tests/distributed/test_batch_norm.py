import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distmetric.distributed.batch_norm import SyncBatchNorm2d, convert_sync_batchnorm
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError
from processes import run_ranks

EXACT = {"rtol": 1e-12, "atol": 1e-12}
RAGGED = [4, 1, 0]
ALONE = Replica()


def packed(result: Any) -> bytes:
    """Tensors in bytes: those of a process that is gone cannot be read from its shared memory."""
    buffer = io.BytesIO()
    torch.save(result, buffer)
    return buffer.getvalue()


def on_ranks(world_size: int, fn, *args) -> list:
    return [torch.load(io.BytesIO(result)) for result in run_ranks(world_size, fn, *args)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    ).double()
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return net


def batch(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = 3 + 2 * torch.randn(sum(sizes), 2, 5, 6, generator=generator, dtype=torch.float64)
    return images, torch.randn(sum(sizes), 4, 3, 4, generator=generator, dtype=torch.float64)


def train_one_rank(replica: Replica, sizes: list[int]) -> bytes:
    images, weights = (part.split(sizes)[replica.rank] for part in batch(sizes))
    images = images.clone().requires_grad_()
    net = convert_sync_batchnorm(network(), replica)
    ddp = DistributedDataParallel(net, broadcast_buffers=False)
    out = ddp(images)
    share = (weights * out.sin()).sum()
    (share * replica.world_size / sum(sizes)).backward()
    return packed(report(net, images, out))


def report(net: nn.Module, images: torch.Tensor, out: torch.Tensor) -> dict:
    return {
        "out": out.detach(),
        "images": images.grad,
        "params": {name: p.grad for name, p in net.named_parameters()},
        "buffers": dict(net.named_buffers()),
    }


def train_alone(sizes: list[int]) -> dict:
    images, weights = batch(sizes)
    images = images.clone().requires_grad_()
    net = network()
    out = net(images)
    ((weights * out.sin()).sum() / sum(sizes)).backward()
    return report(net, images, out)


@pytest.mark.parametrize("sizes", [[3, 3], [5, 2], RAGGED])
def test_ranks_equal_one_process_on_the_joint_batch(sizes):
    ranks, alone = on_ranks(len(sizes), train_one_rank, sizes), train_alone(sizes)
    torch.testing.assert_close(torch.cat([r["out"] for r in ranks]), alone["out"], **EXACT)
    # Each rank holds the gradient of the sum of the rank losses, which is W times the joint loss.
    joint = torch.cat([r["images"] for r in ranks]) / len(sizes)
    torch.testing.assert_close(joint, alone["images"], **EXACT)
    for rank in ranks:
        torch.testing.assert_close(rank["params"], alone["params"], **EXACT)
        torch.testing.assert_close(rank["buffers"], alone["buffers"], **EXACT)
        for name, buffer in rank["buffers"].items():
            assert torch.equal(buffer, ranks[0]["buffers"][name])


def float32_variance(replica: Replica) -> float:
    norm = SyncBatchNorm2d(1, replica, momentum=1.0)
    norm(10_000 + far_from_zero().chunk(2)[replica.rank])
    return norm.running_var.item()


def far_from_zero() -> torch.Tensor:
    return torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(2))


def test_variance_survives_a_mean_that_is_large_in_float32():
    joint = (10_000 + far_from_zero()).double()
    for var in run_ranks(2, float32_variance):
        assert var == pytest.approx(joint.var().item(), rel=1e-5)


def half_and_options(replica: Replica) -> bytes:
    half = SyncBatchNorm2d(2, replica)
    x = torch.arange(48.0).reshape(4, 2, 2, 3).bfloat16()[replica.rank :: 2].requires_grad_()
    out = half(x)
    out.float().square().sum().backward()
    bare = SyncBatchNorm2d(2, replica, affine=False, track_running_stats=False).double()
    plain = SyncBatchNorm2d(2, replica, momentum=None).double()
    values = torch.arange(48.0).double().reshape(4, 2, 2, 3)[replica.rank :: 2]
    for step in range(3):
        plain(values * (step + 1))
    frozen = SyncBatchNorm2d(2, replica).double()
    frozen(values).sum().backward()
    return packed(
        {
            "half": (out.dtype, x.grad.dtype, half.weight.grad.dtype),
            "bare": bare(values),
            "plain": plain.running_var,
            "evaluated": plain.eval()(values).detach(),
            "bias": frozen.bias.grad,
        }
    )


def test_half_precision_no_affine_and_cumulative_average():
    ranks = on_ranks(2, half_and_options)
    joint = torch.arange(48.0).double().reshape(4, 2, 2, 3)
    reference = nn.BatchNorm2d(2, momentum=None).double()
    for step in range(3):
        reference(joint * (step + 1))
    bare = nn.BatchNorm2d(2, affine=False, track_running_stats=False).double()(joint)
    reference.eval()
    for i, rank in enumerate(ranks):
        assert rank["half"] == (torch.bfloat16, torch.bfloat16, torch.float32)
        torch.testing.assert_close(rank["bare"], bare[i::2], **EXACT)
        torch.testing.assert_close(rank["plain"], reference.running_var, **EXACT)
        torch.testing.assert_close(rank["evaluated"], reference(joint[i::2]).detach(), **EXACT)
        torch.testing.assert_close(rank["bias"], torch.full((2,), 12.0).double(), **EXACT)


def test_alone_it_is_plain_batch_norm():
    images, _ = batch([4])
    net = network()
    converted = convert_sync_batchnorm(copy.deepcopy(net), ALONE)
    assert torch.equal(net(images), converted(images))
    assert torch.equal(net.eval()(images), converted.eval()(images))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), converted.buffers(), strict=True))


def test_conversion_keeps_parameters_keys_mode_and_sharing():
    shared = nn.BatchNorm2d(2)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(nn.BatchNorm2d(2, affine=False).eval()))
    before, keys = dict(net.named_parameters()), list(net.state_dict())
    converted = convert_sync_batchnorm(net, Replica(rank=0, world_size=2))
    assert converted is net
    assert converted[0] is converted[2]
    assert type(converted[0]) is SyncBatchNorm2d
    assert list(converted.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in converted.named_parameters())
    assert not converted[3][0].training
    assert converted[0].training
    assert type(convert_sync_batchnorm(shared, ALONE)) is SyncBatchNorm2d


def test_a_batch_norm_that_would_stay_local_is_refused_in_one_line():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert convert_sync_batchnorm(net, ALONE) is net
    with pytest.raises(ConfigError, match=r"BatchNorm1d at '1' cannot") as caught:
        convert_sync_batchnorm(net, Replica(rank=0, world_size=2))
    assert "\n" not in str(caught.value)
