"""What holds for every miner: plain loops, ranks, blocks, names of labels, degenerate batches, memory, the field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners

from distmetric.distributed.gather import gather_batch
from distmetric.distributed.replica import Replica
from distmetric.functional import column_draws, distances
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.tuples import Tuples
from distmetric.losses import ContrastiveLoss, TripletLoss
from distmetric.miners import BatchEasyHardMiner, BatchHardMiner, MultiSimilarityMiner, TripletMarginMiner
from miners.cases import CASES, STEP, Case, chosen, expected
from processes import run_ranks

ROOT = Path(__file__).parents[2]
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
WITH_PML = pytest.mark.parametrize("case", [case for case in CASES if case.pml], ids=lambda case: case.name)
LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=14)


def points(count: int, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mined(case: Case, *batch: torch.Tensor) -> tuple[list[tuple[int, ...]], ...]:
    miner = case.make()
    miner.set_step(STEP)
    return chosen(miner(*batch))


@EVERY
@given(
    labels=LABELS,
    seed=st.integers(0, 999),
    block_rows=st.integers(1, 14),
    small_rank=st.sampled_from([1, 256]),
)
@settings(max_examples=30, deadline=None)
def test_miners_equal_plain_loops_for_any_block_size(case, labels, seed, block_rows, small_rank) -> None:
    embeddings = points(len(labels), seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "MIN_BLOCK_ROWS", block_rows)
        patch.setitem(distances.BLOCK_BYTES, "cpu", 1)
        patch.setattr(column_draws, "_SMALL_RANK", small_rank)
        found = mined(case, embeddings, torch.tensor(labels))
    assert found == expected(case.oracle(embeddings.tolist(), labels))


@WITH_PML
@given(labels=LABELS, seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_miners_choose_what_pytorch_metric_learning_chooses(case, labels, seed) -> None:
    embeddings, label = points(len(labels), seed=seed), torch.tensor(labels)
    theirs = case.pml()(embeddings, label)
    assert len(case.make()(embeddings, label)) == len(theirs)
    assert mined(case, embeddings, label) == chosen(theirs)


@WITH_PML
def test_miners_choose_the_same_from_a_reference_set(case) -> None:
    embeddings, label = points(10), torch.arange(10) % 4
    others, other_labels = points(17, seed=1), torch.arange(17) % 5
    theirs = case.pml()(embeddings, label, others, other_labels)
    assert mined(case, embeddings, label, others, other_labels) == chosen(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("euclidean", ("LpDistance", {"normalize_embeddings": True})),
        ("squared_euclidean", ("LpDistance", {"normalize_embeddings": True, "power": 2})),
        ("cosine", ("CosineSimilarity", {})),
        ("dot_product", ("DotProductSimilarity", {"normalize_embeddings": True})),
    ],
)
def test_distances_mean_what_they_mean_in_pytorch_metric_learning(ours, theirs) -> None:
    name, options = theirs
    distance = getattr(pml_distances, name)(**options)
    embeddings, labels = points(24, 5), torch.arange(24) % 5
    for our_miner, their_miner in (
        (BatchHardMiner(distance=ours), pml_miners.BatchHardMiner(distance=distance)),
        (BatchEasyHardMiner(distance=ours), pml_miners.BatchEasyHardMiner(distance=distance)),
        (
            BatchEasyHardMiner("semihard", "hard", distance=ours),
            pml_miners.BatchEasyHardMiner("semihard", "hard", distance=distance),
        ),
        (MultiSimilarityMiner(0.3, distance=ours), pml_miners.MultiSimilarityMiner(0.3, distance=distance)),
        (
            TripletMarginMiner(0.3, "semihard", distance=ours),
            pml_miners.TripletMarginMiner(0.3, "semihard", distance=distance),
        ),
    ):
        found = chosen(our_miner(embeddings, labels))
        assert found == chosen(their_miner(embeddings, labels))
        assert all(found)


@WITH_PML
def test_indices_go_from_either_library_into_losses_of_the_other(case) -> None:
    # Large enough for more than one pair of everything: pytorch-metric-learning takes a single pair for none.
    embeddings, labels = points(40, 4), torch.arange(40) % 8
    indices = [case.make()(embeddings, labels), case.pml()(embeddings, labels)]
    for losses in (
        (
            TripletLoss(5.0, "batch_all", normalize_embeddings=True, reduction="nonzero_mean"),
            pml_losses.TripletMarginLoss(5.0),
        ),
        (ContrastiveLoss(), pml_losses.ContrastiveLoss()),
    ):
        values = [loss(embeddings, labels, found) for loss in losses for found in indices]
        assert values[0] > 0
        torch.testing.assert_close(values, values[:1] * 4)


def rank_choices(replica: Replica, sizes: list[int]) -> dict[str, list[np.ndarray]]:
    """What one rank of several chooses, by anchors of the joint batch."""
    embeddings, labels = points(13), torch.arange(13) % 4
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    batch = gather_batch(embeddings[own], labels[own], replica)
    result = {}
    for case in CASES:
        miner = case.make()
        miner.set_step(STEP)
        found = miner.mine(batch)
        result[case.name] = [
            part.numpy()
            for part in (
                *(found.anchors_of_positives + start, found.positives),
                *(found.anchors_of_negatives + start, found.negatives),
            )
        ]
    return result


@pytest.mark.parametrize(
    "sizes", [[13], [8, 5], [12, 1], [0, 6, 7], [5, 4, 4]], ids=lambda sizes: "+".join(map(str, sizes))
)
def test_ranks_together_choose_what_one_process_chooses(sizes: list[int]) -> None:
    results = run_ranks(len(sizes), rank_choices, sizes)
    embeddings, labels = points(13), torch.arange(13) % 4
    for case in CASES:
        alone = mined(case, embeddings, labels)
        parts = [
            np.concatenate(part) for part in zip(*(result[case.name] for result in results), strict=True)
        ]
        joint = [torch.from_numpy(part) for part in parts]
        assert sum(map(len, alone))
        assert chosen([joint[0], joint[1], joint[3]] if len(alone) == 1 else joint) == alone, case.name


@EVERY
def test_the_names_of_labels_do_not_matter(case) -> None:
    embeddings, labels = points(30), torch.arange(30) % 7
    names = torch.tensor([5, -3, 900, 0, 17, 2**40, 4])
    assert mined(case, embeddings, labels) == mined(case, embeddings, names[labels])


@EVERY
@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0], []],
    ids=["one_class", "no_positives", "one_row", "empty"],
)
def test_without_positives_or_negatives_there_are_no_triplets(case, labels) -> None:
    miner = case.make()
    found = Tuples.of(miner(points(len(labels)), torch.tensor(labels, dtype=torch.int64)))
    # Pairs of one kind may be there, of "all" even without one of the other kind, but nothing to compare them with.
    assert [len(part) for part in found.as_triplets()] == [0, 0, 0]
    assert all(part.dtype == torch.int64 for part in found.indices())


@EVERY
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_is_chosen_from_duplicates_is_valid(case, value) -> None:
    labels = torch.arange(12) % 3
    found = Tuples.of(case.make()(torch.full((12, 4), value), labels))
    assert (labels[found.anchors_of_positives] == labels[found.positives]).all()
    assert (found.anchors_of_positives != found.positives).all()
    assert (labels[found.anchors_of_negatives] != labels[found.negatives]).all()


@EVERY
def test_half_precision_is_compared_in_float32(case) -> None:
    embeddings, labels = points(20, 8).bfloat16(), torch.arange(20) % 4
    assert mined(case, embeddings, labels) == mined(case, embeddings.float(), labels)


@EVERY
def test_mining_leaves_the_batch_alone_and_has_no_graph(case) -> None:
    embeddings, labels = points(20, 8).requires_grad_(), torch.arange(20) % 4
    before = embeddings.detach().clone()
    batch = JointBatch.alone(embeddings, labels)
    miner = case.make()
    assert chosen(miner.mine(batch)) == chosen(miner.mine(batch))
    assert torch.equal(embeddings, before)
    TripletLoss(0.2).parts(batch.with_tuples(miner.mine(batch)))[0].total.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


MEMORY = """
import resource, sys
import torch
sys.path.insert(0, "tests")
from miners.cases import CASES
torch.set_num_threads(1)
miners = [case.make() for case in CASES if case.name in sys.argv[1:]]
embeddings = torch.nn.functional.normalize(torch.randn(8192, 32))
labels = torch.arange(8192) // 4
for miner in miners:
    miner(embeddings[:512], labels[:512])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for miner in miners:
    miner(embeddings, labels)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, repr(miner), file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
LINEAR = ("batch_hard", "batch_easy_hard_easy_semihard", "semi_hard", "distance_weighted", "hardness_third")
LINEAR += ("hardness_median", "hardness_window_all_positives", "hardness_temperature_all_positives")


def test_memory_is_linear_in_the_batch() -> None:
    command = [sys.executable, "-c", MEMORY, *LINEAR]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60, done.stderr  # one float32 matrix of 8192 x 8192 would be 256 MiB


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="distance='manhattan' is not known"):
        BatchHardMiner(distance="manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong together"):
        BatchHardMiner()(points(2), torch.tensor([0, 1]), ref_emb=points(2))
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        BatchHardMiner()(points(2), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="cannot both be"):
        BatchEasyHardMiner("semihard", "semihard")
    with pytest.raises(ValueError, match='cannot go with "all"'):
        BatchEasyHardMiner("all", "semihard")
    with pytest.raises(ValueError, match=r"allowed_neg_range=.* the smaller distance first"):
        BatchEasyHardMiner(allowed_neg_range=(1.0, 0.5))
    with pytest.raises(ValueError, match="type_of_triplets='hardish' is not known"):
        TripletMarginMiner(type_of_triplets="hardish")  # type: ignore[arg-type]
