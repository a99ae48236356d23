"""What holds for every loss: plain loops, finite differences, degenerate batches, memory, parity with the field."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.functional import distances
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses import MetricLoss
from distmetric.losses.base import loss_value
from distmetric.losses.centroid_bound import CentroidBoundLoss
from distmetric.losses.class_loss import ClassLoss
from losses.cases import CASES, Case, seeded
from memory_process import measured

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
OVER_LISTS = pytest.mark.parametrize(
    "case", [case for case in CASES if case.listed], ids=lambda case: case.name
)
# With learned or fixed vectors instead of a reference set: test_class_losses.py, test_centroid_bound.py.
OVER_REFERENCES = pytest.mark.parametrize(
    "case",
    [case for case in CASES if not isinstance(seeded(case, 4, 5), ClassLoss | CentroidBoundLoss)],
    ids=lambda case: case.name,
)
WITH_PML = pytest.mark.parametrize(
    ("case", "lone"),
    [
        pytest.param(case, lone, id=f"{case.name}-{'some_classes_of_1' if lone else 'classes_of_4'}")
        for case in CASES
        for lone in (False, True)
        if case.pml and not (lone and case.needs_pairs)  # they count anchors without positives differently
    ],
)


def points(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, dtype=torch.float64, generator=generator)


def value_and_gradients(
    loss: torch.nn.Module, embeddings: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    embeddings = embeddings.clone().requires_grad_()
    loss.zero_grad()
    value = loss(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    parameters = [p.grad.clone() for p in loss.parameters() if p.grad is not None]
    return [value.detach(), embeddings.grad, *parameters]


@EVERY
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=14),
    seed=st.integers(0, 999),
    block_rows=st.integers(1, 14),
)
@settings(max_examples=25, deadline=None)
def test_the_value_is_that_of_plain_loops_for_any_block_size(case: Case, labels, seed, block_rows) -> None:
    loss, embeddings = seeded(case, 4, 3), points(len(labels), 3, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", block_rows * len(labels) * 8)
        patch.setattr(distances, "MIN_BLOCK_ROWS", 1)
        value = loss(embeddings, torch.tensor(labels)).item()
    assert value == pytest.approx(case.oracle(embeddings.tolist(), labels, loss), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("case", [case for case in CASES if case.exact_gradient], ids=lambda case: case.name)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    loss, labels = seeded(case, 4, 3), torch.tensor([0, 1, 0, 2, 1, 1, 2, 3])
    embeddings = points(8, 3, seed=1).requires_grad_()
    parameters = [p for p in loss.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(
        lambda e, *_: loss(e, labels), (embeddings, *parameters), atol=1e-6, rtol=1e-4
    )


@EVERY
@pytest.mark.parametrize("rows", [1, 5])
def test_gradients_do_not_depend_on_the_block_size(case: Case, rows: int, monkeypatch) -> None:
    loss, embeddings, labels = seeded(case, 8, 6), points(40, 6), torch.arange(40) % 7
    expected = value_and_gradients(loss, embeddings, labels)
    monkeypatch.setitem(distances.BLOCK_BYTES, "cpu", rows * 40 * 8)
    monkeypatch.setattr(distances, "MIN_BLOCK_ROWS", 1)
    for blocked, whole in zip(value_and_gradients(loss, embeddings, labels), expected, strict=True):
        torch.testing.assert_close(blocked, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if not case.by_position], ids=lambda case: case.name)
def test_the_order_of_the_batch_does_not_matter(case: Case) -> None:
    loss, embeddings, labels = seeded(case, 6, 8), points(24, 8), torch.arange(24) % 6
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    value, gradient, *of_parameters = value_and_gradients(loss, embeddings, labels)
    permuted, of_permuted, *others = value_and_gradients(loss, embeddings[order], labels[order])
    torch.testing.assert_close(value, permuted)
    torch.testing.assert_close(gradient[order], of_permuted)
    for ours, theirs in zip(of_parameters, others, strict=True):
        torch.testing.assert_close(ours, theirs)


@EVERY
@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [2], []], ids=["one_class", "no_positives", "one_row", "empty"]
)
def test_batches_without_a_pair_of_each_kind_stay_finite_with_a_live_graph(case: Case, labels) -> None:
    loss, embeddings = seeded(case, 4, 3), points(len(labels), 3).requires_grad_()
    value = loss(embeddings, torch.tensor(labels, dtype=torch.int64))
    value.backward()
    assert value.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert value.item() == pytest.approx(case.oracle(embeddings.tolist(), labels, loss), rel=1e-9, abs=1e-11)
    if case.zero_without_pairs:
        torch.testing.assert_close(embeddings.grad, torch.zeros_like(embeddings))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-7], ids=["equal", "nearly_equal"])
def test_collapsed_embeddings_give_no_nan(case: Case, dtype: torch.dtype, spread: float) -> None:
    loss = seeded(case, 4, 4, dtype)
    embeddings = torch.ones(8, 4, dtype=dtype) + spread * points(8, 4).to(dtype)
    for part in value_and_gradients(loss, embeddings, torch.arange(8) % 4):
        assert part.isfinite().all()


@EVERY
def test_duplicated_rows_are_ordinary_rows(case: Case) -> None:
    loss, rows = seeded(case, 3, 5), points(9, 5)
    embeddings, labels = torch.cat([rows, rows]), torch.arange(18) % 3
    value, gradient, *_ = value_and_gradients(loss, embeddings, labels)
    assert value.item() == pytest.approx(
        case.oracle(embeddings.tolist(), labels.tolist(), loss), rel=1e-9, abs=1e-11
    )
    assert gradient.isfinite().all()


@EVERY
def test_bfloat16_embeddings_are_compared_in_float32_under_autocast_too(case: Case) -> None:
    loss, labels = seeded(case, 3, 16, torch.float32), torch.arange(12) % 3
    embeddings = points(12, 16).bfloat16()
    expected = loss(embeddings.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings.requires_grad_(), labels)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert embeddings.grad is not None


@EVERY
def test_float32_is_close_to_float64(case: Case) -> None:
    embeddings, labels = points(512, 32), torch.arange(512) % 128
    exact = value_and_gradients(seeded(case, 128, 32), embeddings, labels)
    rounded = value_and_gradients(seeded(case, 128, 32, torch.float32), embeddings.float(), labels)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert (ours.double() - theirs).norm() <= 2e-4 * theirs.norm() + 1e-9


@EVERY
def test_no_gradient_is_computed_where_none_is_wanted(case: Case) -> None:
    loss, embeddings, labels = seeded(case, 6, 8), points(24, 8), torch.arange(24) % 6
    with torch.no_grad():
        quiet = loss(embeddings, labels)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, loss(embeddings.requires_grad_(), labels).detach())


@OVER_LISTS
def test_all_pairs_listed_are_all_pairs(case: Case) -> None:
    """What a miner that takes everything would give is the loss without a miner, for losses over pairs."""
    loss, embeddings, labels = seeded(case, 5, 6), points(20, 6), torch.arange(20) % 5
    same = labels[:, None] == labels
    positives = (same & ~torch.eye(20, dtype=torch.bool)).nonzero().unbind(1)
    indices = (*positives, *(~same).nonzero().unbind(1))
    expected = value_and_gradients(loss, embeddings, labels)
    listed = value_and_gradients(lambda_module(loss, indices), embeddings, labels)
    for ours, theirs in zip(listed, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


class lambda_module(torch.nn.Module):  # noqa: N801
    def __init__(self, loss: MetricLoss, indices: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.loss, self.indices = loss, indices

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(embeddings, labels, self.indices)


@WITH_PML
def test_parity_with_pytorch_metric_learning(case: Case, lone: bool) -> None:
    ours, embeddings = seeded(case, 40, 8), points(40, 8)
    labels = torch.cat([torch.arange(36) % 9, 10 + torch.arange(4)]) if lone else torch.arange(40) % 10
    assert case.pml is not None
    theirs = case.pml(40, 8).double()
    if case.copy_parameters is not None:
        case.copy_parameters(ours, theirs)
    expected = value_and_gradients(theirs, embeddings, labels)
    found = value_and_gradients(ours, embeddings, labels)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-8)
    assert len(found) == len(expected)
    for of_ours, of_theirs in zip(found[2:], expected[2:], strict=True):
        of_theirs = of_theirs if of_theirs.shape == of_ours.shape else of_theirs.T
        torch.testing.assert_close(of_ours, of_theirs, rtol=1e-5, atol=1e-8)


@OVER_REFERENCES
def test_a_reference_set_is_compared_with_instead_of_the_batch(case: Case) -> None:
    loss, labels = seeded(case, 4, 5), torch.arange(12) % 4
    embeddings, references = points(12, 5), points(16, 5, seed=3)
    value = loss(embeddings, labels, ref_emb=references, ref_labels=torch.arange(16) % 4)
    batch = JointBatch(embeddings, labels, references, torch.arange(16) % 4, None)
    torch.testing.assert_close(value, loss_value(loss.parts(batch)))
    assert value.isfinite()


MEMORY = """
import json, torch
from distmetric.benchmarks.memory import PeakMemory, give_back_free
from losses.cases import CASES, seeded
torch.set_num_threads(1)
embeddings = torch.nn.functional.normalize(torch.randn(8192, 16)).requires_grad_()
labels = torch.arange(8192) // 4
for case in CASES:
    loss = seeded(case, 2048, 16, torch.float32)
    loss(embeddings[:512], labels[:512]).backward()
    found = []
    for _ in range(2):  # what a step needs, it needs every time; how the heap happens to lie differs
        give_back_free()
        peak = PeakMemory(torch.device("cpu"))
        loss(embeddings, labels).backward()
        found.append(peak.above_base() / 2**20)
    print(json.dumps([case.name, min(found)]), flush=True)
"""


@pytest.fixture(scope="session")
def extra_memory() -> dict[str, float]:
    """MiB that a step of 8192 rows takes, for every case; in a process of its own, whose memory nobody else uses."""
    return dict(json.loads(line) for line in measured(MEMORY))


@EVERY
def test_memory_is_linear_in_the_batch(case: Case, extra_memory: dict[str, float]) -> None:
    assert extra_memory[case.name] < 100  # one float32 matrix of 8192 x 8192 would be 256 MiB


def test_settings_are_checked() -> None:
    from distmetric.losses import ContrastiveLoss, TripletLoss

    with pytest.raises(ValueError, match="distance='manhattan' is not known"):
        ContrastiveLoss(distance="manhattan")
    with pytest.raises(ValueError, match="reduction='median' is not known"):
        ContrastiveLoss(reduction="median")
    with pytest.raises(ValueError, match="belong together"):
        TripletLoss()(points(2, 2), torch.tensor([0, 1]), ref_emb=points(2, 2))
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        TripletLoss()(points(2, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="indices_tuple"):
        TripletLoss()(points(2, 2), torch.tensor([0, 1]), (torch.tensor([0]), torch.tensor([1])))
