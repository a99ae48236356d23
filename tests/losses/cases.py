"""Every loss with its oracle and its counterpart: one line here puts a loss under all tests that losses share.

Plain loops are in tests/oracles.py. `CASES` is run by tests/losses/test_losses.py (oracles, finite differences,
degenerate batches, memory, parity with pytorch-metric-learning) and by tests/distributed/test_loss.py (1, 2, 3 ranks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

import oracles
from distmetric.functional import JointBatch
from distmetric.losses import (
    ArcFaceLoss,
    AttributeClassificationLoss,
    AttributeIdentityHardTripletLoss,
    CentroidBoundLoss,
    CircleLoss,
    ContrastiveLoss,
    CosFaceLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    LossTerm,
    MetricLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SupConLoss,
    TripletLoss,
    WeightedSumLoss,
)

Oracle = Callable[[oracles.Rows, Sequence[int], MetricLoss], float]


@dataclass(frozen=True)
class Case:
    """A loss under test.

    Args:
        name: Shown as the test's id.
        make: (number of classes, D) -> the loss; parameters are drawn from torch's generator.
        oracle: (embeddings, labels, loss) -> value, as plain loops over floats in float64.
        pml: (number of classes, D) -> the loss of pytorch-metric-learning of the same value and gradient, or None.
        copy_parameters: (ours, theirs) -> None, makes the parameters of the second equal to those of the first.
        zero_without_pairs: Whether the value is 0 if no anchor has both a positive and a negative.
        needs_pairs: Whether PML agrees only if every anchor has a positive (it counts lone anchors differently).
        listed: Whether the loss over all pairs, listed by a miner, is the loss without a miner.
        exact_gradient: Whether the gradient is the derivative of the value, with nothing taken as constant.
        by_position: Whether rows are chosen by their place in the batch.
    """

    name: str
    make: Callable[[int, int], MetricLoss]
    oracle: Oracle
    pml: Callable[[int, int], nn.Module] | None = None
    copy_parameters: Callable[[MetricLoss, nn.Module], None] | None = None
    zero_without_pairs: bool = True
    needs_pairs: bool = False
    listed: bool = False
    exact_gradient: bool = True
    by_position: bool = False


def simple(loss: Callable[[], MetricLoss]) -> Callable[[int, int], MetricLoss]:
    """A factory for losses that do not care about the number of classes and dimensions."""
    return lambda num_classes, dim: loss()


def pml_loss(name: str, **settings: object) -> Callable[[int, int], nn.Module]:
    """A loss of pytorch-metric-learning without parameters."""

    def make(num_classes: int, dim: int) -> nn.Module:
        from pytorch_metric_learning import losses

        return getattr(losses, name)(**settings)

    return make


def pml_mined_loss(name: str, miner_name: str, **settings: object) -> Callable[[int, int], nn.Module]:
    """A loss of pytorch-metric-learning on what one of its miners chooses."""

    class Mined(nn.Module):
        def __init__(self) -> None:
            from pytorch_metric_learning import losses, miners

            super().__init__()
            self.loss, self.miner = getattr(losses, name)(), getattr(miners, miner_name)(**settings)

        def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.loss(embeddings, labels, self.miner(embeddings, labels))

    return lambda num_classes, dim: Mined()


def seeded(case: Case, num_classes: int, dim: int, dtype: torch.dtype = torch.float64) -> MetricLoss:
    """The loss of a case with parameters that are the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return case.make(num_classes, dim).to(dtype)


def weighted_parts() -> dict[str, tuple[float, MetricLoss]]:
    """Two losses with their own normalization and reduction."""
    triplet = TripletLoss(0.05, "batch_all", normalize_embeddings=True, reduction="nonzero_mean")
    return {"triplet": (0.75, triplet), "contrastive": (2.5, ContrastiveLoss())}


def pml_weighted_sum(num_classes: int, dim: int) -> nn.Module:
    """The counterpart of `weighted_parts`."""
    from pytorch_metric_learning import losses

    return losses.MultipleLosses([losses.TripletMarginLoss(), losses.ContrastiveLoss()], weights=[0.75, 2.5])


class WithAttributes(MetricLoss):
    """A loss over attributes whose logits and values are functions of the raw embeddings, the same on any rank."""

    over_pairs = False

    def __init__(self, loss: MetricLoss) -> None:
        super().__init__()
        self.loss = loss

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        batch = batch.prepared(normalize=False)
        (logits, values), (column_logits, column_values) = (
            (
                {"a": rows[:, :2], "b": rows[:, 1:]},
                {name: rows.new_tensor(part).long() for name, part in zip("ab", _columns(rows), strict=True)},
            )
            for rows in (batch.anchors, batch.columns)
        )
        given = {
            "logits": logits,
            "column_logits": {name: part.detach() for name, part in column_logits.items()},
        }
        return self.loss.parts(replace(batch, **given, attributes=values, column_attributes=column_values))


def values_of(row: Sequence[float]) -> tuple[int, int]:
    """Values of two attributes: the sign of the first number, and of the second where that is small."""
    return int(row[0] > 0), -1 if abs(row[1]) > 1 else int(row[1] > 0)


def _columns(rows: torch.Tensor) -> list[list[int]]:
    values = [values_of(row) for row in rows.tolist()]
    return [[value[i] for value in values] for i in range(2)]


def attributes_of(rows: oracles.Rows, names: str) -> tuple[list[oracles.Rows], list[list[int]]]:
    """Logits and values as `WithAttributes` has them, one entry per name."""
    logits = {"a": [row[:2] for row in rows], "b": [row[1:] for row in rows]}
    values = dict(zip("ab", ([values_of(row)[i] for row in rows] for i in range(2)), strict=True))
    return [logits[name] for name in names], [values[name] for name in names]


def pml_class_loss(
    name: str, centers: int = 0, tau: float = 0.0, **settings: object
) -> Callable[[int, int], nn.Module]:
    """A loss of pytorch-metric-learning with vectors of classes; with `tau`, the regularizer of SoftTriple."""

    def make(num_classes: int, dim: int) -> nn.Module:
        from pytorch_metric_learning import losses, regularizers

        if centers:
            settings["centers_per_class"] = centers
        if tau:
            sparse = regularizers.SparseCentersRegularizer(num_classes, centers)
            settings.update(weight_regularizer=sparse, weight_reg_weight=tau)
        return getattr(losses, name)(num_classes, dim, **settings)

    return make


def copy_weight(ours: MetricLoss, theirs: nn.Module) -> None:
    """The vectors of classes, which pytorch-metric-learning keeps as columns in some losses."""
    ((name, parameter),) = theirs.named_parameters()
    rows = ours.get_parameter("weight").detach()
    parameter.data = (rows if name == "proxies" else rows.T).clone()


def some_counts(num_classes: int) -> list[int]:
    """Images of each class of an unbalanced data set."""
    return [2 + 3 * m % 7 for m in range(num_classes)]


RAW = {"normalize_embeddings": False}

CASES = [
    Case("triplet_hinge", simple(lambda: TripletLoss(0.2)), lambda e, y, _: oracles.batch_hard(e, y, 0.2)),
    Case("triplet_soft", simple(TripletLoss), lambda e, y, _: oracles.batch_hard(e, y, "soft")),
    Case(
        "triplet_batch_all",
        simple(lambda: TripletLoss(0.2, "batch_all")),
        lambda e, y, _: oracles.batch_all(e, y, 0.2),
        listed=True,
    ),
    Case(
        "triplet_batch_all_nonzero",
        simple(lambda: TripletLoss(0.05, "batch_all", normalize_embeddings=True, reduction="nonzero_mean")),
        lambda e, y, _: oracles.batch_all([oracles.unit(row) for row in e], y, 0.05, nonzero=True),
        pml=pml_loss("TripletMarginLoss"),
        listed=True,
    ),
    Case(
        "triplet_batch_all_soft",
        simple(lambda: TripletLoss("soft", "batch_all")),
        lambda e, y, _: oracles.batch_all(e, y, "soft"),
        listed=True,
    ),
    Case(
        "triplet_semi_hard",
        simple(lambda: TripletLoss(2.0, "semi_hard", distance="squared_euclidean")),
        lambda e, y, _: oracles.semi_hard(e, y, 2.0),
    ),
    Case(
        "triplet_semi_hard_nearest",
        simple(lambda: TripletLoss(0.5, "semi_hard_nearest", distance="squared_euclidean")),
        lambda e, y, _: oracles.semi_hard_nearest(e, y, 0.5),
    ),
    Case(
        "contrastive",
        simple(ContrastiveLoss),
        lambda e, y, _: oracles.contrastive([oracles.unit(row) for row in e], y),
        pml=pml_loss("ContrastiveLoss"),
        listed=True,
        zero_without_pairs=False,
    ),
    Case(
        "contrastive_squared",
        simple(lambda: ContrastiveLoss(0.3, 1.25, squared=True, **RAW)),
        lambda e, y, _: oracles.contrastive(e, y, 0.3, 1.25, squared=True),
        listed=True,
        zero_without_pairs=False,
    ),
    Case(
        "lifted",
        simple(LiftedStructureLoss),
        lambda e, y, _: oracles.lifted_structure([oracles.unit(row) for row in e], y),
        pml=pml_loss("LiftedStructureLoss"),
        listed=True,
    ),
    Case(
        "lifted_raw",
        simple(lambda: LiftedStructureLoss(0.5, 0.1, **RAW)),
        lambda e, y, _: oracles.lifted_structure(e, y, 0.5, 0.1),
        listed=True,
    ),
    Case(
        "lifted_unsquared",
        simple(lambda: LiftedStructureLoss(squared=False, reduction="sum", **RAW)),
        lambda e, y, _: 2 * oracles.unsquared_lifted_structure(e, y),
        listed=True,
    ),
    Case(
        "generalized_lifted",
        simple(GeneralizedLiftedStructureLoss),
        lambda e, y, _: oracles.generalized_lifted_structure([oracles.unit(row) for row in e], y),
        pml=pml_loss("GeneralizedLiftedStructureLoss"),
        needs_pairs=True,
        listed=True,
    ),
    Case(
        "multi_similarity",
        simple(MultiSimilarityLoss),
        lambda e, y, _: oracles.multi_similarity(e, y),
        pml=pml_loss("MultiSimilarityLoss"),
        zero_without_pairs=False,
        listed=True,
    ),
    Case(
        "multi_similarity_mined",
        simple(lambda: MultiSimilarityLoss(epsilon=0.1)),
        lambda e, y, _: oracles.multi_similarity(e, y, epsilon=0.1),
        pml=pml_mined_loss("MultiSimilarityLoss", "MultiSimilarityMiner", epsilon=0.1),
    ),
    Case(
        "multi_similarity_euclidean",
        simple(lambda: MultiSimilarityLoss(3.0, 10.0, 1.5, -0.2, distance="euclidean", **RAW)),
        # The base of a distance is that of a similarity with the other sign.
        lambda e, y, _: oracles.multi_similarity(e, y, 3.0, 10.0, -1.5, -0.2, oracles.nearness),
    ),
    Case(
        "supcon",
        simple(SupConLoss),
        lambda e, y, _: oracles.supcon(e, y),
        pml=pml_loss("SupConLoss"),
        listed=True,
    ),
    Case(
        "supcon_raw",
        simple(lambda: SupConLoss(0.5, distance="dot_product", reduction="mean", **RAW)),
        lambda e, y, _: oracles.supcon(e, y, 0.5, oracles.dot_product, nonzero=False),
        listed=True,
    ),
    Case(
        "ntxent",
        simple(NTXentLoss),
        lambda e, y, _: oracles.ntxent(e, y),
        pml=pml_loss("NTXentLoss"),
        listed=True,
    ),
    Case(
        "ntxent_euclidean",
        simple(lambda: NTXentLoss(0.3, distance="euclidean", **RAW)),
        lambda e, y, _: oracles.ntxent(e, y, 0.3, oracles.nearness),
        listed=True,
    ),
    Case(
        "circle",
        simple(CircleLoss),
        lambda e, y, _: oracles.circle(e, y),
        pml=pml_loss("CircleLoss"),
        listed=True,
        exact_gradient=False,
    ),
    Case(
        "circle_of_faces",
        simple(lambda: CircleLoss(0.25, 128.0, reduction="mean")),
        lambda e, y, _: oracles.circle(e, y, 0.25, 128.0),
        listed=True,
        exact_gradient=False,
    ),
    Case(
        "n_pairs",
        simple(NPairsLoss),
        lambda e, y, _: oracles.n_pairs(e, y),
        pml=pml_loss("NPairsLoss"),
        listed=True,
        by_position=True,
    ),
    Case(
        "n_pairs_raw",
        simple(lambda: NPairsLoss(**RAW)),
        lambda e, y, _: oracles.n_pairs(e, y, oracles.dot_product),
        listed=True,
        by_position=True,
    ),
    Case(
        "weighted_sum",
        simple(lambda: WeightedSumLoss(weighted_parts())),
        lambda e, y, _: (
            0.75 * oracles.batch_all([oracles.unit(row) for row in e], y, 0.05, nonzero=True)
            + 2.5 * oracles.contrastive([oracles.unit(row) for row in e], y)
        ),
        pml=pml_weighted_sum,
        zero_without_pairs=False,
        listed=True,
    ),
    Case(
        "attribute_identity_hard",
        simple(lambda: WithAttributes(AttributeIdentityHardTripletLoss(margin=0.1))),
        lambda e, y, _: oracles.attribute_identity_hard(e, y, [[*row[:2], *row[1:]] for row in e], 0.1),
        zero_without_pairs=False,
    ),
    Case(
        "attribute_identity_hard_self",
        simple(lambda: WithAttributes(AttributeIdentityHardTripletLoss(["b"], include_self=True))),
        lambda e, y, _: oracles.attribute_identity_hard(e, y, [row[1:] for row in e], include_self=True),
        zero_without_pairs=False,
    ),
    Case(
        "attribute_identity_hard_labels",
        simple(lambda: WithAttributes(AttributeIdentityHardTripletLoss(["a", "b"], "labels", 0.1))),
        lambda e, y, _: oracles.attribute_identity_hard(
            e, y, [values_of(row) for row in e], 0.1, side_distance=oracles.value_differences
        ),
        zero_without_pairs=False,
    ),
    Case(
        "attribute_classification",
        simple(lambda: WithAttributes(AttributeClassificationLoss(["b", "a"], label_smoothing=0.1))),
        lambda e, y, _: oracles.attribute_cross_entropy(*attributes_of(e, "ba"), 0.1),
        zero_without_pairs=False,
    ),
    Case(
        "attribute_classification_binary",
        simple(lambda: WithAttributes(AttributeClassificationLoss(kind="binary", label_smoothing=0.1))),
        lambda e, y, _: oracles.attribute_binary(*attributes_of(e, "ab"), 0.1),
        zero_without_pairs=False,
    ),
    Case(
        "soft_triple",
        lambda c, d: SoftTripleLoss(c, d, 4),
        lambda e, y, loss: oracles.soft_triple(e, y, loss.weight.tolist(), 4),
        pml=pml_class_loss("SoftTripleLoss", centers=4, tau=0.2),
        copy_parameters=copy_weight,
        zero_without_pairs=False,
    ),
    Case(
        "soft_triple_without_regularizer",
        lambda c, d: SoftTripleLoss(c, d, tau=0.0),
        lambda e, y, loss: oracles.soft_triple(e, y, loss.weight.tolist(), 10, tau=0.0),
        pml=pml_class_loss("SoftTripleLoss"),
        copy_parameters=copy_weight,
        zero_without_pairs=False,
    ),
    Case(
        "hard_triple",
        lambda c, d: SoftTripleLoss(c, d, 3, assignment="hard"),
        lambda e, y, loss: oracles.soft_triple(e, y, loss.weight.tolist(), 3, gamma=None),
        zero_without_pairs=False,
    ),
    Case(
        "arcface",
        ArcFaceLoss,
        lambda e, y, loss: oracles.arcface(e, y, loss.weight.tolist()),
        pml=pml_class_loss("ArcFaceLoss"),
        copy_parameters=copy_weight,
        zero_without_pairs=False,
    ),
    Case(
        "cosface",
        CosFaceLoss,
        lambda e, y, loss: oracles.margin_softmax(
            e, y, loss.weight.tolist(), 64, lambda angle: math.cos(angle) - 0.35
        ),
        pml=pml_class_loss("CosFaceLoss"),
        copy_parameters=copy_weight,
        zero_without_pairs=False,
    ),
    Case(
        "proxy_nca",
        ProxyNCALoss,
        lambda e, y, loss: oracles.margin_softmax(e, y, loss.weight.tolist(), 2, math.cos),
        pml=pml_class_loss("ProxyNCALoss"),
        copy_parameters=copy_weight,
        zero_without_pairs=False,
    ),
    Case(
        "proxy_anchor",
        ProxyAnchorLoss,
        lambda e, y, loss: oracles.proxy_anchor(e, y, loss.weight.tolist()),
        pml=pml_class_loss("ProxyAnchorLoss"),
        copy_parameters=copy_weight,
        zero_without_pairs=False,
    ),
    Case(
        "centroid_bound",
        lambda c, d: CentroidBoundLoss(c, d, centroids=torch.randn(c, d)),
        lambda e, y, loss: oracles.centroid_bound(
            [oracles.unit(row) for row in e], y, loss.centroids.tolist()
        ),
        zero_without_pairs=False,
    ),
    Case(
        "centroid_bound_weighted",
        lambda c, d: CentroidBoundLoss(c, d, centroids=torch.randn(c, d), class_counts=some_counts(c), **RAW),
        lambda e, y, loss: oracles.centroid_bound(
            e, y, loss.centroids.tolist(), some_counts(loss.num_classes)
        ),
        zero_without_pairs=False,
    ),
]
