"""Multi-similarity, SupCon, NT-Xent, circle and N-pair loss: lists of miners, ranks, and extreme values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn

from distmetric.distributed import DistributedLoss, Replica
from distmetric.functional.distances import Distance
from distmetric.losses import (
    CircleLoss,
    CircleLossConfig,
    CrossBatchMemory,
    MetricLoss,
    MultiSimilarityLoss,
    MultiSimilarityLossConfig,
    NPairsLoss,
    NTXentLoss,
    NTXentLossConfig,
    SupConLoss,
    SupConLossConfig,
)
from processes import run_ranks

PML_DISTANCES: dict[Distance, Callable[[], nn.Module]] = {
    "cosine": pml_distances.CosineSimilarity,
    "dot_product": lambda: pml_distances.DotProductSimilarity(normalize_embeddings=False),
    "euclidean": lambda: pml_distances.LpDistance(normalize_embeddings=False),
    "squared_euclidean": lambda: pml_distances.LpDistance(normalize_embeddings=False, power=2),
}
PAIRS: list[tuple[type[MetricLoss], type[nn.Module], Distance]] = [
    *((MultiSimilarityLoss, pml_losses.MultiSimilarityLoss, distance) for distance in PML_DISTANCES),
    *((SupConLoss, pml_losses.SupConLoss, distance) for distance in PML_DISTANCES),
    *((NTXentLoss, pml_losses.NTXentLoss, distance) for distance in PML_DISTANCES),
    *((NPairsLoss, pml_losses.NPairsLoss, distance) for distance in PML_DISTANCES),
    (CircleLoss, pml_losses.CircleLoss, "cosine"),
]
EVERY = pytest.mark.parametrize(
    ("ours", "theirs", "distance"), PAIRS, ids=[f"{ours.__name__}-{distance}" for ours, _, distance in PAIRS]
)
MINERS: dict[str, Callable[[], nn.Module]] = {
    "pairs": lambda: pml_miners.MultiSimilarityMiner(0.1),
    "positives_without_negatives": lambda: pml_miners.PairMarginMiner(pos_margin=0.9, neg_margin=0.8),
    "triplets_that_repeat_pairs": lambda: pml_miners.TripletMarginMiner(margin=0.3),
    "batch_hard": pml_miners.BatchHardMiner,
}
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 3, 4, 4, 1, 5]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(len(LABELS), 4, dtype=torch.float64, generator=generator), torch.tensor(LABELS)


def value_and_gradient(
    loss: Callable[[Tensor], Tensor] | nn.Module, embeddings: Tensor
) -> tuple[Tensor, Tensor]:
    embeddings = embeddings.clone().requires_grad_()
    value = loss(embeddings)
    value.backward()
    assert embeddings.grad is not None
    return value.detach(), embeddings.grad


def assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@EVERY
def test_every_distance_means_what_it_means_elsewhere(
    ours: type[MetricLoss], theirs: type[nn.Module], distance: Distance
) -> None:
    embeddings, labels = batch()
    loss, other = (
        ours(distance=distance, normalize_embeddings=False),
        theirs(distance=PML_DISTANCES[distance]()),
    )
    assert_equal(
        value_and_gradient(lambda x: loss(x, labels), embeddings),
        value_and_gradient(lambda x: other(x, labels), embeddings),
    )


@pytest.mark.parametrize("miner", MINERS)
@EVERY
def test_a_miners_list_means_what_it_means_elsewhere(
    ours: type[MetricLoss], theirs: type[nn.Module], distance: Distance, miner: str
) -> None:
    embeddings, labels = batch()
    loss, other = (
        ours(distance=distance, normalize_embeddings=False),
        theirs(distance=PML_DISTANCES[distance]()),
    )
    chosen = MINERS[miner]()(embeddings, labels)
    assert min(map(len, chosen)) > 1
    assert_equal(
        value_and_gradient(lambda x: loss(x, labels, chosen), embeddings),
        value_and_gradient(lambda x: other(x, labels, chosen), embeddings),
    )


def test_the_lists_tested_have_what_they_are_there_for() -> None:
    embeddings, labels = batch()
    anchors, _, others, _ = MINERS["positives_without_negatives"]()(embeddings, labels)
    assert set(anchors.tolist()) - set(others.tolist())
    anchors, positives, _ = MINERS["triplets_that_repeat_pairs"]()(embeddings, labels)
    assert len(set(zip(anchors.tolist(), positives.tolist(), strict=True))) < len(anchors)


LONG = {"distance": "dot_product", "normalize_embeddings": False}


@pytest.mark.parametrize(
    "loss",
    [
        *(MultiSimilarityLoss(**LONG), MultiSimilarityLoss(epsilon=0.1, **LONG), SupConLoss(**LONG)),
        *(NTXentLoss(**LONG), NPairsLoss(**LONG)),
    ],
    ids=repr,
)
def test_long_raw_embeddings_stay_finite_with_lone_rows_among_them(loss: MetricLoss) -> None:
    embeddings, labels = batch()
    value, gradient = value_and_gradient(lambda x: loss(x, labels), 100 * embeddings.float())
    exact, _ = value_and_gradient(lambda x: loss(x, labels), 100 * embeddings)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert gradient.isfinite().all()


# Multi-similarity


@pytest.mark.parametrize("distance", PML_DISTANCES)
@pytest.mark.parametrize("epsilon", [0.1, 0.6, 0.0, -0.2])
def test_epsilon_is_the_multi_similarity_miner(distance: Distance, epsilon: float) -> None:
    embeddings, labels = batch()
    loss = MultiSimilarityLoss(epsilon=epsilon, distance=distance, normalize_embeddings=False)
    miner = pml_miners.MultiSimilarityMiner(epsilon, distance=PML_DISTANCES[distance]())
    other = pml_losses.MultiSimilarityLoss(distance=PML_DISTANCES[distance]())
    chosen = miner(embeddings, labels)
    assert 0 < len(chosen[3]) < int((labels[:, None] != labels).sum())
    expected = value_and_gradient(lambda x: other(x, labels, chosen), embeddings)
    assert_equal(value_and_gradient(lambda x: loss(x, labels), embeddings), expected)
    # A list is taken as it is: mining again changes nothing here, but would with any other epsilon.
    again = MultiSimilarityLoss(epsilon=-9.0, distance=distance, normalize_embeddings=False)
    assert_equal(value_and_gradient(lambda x: again(x, labels, chosen), embeddings), expected)


@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_similarities_far_beyond_the_range_of_exp(epsilon: float | None) -> None:
    # Dot products of -100 and 100: exponents up to 50 * 99.5, where float32 ends at 88.
    embeddings = torch.tensor([[10.0], [-10.0], [10.0]])
    loss = MultiSimilarityLoss(epsilon=epsilon, distance="dot_product", normalize_embeddings=False)
    value, gradient = value_and_gradient(lambda x: loss(x, torch.tensor([0, 0, 1])), embeddings)
    # Anchors 0 and 1 pull at each other with 100 + 0.5; negatives push with 100 - 0.5 or not at all.
    assert value.item() == pytest.approx(
        (2 * 100.5 + 2 * 99.5 - (0 if epsilon is None else 99.5)) / 3, rel=1e-6
    )
    assert gradient.isfinite().all()


def test_pushes_far_below_the_resolution_of_one_are_not_lost() -> None:
    # Negatives at a right angle, s = 0: each anchor has log(1 + 2 e^-25) / 50, and 1 + 3e-11 is 1 in float32.
    loss = MultiSimilarityLoss()(torch.eye(3), torch.arange(3))
    assert loss.item() == pytest.approx(2 * math.exp(-25) / 50, rel=1e-4, abs=0)


def test_anchors_that_nothing_is_chosen_for_count_in_the_mean() -> None:
    # Class 0 meets class 1 at a right angle; nothing of the well separated rows is within epsilon.
    embeddings, labels = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    assert MultiSimilarityLoss(epsilon=0.1)(embeddings, labels) == 0
    twisted = torch.cat([embeddings, torch.tensor([[1.0, 0.0]], dtype=torch.float64)])
    # A fifth row lies on class 0: it and the two rows there are chosen, with a negative at s = 1.
    loss = MultiSimilarityLoss(epsilon=0.1)(twisted, torch.tensor([0, 0, 1, 1, 1]))
    pull = [math.log1p(math.exp(-2 * (s - 0.5))) / 2 for s in (1.0, 1.0, 0.0, 0.0)]
    far = [math.log1p(math.exp(25)) / 50] * 2 + [math.log1p(2 * math.exp(-25)) / 50] * 2
    lone = math.log1p(2 * math.exp(1)) / 2 + math.log1p(2 * math.exp(25)) / 50
    assert loss.item() == pytest.approx((sum(pull) + sum(far) + lone) / 5, rel=1e-9)


# SupCon


def test_supcon_without_any_negative_is_zero_listed_or_not() -> None:
    embeddings = batch()[0][:4]
    labels, every = torch.zeros(4, dtype=torch.int64), (~torch.eye(4, dtype=torch.bool)).nonzero().unbind(1)
    none = torch.empty(0, dtype=torch.int64)
    for indices in (None, (*every, none, none)):
        value, gradient = value_and_gradient(lambda x, i=indices: SupConLoss()(x, labels, i), embeddings)
        assert value == 0
        assert not gradient.any()


# Circle


def test_circle_weights_are_constants_of_the_gradient() -> None:
    embeddings, labels = batch()
    rows = [(labels == y) & (torch.arange(len(labels)) != i) for i, y in enumerate(labels)]

    def plain(x: Tensor) -> Tensor:
        x, terms = nn.functional.normalize(x), []
        for i, near in enumerate(rows):
            s, far = x @ x[i], labels != labels[i]
            if near.any():
                pull = -80 * (1.4 - s[near].detach()).relu() * (s[near] - 0.6)
                push = 80 * (s[far].detach() + 0.4).relu() * (s[far] - 0.4)
                terms.append((1 + pull.exp().sum() * push.exp().sum()).log())
        return torch.stack(terms).mean()

    assert_equal(
        value_and_gradient(lambda x: CircleLoss()(x, labels), embeddings),
        value_and_gradient(plain, embeddings),
    )


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "dot_product"])
def test_circle_refuses_what_is_not_a_cosine(distance: Distance) -> None:
    with pytest.raises(ValueError, match="cosine only"):
        CircleLoss(distance=distance)


# N-pairs


def test_published_value_of_the_n_pair_loss() -> None:
    anchors, positives = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], [[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]
    embeddings = torch.tensor([*anchors, *positives], dtype=torch.float64)
    loss = NPairsLoss(distance="dot_product", normalize_embeddings=False)
    assert loss(embeddings, torch.tensor([0, 1, 2, 0, 1, 2])).item() == pytest.approx(1.051035, abs=1e-6)


def test_only_the_first_two_rows_of_a_class_have_a_part() -> None:
    embeddings, labels = batch()
    _, gradient = value_and_gradient(lambda x: NPairsLoss()(x, labels), embeddings)
    first_two = [0, 1, 2, 3, 4, 5, 12, 13]  # classes 3 and 5 have a single row
    assert gradient.norm(dim=1).nonzero()[:, 0].tolist() == first_two


def test_n_pairs_of_a_list_are_the_first_anchor_of_a_class_with_its_first_positive() -> None:
    embeddings, labels = batch()
    listed = torch.tensor([[9, 3], [9, 0], [4, 7], [1, 14], [1, 4], [10, 0]])
    none = torch.empty(0, dtype=torch.int64)
    found = NPairsLoss()(embeddings, labels, (*listed.unbind(1), none, none))
    alone = torch.stack([embeddings[i] for i in (9, 3, 1, 14)])
    torch.testing.assert_close(found, NPairsLoss()(alone, torch.tensor([0, 0, 1, 1])))


def test_n_pairs_against_a_reference_set_are_the_first_of_both() -> None:
    embeddings, labels = batch()
    references, reference_labels = embeddings.flip(0), labels.flip(0)
    found = NPairsLoss()(embeddings, labels, ref_emb=references, ref_labels=reference_labels)
    anchors, positives = nn.functional.normalize(embeddings), nn.functional.normalize(references)
    first = [labels.tolist().index(y) for y in range(6)]
    last = [reference_labels.tolist().index(y) for y in range(6)]
    logits = anchors[first] @ positives[last].T
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, torch.arange(6)))


def test_n_pairs_have_no_use_for_a_memory() -> None:
    with pytest.raises(ValueError, match="NPairsLoss"):
        CrossBatchMemory(NPairsLoss(), 4)


# Ranks


class FewPairs(nn.Module):
    """Chooses pairs such that ranks get none of some kind: positives only, negatives only, or repeated triplets."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        anchors, positives = (
            ((labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)).nonzero().T
        )
        others, negatives = (labels[:, None] != labels).nonzero().T
        if self.kind == "triplets":
            pick = torch.tensor([0, 0, 1, 5, 7, 7])
            each = [negatives[others == anchors[i]][:2] for i in pick]
            return anchors[pick].repeat_interleave(2), positives[pick].repeat_interleave(2), torch.cat(each)
        late = others >= 9
        return anchors, positives, others[late], negatives[late]


def ranks_on_lists(replica: Replica, sizes: list[int]) -> dict[str, tuple[float, np.ndarray]]:
    embeddings, labels = batch()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    results = {}
    for name in ("triplets", "pairs"):
        for loss in (MultiSimilarityLoss(), SupConLoss(), NTXentLoss(), CircleLoss(), NPairsLoss()):
            mine = embeddings[own].clone().requires_grad_()
            value = DistributedLoss(loss, replica, FewPairs(name))(mine, labels[own])
            value.backward()
            assert mine.grad is not None
            # The mean over ranks that DDP takes of parameter gradients has no part here: it is a factor 1/W.
            results[f"{name} {loss}"] = value.item(), mine.grad.numpy() / replica.world_size
    return results


@pytest.mark.parametrize("sizes", [[16], [9, 7], [1, 8, 7], [0, 13, 3]], ids=str)
def test_lists_give_the_same_on_any_number_of_ranks(sizes: list[int]) -> None:
    embeddings, labels = batch()
    ranks = run_ranks(len(sizes), ranks_on_lists, sizes)
    for name in ("triplets", "pairs"):
        for loss in (MultiSimilarityLoss(), SupConLoss(), NTXentLoss(), CircleLoss(), NPairsLoss()):
            chosen = FewPairs(name)(embeddings, labels)
            value, gradient = value_and_gradient(lambda x, f=loss, c=chosen: f(x, labels, c), embeddings)
            found = [results[f"{name} {loss}"] for results in ranks]
            assert [part[0] for part in found] == pytest.approx([value.item()] * len(sizes), rel=1e-10)
            np.testing.assert_allclose(
                np.concatenate([part[1] for part in found]), gradient, rtol=0, atol=1e-11
            )


# Accuracy and settings


@pytest.mark.parametrize(
    "loss",
    [
        *(MultiSimilarityLoss(), MultiSimilarityLoss(epsilon=0.1), SupConLoss(), NTXentLoss(), CircleLoss()),
        NPairsLoss(),
    ],
    ids=repr,
)
def test_float32_has_five_digits_at_a_batch_of_512(loss: MetricLoss) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(128, 64, dtype=torch.float64, generator=generator)
    embeddings = centers.repeat(4, 1) + 0.4 * torch.randn(512, 64, dtype=torch.float64, generator=generator)
    embeddings, labels = embeddings.float(), torch.arange(512) % 128
    value, gradient = value_and_gradient(lambda x: loss(x, labels), embeddings)
    exact, exact_gradient = value_and_gradient(lambda x: loss(x, labels), embeddings.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (gradient - exact_gradient).norm() <= 1e-5 * exact_gradient.norm()


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: SupConLoss(0.0), "temperature=0.0"),
        (lambda: SupConLossConfig(temperature=-1.0), "temperature=-1.0"),
        (lambda: NTXentLoss(-0.1), "temperature=-0.1"),
        (lambda: NTXentLossConfig(temperature=0.0), "temperature=0.0"),
        (lambda: MultiSimilarityLoss(alpha=0.0), "alpha=0.0"),
        (lambda: MultiSimilarityLossConfig(beta=-2.0), "beta=-2.0"),
        (lambda: CircleLoss(gamma=float("nan")), "gamma=nan"),
        (lambda: CircleLossConfig(gamma=0.0), "gamma=0.0"),
    ],
)
def test_scales_are_above_zero(make: Callable[[], Any], setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        make()
