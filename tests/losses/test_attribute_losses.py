"""Losses over attributes: the numbers of METHODS section 6, the torch functions they generalize, and wrong use."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distmetric.functional import JointBatch, Tuples
from distmetric.losses import (
    AttributeClassificationLoss,
    AttributeClassificationLossConfig,
    AttributeIdentityHardTripletLoss,
    AttributeIdentityHardTripletLossConfig,
    CrossBatchMemory,
    TripletLoss,
    WeightedSumLoss,
    build_loss,
)
from distmetric.losses.build import LossContext

FEATURES = torch.tensor(
    [(1.0, 0.0), (0.9, 0.2), (0.8, 0.6), (0.7, -0.5), (0.1, 1.0), (-0.2, 1.0)], dtype=torch.float64
)
LOGITS = torch.tensor(
    [(2.0, -1.0), (1.8, -1.1), (0.5, 0.9), (1.5, 0.2), (-1.0, 2.0), (-1.2, 1.0)], dtype=torch.float64
)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1])
GROUP = {"action": LOGITS[:, :1], "pose": LOGITS[:, 1:]}


def joint(embeddings: torch.Tensor, labels: torch.Tensor, logits: dict[str, torch.Tensor]) -> JointBatch:
    alone = JointBatch.alone(embeddings, labels)
    return JointBatch(
        **{**vars(alone), "logits": logits, "column_logits": {k: v.detach() for k, v in logits.items()}}
    )


def test_the_selection_is_the_one_of_the_methods_notes() -> None:
    found = AttributeIdentityHardTripletLoss().extremes(joint(FEATURES, LABELS, GROUP))
    assert isinstance(found, Tuples)
    assert found.anchors_of_positives.tolist() == found.anchors_of_negatives.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.positives.tolist() == [1, 0, 3, 2, 5, 4]
    assert found.negatives.tolist() == [2, 2, 0, 1, 5, 4]


def test_values_are_those_of_the_methods_notes() -> None:
    paper, released = (AttributeIdentityHardTripletLoss(include_self=include) for include in (False, True))
    assert paper(FEATURES, LABELS, logits=GROUP).item() == pytest.approx(0.040211, abs=5e-7)
    assert released(FEATURES, LABELS, logits=GROUP).item() == pytest.approx(0.151371, abs=5e-7)
    assert TripletLoss(0.3, distance="cosine")(FEATURES, LABELS).item() == pytest.approx(0.115801, abs=5e-7)


def test_the_whole_recipe_is_a_weighted_sum() -> None:
    context = LossContext(class_counts=[4, 2], embedding_size=2)
    aitl = build_loss(AttributeIdentityHardTripletLossConfig(attributes=["pose", "action"]), context)
    triplet = TripletLoss(0.3, distance="cosine")
    learned = build_loss(AttributeClassificationLossConfig(attributes=["kind"]), context)
    recipe = WeightedSumLoss(
        {"triplet": (1 / 3, triplet), "aitl": (1 / 3, aitl), "attributes": (1.0, learned)}
    )
    alone = JointBatch.alone(FEATURES, LABELS)
    logits, values = GROUP | {"kind": LOGITS}, {"kind": LABELS}
    batch = JointBatch(
        **{
            **vars(alone),
            "logits": logits,
            "column_logits": logits,
            "attributes": values,
            "column_attributes": values,
        }
    )
    total = sum(term.weight * term.total / term.denominator for term in recipe.parts(batch))
    expected = (0.115801 + 0.040211) / 3 + F.cross_entropy(LOGITS, LABELS)
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert recipe.metrics()["attributes/attribute_accuracy"].item() == pytest.approx(5 / 6)


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_with_two_images_of_an_identity_the_papers_form_is_the_margin_without_gradient(margin: float) -> None:
    embeddings = FEATURES.clone().requires_grad_()
    loss = AttributeIdentityHardTripletLoss(margin=margin)
    value = loss(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]), logits=GROUP)
    value.backward()
    assert value.item() == pytest.approx(margin, abs=1e-15)
    torch.testing.assert_close(embeddings.grad, torch.zeros_like(FEATURES))


def test_identities_with_one_image_are_left_out_of_sum_and_count() -> None:
    embeddings = torch.cat([FEATURES, torch.randn(2, 2).double()])
    logits = {name: torch.cat([part, torch.randn(2, 1).double()]) for name, part in GROUP.items()}
    labels = torch.cat([LABELS, torch.tensor([7, 8])])
    value = AttributeIdentityHardTripletLoss()(embeddings, labels, logits=logits)
    assert value.item() == pytest.approx(0.040211, abs=5e-7)


def test_without_a_pair_the_value_is_0_with_a_live_graph() -> None:
    embeddings = FEATURES.clone().requires_grad_()
    value = AttributeIdentityHardTripletLoss(margin=0.5)(embeddings, torch.arange(6), logits=GROUP)
    value.backward()
    assert value.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(FEATURES))


def test_ties_of_true_values_count_with_the_mean_of_their_distances() -> None:
    # The anchor agrees with the first and second, and differs from the third and fourth; embeddings on a line.
    places = torch.tensor([[0.0], [1.0], [3.0], [4.0], [10.0]])
    side = {"pose": torch.tensor([0, 0, 0, 1, 1])}
    loss = AttributeIdentityHardTripletLoss(side="labels", distance="euclidean", normalize_embeddings=False)
    anchors = loss.parts(joint_with_values(places, side))[0]
    # Anchor: (4 + 10) / 2 - (1 + 3) / 2 = 5; then 6 - 1.5, 4 - 2.5, and for the last two 8/3 - 6 and 26/3 - 6.
    assert anchors.total.item() == pytest.approx(5 + 4.5 + 1.5 + 0 + 26 / 3 - 6)
    assert (anchors.num_terms, anchors.num_active) == (5, 4)


def joint_with_values(embeddings: torch.Tensor, values: dict[str, torch.Tensor]) -> JointBatch:
    alone = JointBatch.alone(embeddings, torch.zeros(len(embeddings), dtype=torch.int64))
    return JointBatch(**{**vars(alone), "attributes": values, "column_attributes": values})


@pytest.mark.parametrize("include_self", [False, True])
def test_the_selection_passes_no_gradient_to_the_attributes(include_self: bool) -> None:
    logits, embeddings = LOGITS.clone().requires_grad_(), FEATURES.clone().requires_grad_()
    AttributeIdentityHardTripletLoss(include_self=include_self)(
        embeddings, LABELS, logits={"pose": logits}
    ).backward()
    assert logits.grad is None
    assert embeddings.grad.abs().sum() > 0


def test_a_miners_choice_changes_nothing() -> None:
    loss, index = AttributeIdentityHardTripletLoss(), torch.tensor([0])
    chosen = loss(FEATURES, LABELS, (index, index + 1, index + 4), logits=GROUP)
    assert chosen.item() == loss(FEATURES, LABELS, logits=GROUP).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_what_torch_computes_where_all_is_known(smoothing: float) -> None:
    torch.manual_seed(1)
    logits = {"hat": torch.randn(9, 2), "action": torch.randn(9, 5)}
    values = {"hat": torch.arange(9) % 2, "action": torch.arange(9) % 5}
    of = AttributeClassificationLoss(label_smoothing=smoothing)(
        torch.zeros(9, 2), values["hat"], logits=logits, attributes=values
    )
    expected = [F.cross_entropy(logits[k], values[k], label_smoothing=smoothing) for k in logits]
    torch.testing.assert_close(of, sum(expected) / 2)
    binary = AttributeClassificationLoss(kind="binary", label_smoothing=smoothing)
    found = binary(torch.zeros(9, 2), values["hat"], logits=logits, attributes=values)
    one_hot = torch.cat([F.one_hot(values["hat"], 2), F.one_hot(values["action"], 5)], 1).float()
    wanted = one_hot * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(
        found, F.binary_cross_entropy_with_logits(torch.cat(list(logits.values()), 1), wanted)
    )


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_unknown_values_count_for_nothing_and_pass_no_gradient(kind) -> None:
    logits = torch.randn(8, 3, requires_grad=True)
    values = torch.tensor([0, 1, 2, 0, 1, -1, -1, -1])
    loss = AttributeClassificationLoss(["hat"], kind)
    value = loss(torch.zeros(8, 2), values, logits={"hat": logits}, attributes={"hat": values})
    value.backward()
    known = loss(torch.zeros(5, 2), values[:5], logits={"hat": logits[:5]}, attributes={"hat": values[:5]})
    torch.testing.assert_close(value, known)
    assert logits.grad[:5].abs().sum() > 0
    assert torch.equal(logits.grad[5:], torch.zeros(3, 3))


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_where_nothing_is_known_the_value_is_0_with_a_live_graph(kind) -> None:
    logits, embeddings = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    loss, values = AttributeClassificationLoss(kind=kind), torch.full((4,), -1)
    value = loss(embeddings, values, logits={"hat": logits}, attributes={"hat": values})
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros(4, 3))
    assert torch.equal(embeddings.grad, torch.zeros(4, 2))
    assert loss.metrics()["attribute_accuracy"].isnan()


def test_half_precision_logits_are_compared_in_float32() -> None:
    logits = (20 * torch.randn(6, 3)).bfloat16()
    for loss in (AttributeClassificationLoss(), AttributeIdentityHardTripletLoss()):
        given = {"logits": {"hat": logits}, "attributes": {"hat": torch.arange(6) % 3}}
        value = loss(FEATURES.float(), LABELS, **given)
        given["logits"] = {"hat": logits.float()}
        assert value.dtype == torch.float32
        assert value.item() == loss(FEATURES.float(), LABELS, **given).item()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: AttributeIdentityHardTripletLoss(["hat", "hat"]), "names one twice"),
        (lambda: AttributeIdentityHardTripletLoss(margin=float("inf")), "give a finite number"),
        (lambda: AttributeIdentityHardTripletLoss(side="pixels"), "side='pixels' is not known"),
        (lambda: AttributeClassificationLoss(kind="mse"), "kind='mse' is not known"),
        (lambda: AttributeClassificationLoss(label_smoothing=1.0), "0 <= label_smoothing < 1"),
        (lambda: AttributeClassificationLossConfig(label_smoothing=-0.1), "0 <= label_smoothing < 1"),
        (lambda: AttributeIdentityHardTripletLossConfig(attributes=["a", "a"]), "names one twice"),
        (
            lambda: AttributeIdentityHardTripletLoss(["hat"])(FEATURES, LABELS, logits=GROUP),
            "needs the logits of 'hat', but the batch has those of: action, pose",
        ),
        (
            lambda: AttributeIdentityHardTripletLoss(side="labels")(FEATURES, LABELS, logits=GROUP),
            "needs the true values of attributes, but the batch has those of: none",
        ),
        (
            lambda: AttributeClassificationLoss()(FEATURES, LABELS, logits=GROUP),
            "needs the true values of 'action', but the batch has those of: none",
        ),
        (
            lambda: AttributeIdentityHardTripletLoss()(
                FEATURES, LABELS, ref_emb=FEATURES, ref_labels=LABELS, logits=GROUP
            ),
            "leave ref_emb and ref_labels out",
        ),
        (lambda: CrossBatchMemory(AttributeIdentityHardTripletLoss(), 2), "has no use for a memory"),
        (
            lambda: AttributeIdentityHardTripletLoss().parts(
                joint(FEATURES, LABELS, GROUP).with_embeddings(lambda rows: rows.repeat(2, 1))
            ),
            "needs attributes of all 12 columns, but has those of 6",
        ),
    ],
)
def test_wrong_use_is_one_clear_line(use, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)
