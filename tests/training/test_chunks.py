"""Batches taken through the trunk in chunks train what batches at once train, with the memory of a chunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distmetric.config.schema import Config
from distmetric.distributed import Replica
from distmetric.training.model_pass import AugmentedImages
from distmetric.training.notices import read_notices
from poison import Poison, poisoned_run, states
from processes import run_ranks
from runs import LOSS_OF_OTHERS, final_state, run_once, tensors_of, tiny_config

CONF = Path(__file__).parents[2] / "conf"
EXACT = (
    *("train.steps=3", "train.precision=float64", "train.log_every=1", "eval.resamples=0"),
    *("model.norm=group", "model.widths=[8, 8]", "model.embedding_dim=16", "schedule.warmup_steps=1"),
    *("sampler.classes_per_batch=5", "sampler.samples_per_class=5", "optim.clip_norm=2.0"),
)
"""25 rows, which two ranks have 13 and 12 of."""
CHUNKS = "train.chunk_size=7"

Outcome = tuple[list[np.ndarray], dict[str, dict[int, float]]]
COMPARED = ("train/loss", "train/gradient_norm", "train/active_fraction", "eval/map_at_r")


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def outcome(replica: Replica, config: Config, run_dir: Path) -> Outcome:
    worker, _, tracker = run_once(config, run_dir, replica=replica)
    state = tensors_of(worker)
    numbers = [tensor.double().numpy() for tensor in state if isinstance(tensor, torch.Tensor)]
    return numbers, {name: tracker.series(name) for name in COMPARED}


def assert_same(found: Outcome, expected: Outcome, is_main: bool = True) -> None:
    for ours, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    for name in COMPARED if is_main else ():
        assert len(expected[1][name]) > 0
        assert found[1][name] == pytest.approx(expected[1][name], rel=1e-9, abs=1e-10), name


CASES = [
    *(pytest.param((f"loss={name}",), id=name) for name in names("loss") if name != "custom"),
    pytest.param(("loss=custom", *LOSS_OF_OTHERS), id="custom"),
    *(pytest.param(("loss=triplet", f"miner={name}"), id=name) for name in names("miner") if name != "none"),
    pytest.param(("loss=aitl", "model.attributes_detached=false"), id="attributes_that_train_the_trunk"),
    pytest.param(("loss=triplet", "model.head=mlp", "optim=sgd"), id="mlp"),
]


@pytest.mark.parametrize("overrides", CASES)
def test_chunks_train_what_the_whole_batch_trains(
    overrides: tuple[str, ...], glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *overrides[:1], *EXACT, *overrides[1:])
    expected = outcome(Replica(), config, tmp_path / "whole")
    config = tiny_config(glyph_cache, *overrides[:1], *EXACT, *overrides[1:], CHUNKS)
    assert_same(outcome(Replica(), config, tmp_path / "chunks"), expected)


HARD = (
    *("sampler=hard_neighbors", "sampler.round_steps=1", "sampler.warmup_steps=0", "train.steps=4"),
    *("index=inline", "index.refresh_steps=2", "sampler.classes_per_batch=5", "sampler.samples_per_class=5"),
)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("loss=aitl", "model.attributes_detached=false"), id="attributes"),
        pytest.param(("loss=cross_batch_memory", "loss.memory_size=60"), id="memory"),
        pytest.param(("loss=soft_triple",), id="loss_with_parameters"),
        pytest.param(("loss=triplet", *HARD), id="hard_neighbors"),
    ],
)
def test_two_ranks_with_unequally_many_chunks_train_what_one_process_trains(
    overrides: tuple[str, ...], glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *overrides[:1], *EXACT, *overrides[1:])
    expected = outcome(Replica(), config, tmp_path / "whole")
    # 13 rows are two chunks, 12 are one.
    config = tiny_config(glyph_cache, *overrides[:1], *EXACT, *overrides[1:], "train.chunk_size=12")
    ranks = run_ranks(2, outcome, config, tmp_path / "chunks")
    for rank, found in enumerate(ranks):
        assert_same(found, expected, rank == 0)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((CHUNKS, "model.norm=group"), id="exact"),
        pytest.param(("train.chunk_size=9",), id="batch_norm"),
    ],
)
def test_killed_and_resumed_is_never_killed_with_chunks(
    overrides: tuple[str, ...], glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        glyph_cache, "train.log_every=2", "checkpoint.every_steps=5", "model.widths=[8, 8]", *overrides
    )
    whole, tracker = final_state(config, tmp_path / "whole")
    resumed, again = final_state(config, tmp_path / "resumed", fail_at=14)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    losses = again.series("train/loss")
    assert min(losses) == 11
    assert losses == {step: loss for step, loss in tracker.series("train/loss").items() if step >= 11}


@pytest.mark.parametrize("poison", ["embedding", "gradient"])
def test_steps_that_are_not_finite_are_left_out_with_chunks(
    poison: Poison, glyph_cache: Path, tmp_path: Path
) -> None:
    overrides = (*EXACT, "train.non_finite=skip", "train.steps=5")
    found = []
    for name, more in (("whole", ()), ("chunks", (CHUNKS,))):
        config = tiny_config(glyph_cache, "loss=cross_batch_memory", "loss.memory_size=60", *overrides, *more)
        poisoned, _, tracker = poisoned_run(config, tmp_path / name, {2: poison})
        assert tracker.series("train/skipped_steps")[5] == 1
        found.append([value.double() for part in states(poisoned.worker) for value in part.values()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_autocast_passes_gradients_to_every_weight_from_every_chunk(
    glyph_cache: Path, tmp_path: Path
) -> None:
    overrides = (*EXACT, "train.precision=bfloat16", "train.steps=1", "optim=sgd", "optim.momentum=0")
    losses, weights = [], []
    for name, more in (("whole", ()), ("chunks", (CHUNKS,))):
        worker, _, tracker = run_once(tiny_config(glyph_cache, *overrides, *more), tmp_path / name)
        assert {parameter.dtype for parameter in worker.embedder.parameters()} == {torch.float32}
        losses.append(tracker.series("train/loss")[1])
        weights.append({name: w.grad.clone() for name, w in worker.embedder.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for name, gradient in weights[0].items():
        assert (weights[1][name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_a_rank_has_chunks_of_batch_norm_and_says_so(glyph_cache: Path, tmp_path: Path) -> None:
    overrides = (*EXACT, "model.norm=batch")
    run_once(tiny_config(glyph_cache, *overrides, CHUNKS), tmp_path / "chunks")
    (notice,) = read_notices(str(tmp_path / "chunks"))
    assert "train.chunk_size=7: the trunk's batch norms see chunks of 7 rows or fewer" in notice["message"]
    for name, more in (("one", "train.chunk_size=25"), ("exact", "model.norm=group")):
        run_once(tiny_config(glyph_cache, *overrides, CHUNKS, more), tmp_path / name)
        assert read_notices(str(tmp_path / name)) == []


def test_augmentation_of_a_part_is_that_part_of_the_augmentation(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *EXACT, CHUNKS)
    worker, _, tracker = run_once(config, tmp_path)
    assert set(tracker.series("train/chunk_size").values()) == {7.0}
    batch = worker.batches._load(1).taken()
    images = worker.model.images(batch, 1)
    assert isinstance(images, AugmentedImages)
    parts = torch.cat([images[start : start + 4] for start in range(0, 25, 4)])
    assert torch.equal(parts, images[:])
    assert images[:].dtype == torch.float64
    assert not torch.equal(images[:], worker.model.images(batch, 2)[:])


def test_a_rank_without_rows_takes_part(glyph_cache: Path, tmp_path: Path) -> None:
    overrides = ("sampler.classes_per_batch=2", "sampler.samples_per_class=2")
    config = tiny_config(glyph_cache, *EXACT, *overrides)
    expected = outcome(Replica(), config, tmp_path / "whole")
    config = tiny_config(glyph_cache, *EXACT, *overrides, "train.chunk_size=1")
    for rank, found in enumerate(run_ranks(5, outcome, config, tmp_path / "chunks")):
        assert_same(found, expected, rank == 0)
