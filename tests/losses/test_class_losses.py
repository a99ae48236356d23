"""Losses with learned vectors of classes: METHODS' numbers, miners' weights, ranks, extreme angles and exponents."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import nn

from distmetric.distributed import DistributedLoss, Replica, average_gradients
from distmetric.functional import distances
from distmetric.functional.class_rows import ClassScores
from distmetric.losses import (
    ArcFaceLoss,
    ArcFaceLossConfig,
    CosFaceLoss,
    CosFaceLossConfig,
    ProxyAnchorLoss,
    ProxyAnchorLossConfig,
    ProxyNCALoss,
    ProxyNCALossConfig,
    SoftTripleLoss,
    SoftTripleLossConfig,
    build_loss,
)
from distmetric.losses.build import LossContext
from distmetric.losses.class_loss import ClassLoss
from losses.cases import copy_weight
from processes import run_ranks

ROOT = Path(__file__).parents[2]
LOSSES = {
    "soft_triple": lambda c, d: SoftTripleLoss(c, d, tau=0.0),
    "arcface": ArcFaceLoss,
    "cosface": CosFaceLoss,
    "proxy_nca": ProxyNCALoss,
    "proxy_anchor": ProxyAnchorLoss,
}
PML = {
    "soft_triple": pml_losses.SoftTripleLoss,
    "arcface": pml_losses.ArcFaceLoss,
    "cosface": pml_losses.CosFaceLoss,
    "proxy_nca": pml_losses.ProxyNCALoss,
    "proxy_anchor": pml_losses.ProxyAnchorLoss,
}
EVERY = pytest.mark.parametrize("name", LOSSES)
# METHODS [E4]: one embedding of class 0, two centers for each of two classes.
E4 = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
E4_CENTERS = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]]


def with_weight(loss: ClassLoss, rows: list[list[float]] | torch.Tensor) -> ClassLoss:
    loss.double()
    loss.weight.data = torch.as_tensor(rows, dtype=torch.float64).clone()
    return loss


def made(name: str, num_classes: int, dim: int) -> ClassLoss:
    torch.manual_seed(7)
    return LOSSES[name](num_classes, dim).double()


def counterpart(name: str, ours: ClassLoss) -> nn.Module:
    theirs = PML[name](ours.num_classes, ours.embedding_size).double()
    copy_weight(ours, theirs)
    return theirs


def gradients(loss: nn.Module, embeddings: torch.Tensor, *args: object) -> tuple[torch.Tensor, ...]:
    embeddings = embeddings.clone().requires_grad_()
    ((name, parameter),) = loss.named_parameters()
    parameter.grad = None
    value = loss(embeddings, *args)
    value.backward()
    assert embeddings.grad is not None
    assert parameter.grad is not None
    # pytorch-metric-learning keeps the vectors of some losses as columns.
    return value.detach(), embeddings.grad, parameter.grad.T if name in ("W", "fc") else parameter.grad


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"tau": 0.0}, 3.897312),
        ({"tau": 0.0, "assignment": "hard"}, 3.432828),
        ({}, 4.062891),
        ({"assignment": "hard", "tau": 1.0}, 3.432828 + 0.827895),
    ],
    ids=str,
)
def test_published_values_of_soft_triple(settings: dict[str, object], value: float) -> None:
    loss = with_weight(SoftTripleLoss(2, 2, 2, **settings), E4_CENTERS)
    assert loss(E4, torch.tensor([0])).item() == pytest.approx(value, abs=1.5e-6)


def test_published_similarities_of_soft_triple_and_their_derivative() -> None:
    scores = ClassScores(20.0, 2, 0.1)
    similarities = (torch.tensor(E4_CENTERS, dtype=torch.float64) @ E4[0]).view(2, 2)
    assert scores.of_listed(similarities).tolist() == pytest.approx([0.776159, 0.96], abs=1e-6)
    listed = torch.tensor([[0.9, 0.6]], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(scores.of_listed(listed).sum(), listed)
    assert derivative[0].tolist() == pytest.approx([1.088104, -0.088104], abs=1e-6)


TRIPLETS = [[0, 0, 3, 5, 5, 5], [1, 2, 4, 6, 7, 1], [9, 9, 8, 0, 1, 9]]
PAIRS = [[0, 0, 3], [1, 2, 4], [5, 6, 6, 5], [0, 1, 9, 9]]


@EVERY
@pytest.mark.parametrize("chosen", [TRIPLETS, PAIRS, [[], [], []]], ids=["triplets", "pairs", "nothing"])
def test_what_a_miner_has_chosen_weighs_rows_as_in_pytorch_metric_learning(name: str, chosen) -> None:
    ours = made(name, 6, 4)
    embeddings, labels = torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 5
    indices = tuple(torch.tensor(part, dtype=torch.int64) for part in chosen)
    found = gradients(ours, embeddings, labels, indices)
    expected = gradients(counterpart(name, ours), embeddings, labels, indices)
    for of_ours, of_theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(of_ours, of_theirs, rtol=1e-9, atol=1e-12)
    if chosen[0]:
        assert not torch.allclose(found[0], ours(embeddings, labels))


MINERS = {"pairs": pml_miners.MultiSimilarityMiner, "triplets": pml_miners.TripletMarginMiner}


def joint_data(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(13, 4, dtype=torch.float64, generator=generator), torch.arange(13) % num_classes


def rank_steps(
    replica: Replica, sizes: list[int], num_classes: int
) -> dict[tuple[str, str], tuple[np.ndarray, ...]]:
    embeddings, labels = joint_data(num_classes)
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    results = {}
    for name in LOSSES:
        for kind, miner in MINERS.items():
            criterion = DistributedLoss(made(name, num_classes, 4), replica, miner())
            rows = embeddings[own].clone().requires_grad_()
            value = criterion(rows, labels[own])
            value.backward()
            average_gradients(criterion.parameters(), replica)
            (parameter,) = criterion.parameters()
            # The mean over ranks that DDP takes is the sum of the ranks' shares divided by their number.
            results[name, kind] = (
                value.detach().numpy(),
                rows.grad.numpy() / replica.world_size,
                parameter.grad.numpy(),
            )
    return results


@pytest.mark.parametrize("num_classes", [5, 2])
@pytest.mark.parametrize("sizes", [[13], [12, 1], [0, 6, 7]], ids=str)
def test_miners_weights_and_shares_of_proxies_are_those_of_one_process(
    sizes: list[int], num_classes: int
) -> None:
    embeddings, labels = joint_data(num_classes)
    ranks = run_ranks(len(sizes), rank_steps, sizes, num_classes)
    for name in LOSSES:
        for kind, miner in MINERS.items():
            indices = miner()(embeddings, labels)
            expected = gradients(made(name, num_classes, 4), embeddings, labels, indices)
            of_rows = np.concatenate([result[name, kind][1] for result in ranks])
            np.testing.assert_allclose(of_rows, expected[1], rtol=0, atol=1e-11, err_msg=name)
            for result in ranks:
                np.testing.assert_allclose(result[name, kind][0], expected[0], rtol=1e-12, err_msg=name)
                np.testing.assert_allclose(
                    result[name, kind][2], expected[2], rtol=0, atol=1e-11, err_msg=name
                )


@pytest.mark.parametrize("margin", [28.6, 90.0, 150.0])
def test_arcface_beyond_half_a_turn_is_that_of_pytorch_metric_learning(margin: float) -> None:
    angles = torch.linspace(0.05, math.pi - 0.05, 40, dtype=torch.float64)
    embeddings, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.zeros(40, dtype=torch.int64)
    ours = with_weight(ArcFaceLoss(2, 2, margin), [[1.0, 0.0], [0.6, 0.8]])
    theirs = pml_losses.ArcFaceLoss(2, 2, margin=margin).double()
    copy_weight(ours, theirs)
    assert (angles > math.pi - math.radians(margin)).any()
    expected = gradients(theirs, embeddings, labels)
    for of_ours, of_theirs in zip(gradients(ours, embeddings, labels), expected, strict=True):
        torch.testing.assert_close(of_ours, of_theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arcface_is_finite_where_an_anchor_meets_its_vector_or_the_opposite(dtype: torch.dtype) -> None:
    rows = torch.randn(6, 8, dtype=dtype)
    loss = ArcFaceLoss(6, 8).to(dtype)
    loss.weight.data = rows.clone()
    for embeddings in (rows, -rows, rows + 1e-7 * torch.randn(6, 8, dtype=dtype)):
        value, of_rows, of_vectors = gradients(loss, embeddings, torch.arange(6))
        assert value.isfinite()
        # An angle turns by at most 1 / |x| per step, so no term's gradient is longer than 2 s / |x|.
        assert (6 * of_rows.norm(dim=1) * rows.norm(dim=1)).max() < 128
        assert of_vectors.isfinite().all()


def test_arcface_sees_small_angles_in_float32() -> None:
    angle = 1e-3
    embeddings = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    vectors = [[1.0, 0.0], [math.cos(0.4), math.sin(0.4)]]
    exact = gradients(with_weight(ArcFaceLoss(2, 2), vectors), embeddings, torch.tensor([0]))
    rounded = gradients(
        with_weight(ArcFaceLoss(2, 2), vectors).float(), embeddings.float(), torch.tensor([0])
    )
    for ours, theirs in zip(rounded, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=1e-6)


def test_margins_of_arcface_are_degrees_and_the_sum_is_the_mean_times_the_rows() -> None:
    embeddings, labels = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    plain, turned = made("arcface", 3, 4), made("arcface", 3, 4)
    plain.margin, turned.margin = 0.0, 180.0
    cosface = made("cosface", 3, 4)
    cosface.margin = 0.0
    torch.testing.assert_close(plain(embeddings, labels), cosface(embeddings, labels))
    # Half a turn is beyond the limit for all angles above 0, and cos - pi sin(pi) is the cosine itself.
    torch.testing.assert_close(turned(embeddings, labels), plain(embeddings, labels))
    summed = ArcFaceLoss(3, 4, 0.0, reduction="sum").double()
    summed.load_state_dict(plain.state_dict())
    torch.testing.assert_close(summed(embeddings, labels), 8 * plain(embeddings, labels))


def test_terms_that_are_over_leave_the_nonzero_mean() -> None:
    loss = with_weight(CosFaceLoss(2, 2, 0.0, reduction="nonzero_mean"), [[1.0, 0.0], [0.0, 1.0]])
    hard, easy = [0.0, 1.0], [1.0, 0.0]
    alone = loss(torch.tensor([hard], dtype=torch.float64), torch.tensor([0]))
    both = loss(torch.tensor([hard, easy, easy], dtype=torch.float64), torch.tensor([0, 0, 0]))
    assert alone.item() == pytest.approx(64.0)
    torch.testing.assert_close(both, alone)


@EVERY
def test_a_single_class_has_nothing_to_be_told_from(name: str) -> None:
    loss, embeddings = made(name, 1, 4), torch.randn(5, 4, dtype=torch.float64)
    value, of_rows, of_vectors = gradients(loss, embeddings, torch.zeros(5, dtype=torch.int64))
    assert of_vectors.isfinite().all()
    if name == "proxy_anchor":
        assert value > 0  # its proxy still pulls
    else:
        assert value == 0
        assert not of_rows.any()


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_centers_that_coincide_share_the_gradient_of_one(assignment: str) -> None:
    one = with_weight(SoftTripleLoss(2, 2, 1, assignment=assignment, tau=0.0), [[1.0, 0.2], [0.1, 1.0]])
    two = with_weight(
        SoftTripleLoss(2, 2, 2, assignment=assignment, tau=0.5),
        [[1.0, 0.2], [1.0, 0.2], [0.1, 1.0], [0.1, 1.0]],
    )
    embeddings, labels = torch.randn(6, 2, dtype=torch.float64), torch.arange(6) % 2
    value, of_rows, of_vectors = gradients(one, embeddings, labels)
    doubled, of_same_rows, of_pairs = gradients(two, embeddings, labels)
    torch.testing.assert_close(doubled, value)  # centers at distance 0 add nothing to the regularizer
    torch.testing.assert_close(of_same_rows, of_rows)
    torch.testing.assert_close(of_pairs, of_vectors.repeat_interleave(2, 0) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponents_of_any_size_are_in_range(dtype: torch.dtype) -> None:
    embeddings, labels = torch.randn(20, 6, dtype=torch.float64).to(dtype), torch.arange(20) % 5
    torch.manual_seed(1)
    hard = SoftTripleLoss(5, 6, 3, 1e4, assignment="hard").to(dtype)
    soft = SoftTripleLoss(5, 6, 3, 1e4, gamma=1e-6).to(dtype)
    soft.load_state_dict(hard.state_dict())
    for ours, theirs in zip(
        gradients(soft, embeddings, labels), gradients(hard, embeddings, labels), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    proxies = ProxyAnchorLoss(5, 6, alpha=1e4).to(dtype)
    assert all(part.isfinite().all() for part in gradients(proxies, embeddings, labels))


def test_a_vector_of_zeros_has_no_direction_and_no_gradient() -> None:
    loss = with_weight(ArcFaceLoss(3, 2), [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    value, _, of_vectors = gradients(loss, torch.randn(6, 2, dtype=torch.float64), torch.arange(6) % 3)
    assert value.isfinite()
    assert of_vectors.isfinite().all()
    assert not of_vectors[0].any()


def test_vectors_start_about_as_long_as_one() -> None:
    lengths = ArcFaceLoss(500, 64).weight.norm(dim=1)
    assert 0.9 < lengths.mean() < 1.1


@EVERY
def test_what_does_not_fit_is_refused(name: str) -> None:
    loss, embeddings = made(name, 3, 4), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="labels go from 0 to 3, but the loss was made with num_classes=3"):
        loss(embeddings, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels go from -1 to 0"):
        loss(embeddings, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="length 5, but the loss was made with embedding_size=4"):
        loss(torch.randn(2, 5), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="takes no ref_emb"):
        loss(embeddings, torch.tensor([0, 1]), ref_emb=embeddings, ref_labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="num_classes=0 is wrong"):
        LOSSES[name](0, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftTripleLossConfig(tau=-0.1), "tau=-0.1"),
        (lambda: SoftTripleLossConfig(gamma=0.0), "gamma=0.0"),
        (lambda: SoftTripleLossConfig(centers_per_class=0), "centers_per_class=0"),
        (lambda: SoftTripleLoss(2, 2, assignment="firm"), "assignment='firm' is not known"),
        (lambda: ArcFaceLossConfig(margin=200.0), "margin=200.0 is wrong: give degrees"),
        (lambda: ArcFaceLossConfig(scale=-1.0), "scale=-1.0"),
        (lambda: CosFaceLossConfig(scale=math.inf), "scale=inf"),
        (lambda: ProxyNCALossConfig(softmax_scale=0.0), "softmax_scale=0.0"),
        (lambda: ProxyAnchorLossConfig(alpha=0.0), "alpha=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (
            SoftTripleLossConfig(),
            "SoftTripleLoss(num_classes=3, embedding_size=4, centers_per_class=10, la=20.0, ",
        ),
        (SoftTripleLossConfig(assignment="hard"), "assignment='hard')"),
        (ArcFaceLossConfig(), "ArcFaceLoss(num_classes=3, embedding_size=4, margin=28.6, scale=64.0)"),
        (CosFaceLossConfig(), "CosFaceLoss(num_classes=3, embedding_size=4, margin=0.35, scale=64.0)"),
        (
            ProxyNCALossConfig(softmax_scale=9.0),
            "ProxyNCALoss(num_classes=3, embedding_size=4, softmax_scale=9.0)",
        ),
        (ProxyAnchorLossConfig(), "ProxyAnchorLoss(num_classes=3, embedding_size=4, margin=0.1, alpha=32.0)"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_configurations_build_their_loss_for_the_classes_of_the_data(config, shown: str) -> None:
    assert shown in repr(build_loss(config, LossContext(class_counts=[5, 2, 2], embedding_size=4)))


def test_class_vectors_depend_on_the_seed_alone() -> None:
    def drawn(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        weight = build_loss(ArcFaceLossConfig(), LossContext([5, 2, 2], 4, seed)).weight
        assert torch.equal(torch.get_rng_state(), before)
        return weight.detach()

    assert torch.equal(drawn(3, 0), drawn(3, 1))
    assert not torch.equal(drawn(3, 0), drawn(4, 0))


@pytest.mark.parametrize("wanted", [True, False], ids=["gradient", "value"])
def test_tiles_of_one_class_and_one_row_are_the_whole(wanted: bool, monkeypatch) -> None:
    loss, embeddings, labels = (
        made("soft_triple", 7, 3),
        torch.randn(9, 3, dtype=torch.float64),
        torch.arange(9) % 7,
    )
    expected = gradients(loss, embeddings, labels)
    monkeypatch.setitem(distances.BLOCK_BYTES, "cpu", 1)
    monkeypatch.setattr(distances, "MIN_BLOCK_ROWS", 1)
    if not wanted:
        with torch.no_grad():
            torch.testing.assert_close(loss(embeddings, labels), expected[0])
        return
    for ours, theirs in zip(gradients(loss, embeddings, labels), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


MEMORY = """
import resource, torch
from distmetric.losses import SoftTripleLoss
torch.set_num_threads(1)
loss = SoftTripleLoss(4096, 32)
embeddings = torch.randn(2048, 32).requires_grad_()
labels = torch.arange(2048)
loss(embeddings[:1], labels[:1]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss(embeddings, labels).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_grows_with_embeddings_plus_centers_and_not_with_their_product() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60  # one float32 matrix of 2048 x 40960 would be 320 MiB
