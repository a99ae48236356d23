"""Kernels give what blocks give: rows, ties, near pairs, gradients. Without a GPU Triton's interpreter runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distmetric.functional import (
    JointBatch,
    all_positive_pairs,
    fused_rows,
    hardest_pairs,
    listed_pairs,
    negative_logsumexp,
    paired_distances,
)
from distmetric.functional.distances import DISTANCES, Distance, unit_length
from distmetric.functional.fused_rows import Counted, Tiles, fused_logsumexp, is_fused
from distmetric.functional.joint_batch import HostLabels
from distmetric.losses import LiftedStructureLoss, TripletLoss
from distmetric.losses.base import loss_value
from distmetric.losses.exponential_rows import ExponentialRowLoss
from host_syncs import HostSyncs
from losses.cases import CASES, Case, seeded

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|divide by zero) encountered:RuntimeWarning")
ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Tiles(rows=16, columns=32, part=16, inner=16, out=32, warps=4, stages=2)
EVERY_DISTANCE = pytest.mark.parametrize("distance", DISTANCES)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fused where the tests run, by tiles so small that everything has several; the kernels that were started."""
    started: list[str] = []
    launch = fused_rows._TiledPairs._launch

    def noted(self, name, *arguments, **settings):
        started.append(name)
        launch(self, name, *arguments, **settings)

    monkeypatch.setattr(fused_rows._TiledPairs, "_launch", noted)
    monkeypatch.setattr(fused_rows, "DEVICES", (DEVICE.type,))
    if DEVICE.type == "cpu":
        monkeypatch.setattr(fused_rows, "TILES", dict.fromkeys(fused_rows.TILES, SMALL))
        monkeypatch.setattr(fused_rows, "SHORT", 16)
    return started


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


# Classes of three, one that covers more than a tile, and some rows that are alone with theirs.
LABELS = torch.tensor([*[0, 1, 2] * 3, *[7] * 20, *range(10, 22)])[torch.randperm(41)]


def batch_of(shape: str, embeddings: torch.Tensor, labels: torch.Tensor) -> JointBatch:
    """One process alone, one of two ranks with other columns before its own, or a set of references."""
    embeddings, labels = embeddings.to(DEVICE), labels.to(DEVICE)
    if shape == "alone":
        return JointBatch.alone(embeddings.requires_grad_(), labels)
    own = slice(9, 27)
    anchors, columns = embeddings[own].clone().requires_grad_(), embeddings.clone().requires_grad_()
    index = torch.arange(9, 27, device=DEVICE) if shape == "rank" else None
    return JointBatch(anchors, labels[own], columns, labels, index)


SHAPES = pytest.mark.parametrize("shape", ["alone", "rank", "references"])


def leaves(batch: JointBatch) -> list[torch.Tensor]:
    return [batch.anchors] if batch.columns is batch.anchors else [batch.anchors, batch.columns]


def exact(batch: JointBatch) -> JointBatch:
    anchors = batch.anchors.detach().double().requires_grad_()
    same = batch.columns is batch.anchors
    columns = anchors if same else batch.columns.detach().double().requires_grad_()
    return replace(batch, anchors=anchors, columns=columns)


def dense_logsumexp(batch: JointBatch, scale: float, distance: Distance, counted: Counted) -> torch.Tensor:
    apart = torch.stack(
        [paired_distances(row.expand_as(batch.columns), batch.columns, distance) for row in batch.anchors]
    )
    out = torch.zeros_like(apart, dtype=torch.bool)
    if counted == "negatives":
        out |= batch.labels[:, None] == batch.column_labels
    if batch.anchor_index is not None:
        out[torch.arange(len(out)), batch.anchor_index] = True
    return torch.logsumexp((-scale * apart).masked_fill(out, -torch.inf), 1)


@SHAPES
@EVERY_DISTANCE
def test_logs_of_sums_and_their_gradients_are_the_dense_ones(shape: str, distance: Distance, kernels) -> None:
    counted: Counted = "others" if distance in ("cosine", "squared_euclidean") else "negatives"
    embeddings = rows(41, 20 if shape == "rank" else 5)
    embeddings[3] = embeddings[30]  # coincide; the root of 0 has gradient 0
    embeddings = unit_length(embeddings) if distance == "cosine" else embeddings
    batch = batch_of(shape, embeddings, LABELS)
    dense, weights = exact(batch), rows(len(batch.labels), 1)[:, 0].to(DEVICE)
    found = fused_logsumexp(batch, 1.5, distance, counted)
    expected = dense_logsumexp(dense, 1.5, distance, counted)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((found * weights).sum(), leaves(batch))
    theirs = torch.autograd.grad((expected * weights).sum(), leaves(dense))
    for of_ours, of_theirs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(of_ours.double(), of_theirs, rtol=1e-4, atol=2e-5)
    assert kernels == ["logsumexp_kernel", *["gradient_kernel"] * len(leaves(batch))]


@pytest.mark.parametrize("wanted", ["anchors", "columns"])
def test_a_gradient_that_only_one_side_wants_is_the_same(wanted: str, kernels) -> None:
    batch = batch_of("rank", rows(41, 5), LABELS)
    (expected,) = torch.autograd.grad(
        fused_logsumexp(batch, 1.0, "euclidean", "negatives").sum(), getattr(batch, wanted)
    )
    getattr(batch, "columns" if wanted == "anchors" else "anchors").requires_grad_(False)
    (found,) = torch.autograd.grad(
        fused_logsumexp(batch, 1.0, "euclidean", "negatives").sum(), getattr(batch, wanted)
    )
    assert torch.equal(found, expected)


@SHAPES
@EVERY_DISTANCE
def test_hardest_pairs_are_those_of_blocks_ties_included(shape: str, distance: Distance, kernels) -> None:
    # Few whole numbers with a mean of 0: distances are exact and most of them are tied, at 0 too.
    half = torch.randint(-1, 2, (20, 3), generator=torch.Generator().manual_seed(4)).float()
    embeddings = torch.cat([half, -half, torch.zeros(1, 3)])
    batch = batch_of(shape, embeddings, LABELS)
    found = hardest_pairs(batch, distance)
    assert kernels == ["hardest_kernel"]
    expected = hardest_pairs(exact(batch), distance)
    assert len(kernels) == 1
    assert torch.equal(found.valid, expected.valid)
    assert 0 < int(found.valid.sum()) < len(found.valid) or shape == "references"
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(ours[found.valid], theirs[found.valid])


@pytest.mark.parametrize("gap", [1e-3, 1e-6])
@pytest.mark.parametrize("far_in_order", [False, True])
def test_near_negatives_are_exact_in_float32(gap: float, far_in_order: bool, kernels) -> None:
    """Also where they are in a tile that holds no row of the anchor's label, and so is looked at twice."""
    centers = rows(20, 8)
    # Apart by `gap` in one dimension that is otherwise 0, which float32 can say.
    near = torch.cat([centers, gap * rows(20, 1, seed=1)], 1)
    embeddings = torch.cat([torch.cat([centers, torch.zeros(20, 1)], 1), near])
    labels = torch.arange(40) if far_in_order else torch.arange(40).view(2, 20).T.reshape(-1).argsort()
    batch = batch_of("alone", embeddings, labels)
    dense = exact(batch)
    values, expected = negative_logsumexp(batch, 1.0), negative_logsumexp(dense, 1.0)
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(values.sum(), batch.anchors)
    (wanted,) = torch.autograd.grad(expected.sum(), dense.anchors)
    assert (found.double() - wanted).norm() < 1e-4 * wanted.norm()
    sides = torch.arange(40) // 20  # whose pairs are each other's negatives
    hardest = hardest_pairs(batch_of("alone", embeddings, sides))
    apart = torch.cdist(embeddings.double(), embeddings.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(
        hardest.negative.cpu(), apart.masked_fill(sides[:, None] == sides, torch.inf).argmin(1)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("distance", "normalize"), [("euclidean", True), ("cosine", True), ("euclidean", False)]
)
def test_narrow_embeddings_lose_nothing_more(
    dtype: torch.dtype, distance: Distance, normalize: bool, kernels
) -> None:
    came = (3 * rows(41, 20)).to(dtype)
    came[5] = 0
    leaf = came.to(DEVICE).requires_grad_()
    batch = JointBatch.alone(leaf, LABELS.to(DEVICE)).prepared(normalize)
    narrow = batch.narrow_rows()
    assert narrow is not None
    assert narrow[0].dtype == dtype
    dense = exact(batch)
    found, expected = (negative_logsumexp(each, 1.0, distance) for each in (batch, dense))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(found.sum(), batch.anchors)
    (theirs,) = torch.autograd.grad(expected.sum(), dense.anchors)
    # Where bfloat16 is multiplied as such, weights are rounded to it.
    rounding = 2**-8 if DEVICE.type == "cuda" else 1e-4
    assert (ours.double() - theirs).norm() < rounding * theirs.norm()


def test_narrow_rows_are_forgotten_with_the_embeddings_they_belong_to() -> None:
    batch = JointBatch.alone(rows(6, 4).bfloat16(), torch.arange(6)).prepared(normalize=True)
    assert batch.narrow_rows() is not None
    assert replace(batch, anchors=batch.columns[:2]).narrow_rows() is None
    assert batch.with_embeddings(lambda embeddings: embeddings * 2).narrow_rows() is None
    assert JointBatch.alone(rows(6, 4), torch.arange(6)).prepared(normalize=True).narrow_rows() is None


FUSED = [
    case
    for case in CASES
    if isinstance(loss := seeded(case, 4, 5), ExponentialRowLoss | LiftedStructureLoss)
    or (isinstance(loss, TripletLoss) and loss.strategy == "batch_hard")
]


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_losses_are_those_of_plain_loops(case: Case, kernels) -> None:
    embeddings, labels = rows(24, 6), torch.tensor([*[3] * 6, *[1, 2] * 6, *range(4, 10)])
    embeddings[7] = embeddings[8]
    loss = seeded(case, 10, 6, torch.float32).to(DEVICE)
    leaf = embeddings.clone().to(DEVICE).requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    blocked = embeddings.double().requires_grad_()
    seeded(case, 10, 6)(blocked, labels).backward()
    assert value.item() == pytest.approx(
        case.oracle(embeddings.double().tolist(), labels.tolist(), loss), rel=2e-5
    )
    torch.testing.assert_close(leaf.grad.cpu().double(), blocked.grad, rtol=1e-4, atol=1e-5)
    assert kernels or getattr(loss, "epsilon", None) is not None


@pytest.mark.parametrize("labels", [[0] * 5, [0, 1, 2, 3, 4]], ids=["one_class", "nobody_alike"])
@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_batches_without_a_pair_of_each_kind_stay_finite(case: Case, labels: list[int], kernels) -> None:
    loss, leaf = seeded(case, 5, 6, torch.float32).to(DEVICE), rows(5, 6).to(DEVICE).requires_grad_()
    value = loss(leaf, torch.tensor(labels))
    value.backward()
    assert value.isfinite()
    assert leaf.grad.isfinite().all()
    blocked = seeded(case, 5, 6)(leaf.detach().double(), torch.tensor(labels))
    torch.testing.assert_close(value.detach().double(), blocked)


@SHAPES
def test_few_positives_are_listed_as_all_of_them(shape: str) -> None:
    batch = batch_of(shape, rows(41, 3), LABELS)
    found = listed_pairs.few_positive_pairs(batch)
    assert found is not None
    expected = all_positive_pairs(batch.labels, batch.column_labels, batch.anchor_index)
    assert torch.equal(found.anchors, expected[0])
    assert torch.equal(found.columns, expected[1])
    assert torch.equal(found.num_negatives, (batch.labels[:, None] != batch.column_labels).sum(1))


def test_many_positives_are_not_listed(kernels, monkeypatch) -> None:
    monkeypatch.setattr(listed_pairs, "MOST_PER_ROW", 1)
    case = next(case for case in FUSED if isinstance(seeded(case, 4, 5), ExponentialRowLoss))
    seeded(case, 4, 5, torch.float32).to(DEVICE)(rows(12, 5).to(DEVICE), torch.arange(12) % 2)
    assert kernels == []


class Nothing:
    """Kernels that are started and do nothing, so that only the host's own work is seen."""

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __getitem__(self, grid: object) -> Nothing:
        return self

    def __call__(self, *arguments: object, **settings: object) -> Nothing:
        return self


@pytest.mark.parametrize(
    "name", ["triplet_hinge", "supcon", "ntxent", "generalized_lifted", "multi_similarity"]
)
def test_the_host_waits_for_no_gpu(name: str, kernels, monkeypatch) -> None:
    monkeypatch.setattr(fused_rows, "_kernels", Nothing)
    loss = seeded(next(case for case in FUSED if case.name == name), 10, 6, torch.float32).to(DEVICE)
    labels = torch.arange(24) % 6
    known = HostLabels(labels.numpy(), labels.numpy())
    batch = JointBatch.alone(rows(24, 6).to(DEVICE).requires_grad_(), labels.to(DEVICE), known)
    syncs = HostSyncs()
    with syncs.watch():
        loss_value(loss.parts(batch)).backward()
    assert syncs.found == []
    assert kernels


def test_one_place_decides_who_is_left_to_kernels(monkeypatch) -> None:
    batch = JointBatch.alone(rows(6, 4), torch.arange(6))
    assert not is_fused(batch)  # not on a GPU
    monkeypatch.setattr(fused_rows, "DEVICES", ("cpu",))
    assert is_fused(batch)
    assert not is_fused(JointBatch.alone(rows(6, 4).double(), torch.arange(6)))
    assert not is_fused(JointBatch.alone(rows(6, fused_rows.MOST_WIDTH + 1), torch.arange(6)))
    assert not is_fused(JointBatch.alone(rows(0, 4), torch.arange(0)))
    assert not is_fused(replace(batch, columns=rows(0, 4), column_labels=torch.arange(0), anchor_index=None))
    monkeypatch.setattr(fused_rows, "has_triton", lambda: False)
    assert not is_fused(batch)


@pytest.mark.parametrize(("capability", "able"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_without_the_multiplications_go_block_by_block(capability, able: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fused_rows._is_able.__wrapped__(torch.device("cuda", 0)) == able


COMPILE = """
import json, torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distmetric.functional import fused_rows, triton_kernels

tiles = {kernel: fused_rows.TILES[kernel, 2, False] for kernel in ("search", "gradient")}
common = {"D": 128, "KIND": 1, "COUNTED": 1, "OF_LEFT": True, "OF_RIGHT": True, "PRECISION": "tf32"}
numbers = {"order": "*i64", "first": "*i32", "last": "*i32", "own": "*i32", "notes": "*i32", "farthest": "*i32",
           "nearest": "*i32", "num_tiles": "i32", "num_rows": "i32", "WIDTH": "i32", "left": "*bf16", "right": "*bf16"}
for name, kernel in (("hardest", "search"), ("logsumexp", "search"), ("gradient", "gradient")):
    function, cut = getattr(triton_kernels, f"{name}_kernel"), tiles[kernel]
    types = {key: triton_kernels.dot_type(torch.bfloat16) for key in ("DOT", "WEIGHT")}
    constants = {**common, **types, "BLOCK_K": cut.inner, "BLOCK_D": cut.out, "BLOCK_M": cut.rows,
                 "BLOCK_N": cut.columns, "PART": cut.part}
    signature, values, hints = {}, {}, {}
    for place, parameter in enumerate(function.params):
        key = parameter.name
        if parameter.is_constexpr:
            signature[key], values[place,] = "constexpr", constants[key]
        else:
            signature[key] = numbers.get(key.removeprefix("left_").removeprefix("right_"), "*fp32")
            signature[key] = numbers.get(key, signature[key])
            hints[place,] = [["tt.divisibility", 16]] if signature[key][0] == "*" else []
    source = ASTSource(function, signature, values, hints)
    built = compile(source, GPUTarget("cuda", 90, 32), {"num_warps": cut.warps, "num_stages": cut.stages})
    code = built.asm["ptx"]
    print(json.dumps([name, built.metadata.shared, code.count("wgmma.mma_async"), code.count("cp.async.c"),
                      code.count(".f64")]))
"""


def test_kernels_compile_for_an_h100_into_its_tensor_cores_and_its_shared_memory() -> None:
    """What the interpreter lets pass the compiler may refuse; it needs no GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == ["hardest", "logsumexp", "gradient"]
    for name, shared, products, loads, doubles in found:
        assert shared <= 227 * 1024, name
        assert products > 0, f"{name} does not use the tensor cores"
        assert loads > 0, f"{name} waits for its loads"
        assert doubles == 0, f"{name} computes in float64"
