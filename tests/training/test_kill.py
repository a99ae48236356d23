"""Killed at any line equals never killed: SIGKILL in processes without Ray, at places that are drawn at random."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from distmetric.benchmarks.soak.equality import compare_histories
from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.tracking.journal import read_history
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from kills import (
    TRAINING,
    WRITING,
    Countdown,
    Journal,
    RecordedBatches,
    assert_same_state,
    journaled,
    kill_seed,
    lines_in,
    recorded,
    saved_state,
    train_forked,
)
from processes import run_ranks
from runs import CPU, ListTracker, run_once, tiny_config

STEPS, KILLS = 24, 4
COMMON = (
    *(f"train.steps={STEPS}", "train.log_every=3", "eval.every_steps=8", "eval.resamples=20"),
    *("checkpoint.every_steps=4", "checkpoint.keep_last=2", "schedule.warmup_steps=5", "augment=affine"),
    *("model.widths=[8, 8]", "model.embedding_dim=16", "sampler.classes_per_batch=6"),
)
HARD = (
    *("sampler=hard_neighbors", "sampler.classes_per_batch=6", "sampler.samples_per_class=4", "index=inline"),
    *(
        "sampler.round_steps=3",
        "sampler.warmup_steps=3",
        "index.refresh_steps=5",
        "sampler.back_off.patience=2",
    ),
    "sampler.hard_fraction={start: 0.2, end: 1.0, end_step: 20}",
)
RUNS = {
    "pairs": ("loss=triplet",),
    "a_class_loss_with_momentum": ("loss=arcface", "optim=sgd", "optim.lr=0.01"),
    "centers_and_a_random_miner": ("loss=soft_triple", "miner=distance_weighted"),
    "proxies_and_memory": (
        *("loss=weighted_sum", "loss@loss.parts.triplet.loss=proxy_anchor"),
        *(
            "loss@loss.parts.contrastive.loss=cross_batch_memory",
            "loss.parts.contrastive.loss.memory_size=100",
        ),
    ),
    "hard_neighbors": ("loss=triplet_hard_margin", *HARD),
    "clips": (
        *(
            "data=moving_glyphs",
            "data.max_classes=30",
            "data.tracklets_per_class=5",
            "data.frames_per_tracklet=4",
        ),
        *("model.frames_per_clip=2", "model.temporal=attribute_attention", "model.attributes=[motion,serif]"),
        *("loss=aitl", "loss.parts.irrelevant.loss.attributes=[motion]"),
        "loss.parts.relevant.loss.attributes=[serif]",
    ),
    "hard_samples_and_memory": (
        "loss=cross_batch_memory",
        "loss.memory_size=100",
        *HARD,
        "sampler.mode=sample",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_line_equals_never_killed(name: str, glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *COMMON, *RUNS[name])
    draw = random.Random(f"{kill_seed()} {name}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Countdown() as count:
        run_once(config, whole, Journal(tmp_path / "whole.jsonl", whole))
    kills = 0
    for _ in range(KILLS):
        where = draw.choice([TRAINING, WRITING])
        after = draw.randint(1, lines_in(count.lines, where) // 3)
        kills += train_forked(config, killed, tmp_path / "killed.jsonl", after, where)
    assert not train_forked(config, killed, tmp_path / "killed.jsonl")
    print(f"{name}: killed {kills} times")
    assert kills >= 2
    assert_same_state(saved_state(killed, STEPS), saved_state(whole, STEPS))
    expected = journaled(tmp_path / "whole.jsonl")
    assert journaled(tmp_path / "killed.jsonl") == expected
    assert all(len(values) == 1 for values in expected.values())
    kept = compare_histories(read_history(str(killed)), read_history(str(whole)), STEPS)
    assert kept.is_none, kept
    for folder in ("checkpoints", "evaluations", "index"):
        left, kept = ({path.name for path in (run / folder).glob("*")} for run in (killed, whole))
        assert left == kept, folder


def test_a_snapshot_that_was_stored_but_not_used_yet_gets_its_version_again(
    glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *COMMON, *RUNS["hard_neighbors"])

    def die_before_the_second_is_noted() -> None:
        note = SnapshotStore.note_swap

        def note_or_die(self: SnapshotStore, round: int, version: int) -> None:
            if version == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            note(self, round, version)

        SnapshotStore.note_swap = note_or_die  # type: ignore[method-assign]

    run_once(config, tmp_path / "whole", Journal(tmp_path / "whole.jsonl"))
    killed, journal = tmp_path / "killed", tmp_path / "killed.jsonl"
    assert train_forked(config, killed, journal, prepare=die_before_the_second_is_noted)
    assert SnapshotStore(str(killed / "index")).versions()[-1] == 2
    assert not train_forked(config, killed, journal)
    assert journaled(journal) == journaled(tmp_path / "whole.jsonl")


# Other measurements are of samples that each rank draws from its slice.
OF_THE_JOINT_BATCH = (
    "train/loss",
    "train/gradient_norm",
    "train/learning_rate",
    "eval/",
    "index/version",
    "hard/",
)
# Plain descent: AdamW divides gradients that are zero but for rounding by their own size.
EXACT = (
    *("optim=sgd", "optim.lr=0.02"),
    *("train.precision=float64", "model.norm=sync_batch", "sampler.classes_per_batch=7"),
    *RUNS["proxies_and_memory"],
)


def one_rank(
    replica: Replica,
    config: Config,
    run_dir: Path,
    batches: Path,
    kill_after: int | None = None,
    mortal: int = 0,
) -> int:
    """Train as one rank, of which one may be killed after some lines; all note their batches, rank 0 a journal."""
    tracker = Journal(Path(f"{run_dir}.jsonl")) if replica.is_main else ListTracker()
    with Countdown(kill_after if replica.rank == mortal else None) as count:
        worker = Worker(config, str(run_dir), tracker, replica, CPU)
        RecordedBatches(worker, batches)
        train(worker)
    return count.lines.total()


def test_a_run_that_is_killed_goes_on_with_other_numbers_of_ranks(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *COMMON, *HARD, *EXACT)
    draw = random.Random(kill_seed())
    lines = one_rank(Replica(), config, tmp_path / "whole", tmp_path / "whole.batches")
    expected = recorded(tmp_path / "whole.batches", 1)
    assert sorted(expected) == list(range(STEPS))
    trained = set[int]()
    for attempt, ranks in enumerate((1, 2, 3, 2)):
        batches = tmp_path / f"{attempt}.batches"
        if attempt == 3:
            run_ranks(ranks, one_rank, config, tmp_path / "killed", batches)
        else:
            after, mortal = draw.randint(lines // 8, 3 * lines // 10), draw.randrange(ranks)
            print(f"rank {mortal} of {ranks} is killed after {after} lines")
            with pytest.raises(RuntimeError, match=r"died without a word|failed"):
                run_ranks(ranks, one_rank, config, tmp_path / "killed", batches, after, mortal)
        for step, rows in recorded(batches, ranks).items():
            assert rows == expected[step], f"step {step} on {ranks} ranks"
            trained.add(step)
    assert trained == set(expected)
    ours, whole = (saved_state(tmp_path / name, STEPS) for name in ("killed", "whole"))
    assert ours.keys() == whole.keys()
    for name, value in whole.items():
        if isinstance(value, np.ndarray | int | float):
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9, err_msg=name)
        else:
            assert ours[name] == value, name
    ours, whole = (journaled(tmp_path / f"{name}.jsonl") for name in ("killed", "whole"))
    assert ours.keys() == whole.keys()
    for name, values in whole.items():
        if not name[0].startswith(OF_THE_JOINT_BATCH):
            continue
        np.testing.assert_allclose(
            [*ours[name]], [*values] * len(ours[name]), rtol=1e-9, atol=1e-9, err_msg=str(name)
        )
