"""Cross-batch memory: what is in it, what is compared, and that ranks, resumption and evaluation change nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import nn

import oracles
from distmetric import miners
from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.distributed import DistributedLoss, Replica
from distmetric.distributed.parallel import parallel
from distmetric.errors import ConfigError
from distmetric.functional import JointBatch
from distmetric.functional.tuples import Tuples, all_positive_pairs
from distmetric.losses import (
    ContrastiveLoss,
    ContrastiveLossConfig,
    CrossBatchMemory,
    CrossBatchMemoryConfig,
    LiftedStructureLoss,
    MetricLoss,
    TripletLoss,
    WeightedSumLoss,
    build_loss,
)
from distmetric.losses.base import loss_value
from distmetric.losses.build import LossContext
from distmetric.losses.class_loss import ClassLoss
from distmetric.losses.whole_batch import WholeBatchLoss
from distmetric.miners.base import Miner
from distmetric.training.saved_model import config_dict
from losses.cases import CASES, Case, seeded
from processes import run_ranks
from runs import final_state, run_once, tiny_config

ROOT = Path(__file__).parents[2]
PAIR_CASES = [case for case in CASES if seeded(case, 4, 4).over_pairs]
EVERY_PAIR_LOSS = pytest.mark.parametrize("case", PAIR_CASES, ids=lambda case: case.name)
# PML takes a memory's row number for an anchor's where LiftedStructureLoss looks for the far end's negatives.
COMPARED = set(pml_losses.CrossBatchMemory.supported_losses()) - {"LiftedStructureLoss"}
COMPARABLE = [case for case in PAIR_CASES if case.pml and type(case.pml(4, 4)).__name__ in COMPARED]


def stream(
    sizes: list[int], dim: int = 4, classes: int = 4, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in which every class but the last few rows' has at least two rows."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, dim, dtype=torch.float64, generator=generator), torch.arange(size) // 2 % classes)
        for size in sizes
    ]


def with_gradient(
    loss: nn.Module, embeddings: torch.Tensor, labels: torch.Tensor
) -> tuple[float, torch.Tensor]:
    embeddings = embeddings.clone().requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    return value.item(), embeddings.grad


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    memory_size=st.integers(7, 20),
    start_step=st.integers(0, 3),
    batch_weight=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_sequence_of_batches_has_the_values_of_plain_loops(
    sizes, memory_size, start_step, batch_weight, seed
) -> None:
    batches = stream(sizes, seed=seed)
    loss = CrossBatchMemory(
        ContrastiveLoss(), 4, memory_size, start_step=start_step, batch_weight=batch_weight
    ).double()
    expected = oracles.cross_batch_contrastive(
        [(rows.tolist(), labels.tolist()) for rows, labels in batches], memory_size, start_step, batch_weight
    )
    assert [loss(*batch).item() for batch in batches] == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("case", COMPARABLE, ids=lambda case: case.name)
@pytest.mark.parametrize("memory_size", [8, 16, 21], ids="memory_{}".format)
def test_values_and_gradients_are_those_of_pytorch_metric_learning(case: Case, memory_size: int) -> None:
    assert case.pml is not None
    ours = CrossBatchMemory(seeded(case, 4, 4), 4, memory_size).double()
    theirs = pml_losses.CrossBatchMemory(case.pml(4, 4), 4, memory_size).double()
    if case.copy_parameters is not None:
        case.copy_parameters(ours.loss, theirs.loss)
    # With 21 rows the third batch wraps around, and the memory is full after it.
    for rows, labels in stream([8] * 7):
        value, gradient = with_gradient(ours, rows, labels)
        their_value, their_gradient = with_gradient(theirs, rows, labels)
        assert value == pytest.approx(their_value, rel=1e-6, abs=1e-9)
        torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-9)


@EVERY_PAIR_LOSS
def test_the_memory_is_the_newest_rows_without_an_anchors_own(case: Case) -> None:
    inner, loss = seeded(case, 4, 4), CrossBatchMemory(seeded(case, 4, 4), 4, 15).double()
    history: list[tuple[torch.Tensor, torch.Tensor]] = []
    for rows, labels in stream([6, 5, 0, 8, 3, 8, 15, 1]):
        history.append((rows, labels))
        newest, their_labels = (torch.cat(part)[-15:] for part in zip(*history, strict=True))
        anchors = rows.clone().requires_grad_()
        own = torch.arange(len(newest) - len(rows), len(newest))
        expected = loss_value(inner.parts(JointBatch(anchors, labels, newest, their_labels, own)))
        expected.backward()
        value, gradient = with_gradient(loss, rows, labels)
        assert value == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(gradient, anchors.grad, rtol=1e-8, atol=1e-12)
        assert loss.filled == len(newest)


def test_the_published_value_and_its_pieces() -> None:
    """The authors sum 1 - s over positives and s > 0.5 over negatives, and divide by the number of anchors.

    With cosine distance and margin 0.5 a negative of ours has s - 0.5 instead of s: the same gradient, and 0.5 less a
    negative that counts. The division by the anchors is a weight.
    """
    memory = torch.nn.functional.normalize(torch.tensor([[1, 0.2], [0.5, 1], [1, 1]], dtype=torch.float64))
    anchors = torch.nn.functional.normalize(torch.tensor([[1, 0], [0.2, 1]], dtype=torch.float64))
    inner = ContrastiveLoss(0.0, 0.5, distance="cosine", reduction="sum")
    loss = CrossBatchMemory(WeightedSumLoss({"mean": (1 / 2, inner)}), 2, 3).double()
    loss(memory, torch.tensor([0, 1, 1]))
    loss.eval()
    batch = JointBatch.alone(anchors.requires_grad_(), torch.tensor([0, 1]))
    positive, negative = loss.parts(batch)
    value = loss_value([positive, negative])
    assert (positive.num_terms, negative.num_active) == (3, 1)
    assert value.item() + 0.5 * negative.num_active / 2 == pytest.approx(0.464856, abs=1e-6)
    s = anchors @ memory.T
    same = torch.tensor([[True, False, False], [False, True, True]])
    authors = torch.where(same, 1 - s, torch.where(s > 0.5, s, 0)).sum() / 2
    assert authors.item() == pytest.approx(0.464856, abs=1e-6)
    # Cosine distance normalizes on its way: the part of the authors' gradient along the anchor is gone.
    (ours,), (theirs,) = (torch.autograd.grad(each, anchors, retain_graph=True) for each in (value, authors))
    along = (theirs * anchors).sum(1, keepdim=True) * anchors
    torch.testing.assert_close(ours, (theirs - along).detach())


def test_own_copies_are_known_by_place_and_duplicates_stay() -> None:
    rows, labels = torch.ones(2, 3, dtype=torch.float64), torch.tensor([0, 0])
    loss = CrossBatchMemory(ContrastiveLoss(reduction="mean"), 3, 8).double()
    assert int(loss.parts(JointBatch.alone(rows, labels))[0].num_terms) == 2
    assert int(loss.parts(JointBatch.alone(rows, labels))[0].num_terms) == 2 * 3


@EVERY_PAIR_LOSS
@pytest.mark.parametrize(
    "labels", [[0, 0, 0], [0, 1, 2], [1], []], ids=["one_class", "no_positives", "one", "empty"]
)
def test_batches_without_a_pair_of_each_kind_stay_finite_with_a_live_graph(case: Case, labels) -> None:
    loss = CrossBatchMemory(seeded(case, 4, 3), 3, 4).double()
    for _ in range(3):
        rows = torch.ones(len(labels), 3, dtype=torch.float64)
        value, gradient = with_gradient(loss, rows, torch.tensor(labels, dtype=torch.int64))
        assert np.isfinite(value)
        assert gradient.isfinite().all()


def test_evaluation_reads_the_memory_and_leaves_it_alone() -> None:
    (rows, labels), (others, their_labels) = stream([6, 6])
    loss = CrossBatchMemory(ContrastiveLoss(), 4, 12).double().eval()
    assert loss(rows, labels).item() == ContrastiveLoss()(rows, labels).item()  # nothing there yet
    loss.train()(others, their_labels)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    value = loss.eval()(rows, labels)
    expected = ContrastiveLoss()(rows, labels, ref_emb=others, ref_labels=their_labels)
    torch.testing.assert_close(value, expected)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_without_gradient_the_memory_fills_and_reset_empties_it() -> None:
    (rows, labels), (others, their_labels) = stream([6, 6])
    loss = CrossBatchMemory(ContrastiveLoss(), 4, 12).double()
    with torch.no_grad():
        loss(others, their_labels)
    assert (loss.filled, loss.metrics()["memory_fill"].item()) == (6, 0.5)
    loss.reset_queue()
    assert (loss.filled, loss.metrics()["memory_fill"].item()) == (0, 0.0)
    first = loss(rows, labels)
    torch.testing.assert_close(first, CrossBatchMemory(ContrastiveLoss(), 4, 12).double()(rows, labels))


def test_before_the_start_only_the_batch_counts_and_the_memory_fills() -> None:
    batches = stream([4] * 4)
    loss = CrossBatchMemory(ContrastiveLoss(), 4, 16, start_step=2, batch_weight=0.5).double()
    told = CrossBatchMemory(ContrastiveLoss(), 4, 16, start_step=102, batch_weight=0.5).double()
    always = CrossBatchMemory(ContrastiveLoss(), 4, 16, batch_weight=0.5).double()
    for step, (rows, labels) in enumerate(batches):
        told.set_step(100 + step)
        value, also, with_memory = (each(rows, labels).item() for each in (loss, told, always))
        expected = ContrastiveLoss()(rows, labels).item() if step < 2 else with_memory
        assert value == also == pytest.approx(expected)
    assert loss.filled == 16


class EveryPositive(Miner):
    """All positive pairs of the batch and no negative one; notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def choose(self, batch: JointBatch) -> Tuples:
        self.seen.append(len(batch.columns))
        anchors, positives = all_positive_pairs(batch.labels, batch.column_labels, batch.anchor_index)
        return Tuples(anchors, positives, anchors[:0], positives[:0], triplets=False)


def test_a_miner_chooses_from_the_memory_and_from_the_batch() -> None:
    miner, batches = EveryPositive(), stream([4, 6])
    loss = CrossBatchMemory(ContrastiveLoss(), 4, 16, miner, start_step=0, batch_weight=2.0).double()
    loss.set_step(5)
    terms = [[float(t.num_terms) for t in loss.parts(JointBatch.alone(*batch))] for batch in batches]
    assert miner.step == 5
    assert miner.seen == [4, 4, 10, 6]
    assert terms == [
        [4, 0, 4, 0],
        [6 + 2 * 4, 0, 6, 0],
    ]  # rows 0 to 3 of the second batch have two more in memory


@pytest.mark.parametrize("name", ["MultiSimilarityMiner", "BatchHardMiner"])
def test_mining_in_the_memory_is_that_of_pytorch_metric_learning(name: str) -> None:
    ours = CrossBatchMemory(ContrastiveLoss(), 4, 21, getattr(miners, name)()).double()
    theirs = pml_losses.CrossBatchMemory(
        pml_losses.ContrastiveLoss(), 4, 21, getattr(pml_miners, name)()
    ).double()
    for rows, labels in stream([8] * 5):
        value, gradient = with_gradient(ours, rows, labels)
        their_value, their_gradient = with_gradient(theirs, rows, labels)
        assert value == pytest.approx(their_value, rel=1e-9)
        torch.testing.assert_close(gradient, their_gradient)


def test_pairs_chosen_in_the_batch_need_a_part_that_sees_them() -> None:
    ((rows, labels),) = stream([6])
    chosen = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"batch_weight=0 .*CrossBatchMemory\(miner=\.\.\.\)"):
        CrossBatchMemory(ContrastiveLoss(), 4)(rows, labels, chosen)
    loss = CrossBatchMemory(ContrastiveLoss(), 4, batch_weight=0.5).double()
    expected = CrossBatchMemory(ContrastiveLoss(), 4).double()(rows, labels)
    expected += 0.5 * ContrastiveLoss()(rows, labels, chosen)
    torch.testing.assert_close(loss(rows, labels, chosen), expected)


def test_reference_rows_go_into_the_memory_and_no_pair_is_left_out() -> None:
    (rows, labels), (references, their_labels) = stream([6, 4])
    loss = CrossBatchMemory(ContrastiveLoss(), 4, 8).double()
    value = loss(rows, labels, ref_emb=references, ref_labels=their_labels)
    torch.testing.assert_close(
        value, ContrastiveLoss()(rows, labels, ref_emb=references, ref_labels=their_labels)
    )
    torch.testing.assert_close(loss.embedding_memory[:4], references)


def test_a_backward_after_the_next_batch_still_meets_its_own_memory() -> None:
    batches = stream([6, 6, 6])
    later, now = (CrossBatchMemory(TripletLoss("soft"), 4, 12).double() for _ in range(2))
    inputs = [rows.clone().requires_grad_() for rows, _ in batches]
    values = [later(rows, labels) for rows, (_, labels) in zip(inputs, batches, strict=True)]
    torch.stack(values).sum().backward()
    for rows, batch in zip(inputs, batches, strict=True):
        torch.testing.assert_close(rows.grad, with_gradient(now, *batch)[1])


def test_drift_is_measured_from_the_newest_copy_of_the_same_image() -> None:
    loss = CrossBatchMemory(ContrastiveLoss(), 1, 4).double()

    def step(values: list[float], ids: list[int] | None) -> float:
        rows = torch.tensor(values, dtype=torch.float64)[:, None]
        batch = JointBatch.alone(rows, torch.zeros(len(values), dtype=torch.int64))
        loss.parts(batch if ids is None else replace(batch, column_ids=torch.tensor(ids)))
        return loss.metrics()["memory_drift"].item()

    nan = pytest.approx(float("nan"), nan_ok=True)
    assert loss.metrics()["memory_drift"].item() == nan
    assert step([0.0, 10.0], [5, -3]) == nan  # nothing there before
    assert step([1.0, 20.0], [5, 7]) == 1.0
    assert step([4.0, 10.5], [5, 8]) == 3.0  # from 1, not from 0
    assert step([9.0], [-3]) == nan  # its copy has been overwritten
    assert step([9.0], None) == nan
    assert step([10.0, 4.25], [-3, 5]) == pytest.approx((1.0 + 0.25) / 2)
    assert step([1.0], [int(loss.id_memory.min())]) == nan  # the row without an id is nobody's copy


def test_the_state_brings_everything_back(tmp_path: Path) -> None:
    batches, make = (
        stream([5, 6, 4, 7, 5]),
        lambda: CrossBatchMemory(TripletLoss("soft"), 4, 13, start_step=4).double(),
    )
    loss, resumed = make(), make()
    for batch in batches[:3]:
        loss(*batch)
    saved = io.BytesIO()
    torch.save(loss.state_dict(), saved)
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    assert resumed.filled == loss.filled == 13
    for batch in batches[3:]:
        value, gradient = with_gradient(loss, *batch)
        again, also = with_gradient(resumed, *batch)
        assert value == again
        assert torch.equal(gradient, also)


def test_the_memory_is_as_wide_as_the_embeddings() -> None:
    (rows, labels), _ = stream([6, 6])
    loss = CrossBatchMemory(ContrastiveLoss(), 4, 8)
    loss(rows.bfloat16(), labels)
    assert loss.embedding_memory.dtype == torch.float32
    loss(rows, labels)
    assert loss.embedding_memory.dtype == torch.float64
    torch.testing.assert_close(loss.embedding_memory[6:], rows[:2], rtol=0, atol=0)
    loss(rows.float(), labels.int())
    assert loss.embedding_memory.dtype == torch.float32


def test_impossible_memories_are_refused() -> None:
    (rows, labels), _ = stream([6, 6])
    with pytest.raises(
        ValueError, match=r"a batch of 6 rows does not fit into memory_size=5: set memory_size to 6"
    ):
        CrossBatchMemory(ContrastiveLoss(), 4, 5)(rows, labels)
    with pytest.raises(ValueError, match="length 4, but the memory was made with embedding_size=3"):
        CrossBatchMemory(ContrastiveLoss(), 3)(rows, labels)
    for settings_, message in [
        ({"memory_size": 0}, "memory_size=0"),
        ({"start_step": -1}, "start_step=-1"),
        ({"batch_weight": -0.5}, "batch_weight=-0.5"),
        ({"batch_weight": float("inf")}, "batch_weight=inf"),
        ({"miner": nn.Identity()}, "miner=Identity"),
    ]:
        with pytest.raises(ValueError, match=message):
            CrossBatchMemory(ContrastiveLoss(), 4, **settings_)
    unfit: list[MetricLoss] = [
        ClassLoss(3, 4),
        WholeBatchLoss(nn.Identity()),
        CrossBatchMemory(ContrastiveLoss(), 4),
        WeightedSumLoss({"near": (1.0, ContrastiveLoss()), "classes": (1.0, ClassLoss(3, 4))}),
    ]
    for loss in unfit:
        with pytest.raises(ValueError, match="has no use for a memory"):
            CrossBatchMemory(loss, 4)


MEMORY = """
import resource, torch
from distmetric.losses import ContrastiveLoss, CrossBatchMemory
torch.set_num_threads(1)
loss = CrossBatchMemory(ContrastiveLoss(), 16, 65536, start_step=64)
for part in range(64):
    rows = torch.nn.functional.normalize(torch.randn(1024, 16)).requires_grad_()
    loss(rows, torch.arange(1024) // 4 + 1000 * part).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss(rows, torch.arange(1024) // 4).backward()
assert loss.filled == 65536
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_matrix_of_batch_and_memory_is_never_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100  # 1024 x 65536 in float32 would be 256 MiB


SPLITS = {1: [[6, 6, 5]], 2: [[4, 3], [6, 1], [0, 5]], 3: [[2, 3, 3], [6, 0, 1], [1, 1, 5]]}


def trunk() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def rank_steps(replica: Replica, sizes: list[list[int]]) -> dict[str, list[np.ndarray]]:
    """Every pair loss over three batches: values, gradients of the trunk, and what the memory then holds."""
    found = {}
    for case in PAIR_CASES:
        model = parallel(trunk(), replica, torch.device("cpu"))
        loss = CrossBatchMemory(seeded(case, 4, 4), 4, 15, batch_weight=0.5 if "hinge" in case.name else 0.0)
        criterion, numbers = DistributedLoss(loss.double(), replica), []
        for (rows, labels), split in zip(stream([sum(split) for split in sizes]), sizes, strict=True):
            own = slice(sum(split[: replica.rank]), sum(split[: replica.rank + 1]))
            model.zero_grad()
            value = criterion(model(rows[own]), labels[own])
            value.backward()
            numbers += [value.detach().numpy(), *(p.grad.numpy().copy() for p in model.parameters())]
        found[case.name] = [*numbers, loss.embedding_memory.numpy(), loss.label_memory.numpy()]
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_have_one_memory_and_the_loss_of_one_process(world_size: int) -> None:
    splits = SPLITS[world_size]
    one = rank_steps(Replica(), [[sum(split)] for split in splits])
    ranks = run_ranks(world_size, rank_steps, splits, timeout=120.0)
    for name, expected in one.items():
        for rank in ranks:
            for ours, single in zip(rank[name], expected, strict=True):
                np.testing.assert_allclose(ours, single, rtol=0, atol=1e-10, err_msg=name)
            for ours, first in zip(rank[name][-2:], ranks[0][name][-2:], strict=True):
                np.testing.assert_array_equal(ours, first)


def test_the_far_end_of_a_lifted_pair_has_its_negatives_among_all_anchors() -> None:
    """Two ranks by hand: what a rank finds for its pairs does not depend on which anchors are its own."""
    rows, labels = stream([8], classes=3)[0]
    inner = LiftedStructureLoss(normalize_embeddings=False)
    memory, memory_labels = stream([12], classes=3, seed=1)[0]

    def total(own: slice) -> torch.Tensor:
        (term,) = inner.parts(
            JointBatch(
                rows[own], labels[own], memory, memory_labels, None, joint_anchors=rows, joint_labels=labels
            )
        )
        return term.total

    torch.testing.assert_close(total(slice(0, 3)) + total(slice(3, 8)), total(slice(0, 8)))


SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16")
OVERRIDES = ("loss=cross_batch_memory", "loss.memory_size=150", "loss.batch_weight=0.5", *SMALL)


def test_training_fills_the_memory_and_an_interruption_changes_nothing(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, "train.log_every=3", *OVERRIDES)
    whole, tracker = final_state(config, tmp_path / "whole")
    resumed, replayed = final_state(config, tmp_path / "resumed", fail_at=17)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    losses, again = (each.series("train/loss") for each in (tracker, replayed))
    assert again == {step: loss for step, loss in losses.items() if step > 10}
    fill = tracker.series("train/memory_fill")
    assert fill[1] == pytest.approx(32 / 150)
    assert (fill[4], fill[5], fill[20]) == (pytest.approx(128 / 150), 1.0, 1.0)
    drift = tracker.series("train/memory_drift")
    assert drift  # some steps draw an image again while it is in the memory
    assert all(0 < moved < 2 for moved in drift.values())  # on unit vectors


def test_the_miner_of_a_run_chooses_from_the_memory(glyph_cache, tmp_path) -> None:
    config = tiny_config(
        glyph_cache, "loss=cross_batch_memory", "miner=multi_similarity", "train.steps=2", *SMALL
    )
    worker, _, tracker = run_once(config, tmp_path)
    memory = worker.criterion.loss
    assert isinstance(memory, CrossBatchMemory)
    assert memory.miner is worker.criterion.miner
    assert memory.filled == 64
    assert len(tracker.series("train/loss")) == 2


def test_the_configuration_survives_a_checkpoint_and_builds_the_loss(glyph_cache) -> None:
    config = tiny_config(glyph_cache, "loss=cross_batch_memory", "loss@loss.loss=triplet_hard_margin")
    assert decode(Config, json.loads(json.dumps(config_dict(config)))) == config
    miner = EveryPositive()
    loss = build_loss(config.loss, LossContext([4, 4], 32, miner=miner))
    assert isinstance(loss, CrossBatchMemory)
    assert repr(loss.loss) == repr(TripletLoss(0.2))
    assert not loss.loss.normalize_embeddings
    assert (loss.memory_size, loss.embedding_size, loss.batch_weight, loss.miner) == (1024, 32, 0.0, miner)


def test_a_memory_that_cannot_be_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^loss: memory_size=0 is wrong"):
        decode(Config, compose("config", ["loss=cross_batch_memory", "loss.memory_size=0"]))
    too_small = decode(Config, compose("config", ["loss=cross_batch_memory", "loss.memory_size=32"]))
    with pytest.raises(
        ConfigError, match=r"^loss.memory_size=32 is too small for a batch of 256 rows: set loss"
    ):
        validate(too_small)
    with pytest.raises(ConfigError, match=r"loss\.name=cross_batch_memory has no use for a memory"):
        decode(Config, compose("config", ["loss=cross_batch_memory", "loss@loss.loss=cross_batch_memory"]))
    assert CrossBatchMemoryConfig(loss=ContrastiveLossConfig()).memory_size == 1024
