"""Which snapshot a round is planned from: agreed by all ranks, noted before use, repeated after a kill."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from distmetric.config.decode import decode
from distmetric.distributed import Replica
from distmetric.errors import ConfigError, ResourceError
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.samplers import PKSampler
from distmetric.samplers.back_off import BackOff
from distmetric.samplers.hard_neighbors import HardNeighborSampler, HardNeighborSamplerConfig
from distmetric.training.probe import HardnessProbe
from distmetric.training.rounds import Rounds
from processes import run_ranks
from runs import ListTracker, run_once, tiny_config
from snapshots import random_snapshot

CPU = torch.device("cpu")
CLASSES, PER_CLASS, ROUND = 20, 5, 4
CATALOG_ROWS = np.arange(CLASSES * PER_CLASS) * 3 + 1
LABELS = np.repeat(np.arange(CLASSES), PER_CLASS)
POINTS = torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0))
SETTINGS = decode(
    HardNeighborSamplerConfig,
    {
        "name": "hard_neighbors",
        "classes_per_batch": 6,
        "samples_per_class": 2,
        "round_steps": ROUND,
        "hard_fraction": 1.0,
        "warmup_steps": 0,
    },
)


class ScriptedSource:
    """Holds snapshot v from the step on that `arrivals` names for it; remembers what it was given."""

    def __init__(self, arrivals: dict[int, int]) -> None:
        self.arrivals, self.now = arrivals, 0
        self.pushed: list[tuple[int, list[int]]] = []
        self.asked: list[int] = []
        self.stale: list[int] = []

    def push(self, step, rows, embeddings) -> None:
        assert torch.equal(embeddings, POINTS[torch.from_numpy(rows)])
        self.pushed.append((step, rows.tolist()))

    def push_weights(self, step, weights) -> None:
        self.now = step
        self.asked.append(step)

    def stale_rows(self):
        stale, self.stale = self.stale, []
        return np.array(stale, dtype=np.int64)

    def newest(self) -> int:
        return max((version for version, step in self.arrivals.items() if step <= self.now), default=0)

    def snapshot(self, version):
        there = self.arrivals.get(version, 1 << 30) <= self.now
        return random_snapshot(CLASSES, version, self.arrivals[version]) if there else None

    def metrics(self) -> dict[str, float]:
        return {"index/wait_seconds": 0.0, "index/dropped_pushes": 2.0}

    def close(self) -> None:
        pass


def embed(rows) -> torch.Tensor:
    return POINTS[torch.from_numpy(rows)]


def rounds_of(
    source: ScriptedSource, folder: str, replica: Replica | None = None, keep: bool = True
) -> tuple[Rounds, HardNeighborSampler]:
    replica = replica or Replica()
    store = SnapshotStore(folder)
    if keep and replica.is_main:  # as the index does before it publishes
        for version in source.arrivals:
            store.save(random_snapshot(CLASSES, version, source.arrivals[version]))
    sampler = HardNeighborSampler(CATALOG_ROWS, LABELS, SETTINGS, seed=5)
    random = PKSampler(CATALOG_ROWS, LABELS, 6, 2, seed=5)
    probe = HardnessProbe(embed, LABELS, 0.2, replica, CPU)
    rounds = Rounds(
        sampler,
        source,
        store,
        BackOff(SETTINGS.back_off),
        random,
        probe,
        embed,
        dict,
        CATALOG_ROWS,
        replica,
        CPU,
    )
    return rounds, sampler


def batches_of(
    rounds: Rounds, sampler: HardNeighborSampler, start: int, stop: int
) -> tuple[list[list[int]], list[int]]:
    batches, versions = [], []
    for step in range(start, stop):
        rounds.prepare(step)
        sampler.batch(step + 1)  # as the loader does, which reads ahead
        batches.append(sampler.batch(step).tolist())
        versions.append(sampler.state_dict(step)["snapshot_version"])
    return batches, versions


def test_a_round_is_planned_one_step_early_from_the_newest_snapshot_there_is(tmp_path) -> None:
    source = ScriptedSource({1: 0, 2: 7, 3: 12})
    _, versions = batches_of(*rounds_of(source, str(tmp_path)), 0, 20)
    # Rounds begin at 0, 4, 8, 12, 16 and are planned at 0, 3, 7, 11, 15.
    assert versions == [1] * 8 + [2] * 8 + [3] * 4
    assert source.asked == [0, 3, 7, 11, 15, 19]


def test_batches_are_the_samplers_and_random_before_the_first_snapshot(tmp_path) -> None:
    rounds, sampler = rounds_of(ScriptedSource({1: 7}), str(tmp_path))
    batches, versions = batches_of(rounds, sampler, 0, 12)
    assert versions == [0] * 8 + [1] * 4
    alone = HardNeighborSampler(CATALOG_ROWS, LABELS, SETTINGS, seed=5)
    for number, snapshot in enumerate([None, None, random_snapshot(CLASSES, 1, 7)]):
        alone.begin_round(number, snapshot, 1.0)
        for step in range(number * ROUND, (number + 1) * ROUND):
            assert batches[step] == alone.batch(step).tolist()


@pytest.mark.parametrize("stopped_at", range(1, 17))
def test_a_killed_run_repeats_its_rounds_whatever_has_been_published_since(stopped_at, tmp_path) -> None:
    arrivals = {1: 3, 2: 7, 3: 11}
    rounds, sampler = rounds_of(ScriptedSource(arrivals), str(tmp_path))
    saved_at = stopped_at // 2  # the newest checkpoint is older than what was done
    batches, versions = batches_of(rounds, sampler, 0, saved_at)
    state = rounds.state_dict(saved_at)
    more = batches_of(rounds, sampler, saved_at, stopped_at)
    batches, versions = batches + more[0], versions + more[1]

    all_there = ScriptedSource(dict.fromkeys(arrivals, 0))
    resumed, sampler = rounds_of(all_there, str(tmp_path), keep=False)
    resumed.load_state_dict(state)
    again = batches_of(resumed, sampler, saved_at, 20)
    assert again[0][: stopped_at - saved_at] == batches[saved_at:]
    assert again[1][: stopped_at - saved_at] == versions[saved_at:]
    # Beyond what was done, newer snapshots count.
    assert again[1][-1] == 3
    assert all(step >= stopped_at - 1 for step in all_there.asked)


def agreed(replica: Replica, folder: str) -> tuple[list[list[int]], list[int]]:
    arrivals = [{1: 0, 2: 3, 3: 3}, {1: 3, 2: 7}][replica.rank]  # rank 1 is late, and never gets version 3
    return batches_of(*rounds_of(ScriptedSource(arrivals), folder, replica, keep=replica.is_main), 0, 12)


def test_ranks_plan_from_the_newest_version_that_all_of_them_hold(tmp_path) -> None:
    (batches, versions), other = run_ranks(2, agreed, str(tmp_path))
    assert other == (batches, versions)
    assert versions == [0] * 4 + [0] * 4 + [2] * 4 or versions == [0] * 4 + [1] * 4 + [2] * 4


def test_a_lost_snapshot_means_random_batches_and_a_warning(tmp_path, caplog) -> None:
    rounds, sampler = rounds_of(ScriptedSource({1: 0}), str(tmp_path))
    batches_of(rounds, sampler, 0, 6)
    state = rounds.state_dict(6)
    (file,) = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    resumed, sampler = rounds_of(ScriptedSource({}), str(tmp_path), keep=False)
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(state)
    assert "snapshot 1 of the index is lost" in caplog.text
    assert len(batches_of(resumed, sampler, 6, 12)[0]) == 6
    assert resumed.version == 0


def test_a_note_that_cannot_be_written_stops_all_ranks_in_one_line(tmp_path, monkeypatch) -> None:
    rounds, _ = rounds_of(ScriptedSource({}), str(tmp_path))

    def full(self, number: int, version: int) -> None:
        raise ResourceError("disk full: free some")

    monkeypatch.setattr(SnapshotStore, "note_swap", full)
    with pytest.raises(ResourceError, match="disk full: free some"):
        rounds.prepare(0)


def test_every_round_tells_how_hard_it_is_and_feeds_the_index(tmp_path) -> None:
    source = ScriptedSource({1: 3})
    rounds, sampler = rounds_of(source, str(tmp_path))
    source.stale = [90, 91]
    batches, _ = batches_of(rounds, sampler, 0, 8)
    rounds.share(7, np.arange(3), POINTS[:3])
    measured = rounds.flush()
    assert rounds.flush() == []
    assert [step for step, _ in measured] == [0, 4, 8]
    for step, metrics in measured:
        assert metrics["index/wait_seconds"] == 0
        assert metrics["index/dropped_pushes"] == 2
        assert 0 <= metrics["hard/violating_fraction_random"] <= 1
        assert metrics["index/swapped"] == (step == 4)
        assert metrics["index/version"] == (step >= 4)
    assert measured[1][1]["index/snapshot_age_steps"] == 4 - 3
    places = [np.searchsorted(CATALOG_ROWS, batches[step]).tolist() for step in (0, 4)]
    pushes = {(step, tuple(rows)) for step, rows in source.pushed}
    assert {(0, tuple(places[0])), (3, tuple(places[1])), (0, (90, 91)), (7, (0, 1, 2))} <= pushes


def test_what_no_resumption_needs_is_dropped(tmp_path) -> None:
    rounds, sampler = rounds_of(ScriptedSource({1: 0, 2: 7, 3: 11}), str(tmp_path))
    batches_of(rounds, sampler, 0, 16)
    rounds.prune(oldest_step=9)  # planned from version 2
    store = SnapshotStore(str(tmp_path))
    assert store.versions() == [2, 3]
    assert [store.swap_at(number) for number in range(5)] == [None, None, 2, 3, 3]


SMALL = (
    *("sampler=hard_neighbors", "sampler.classes_per_batch=8", "sampler.round_steps=5", "index=inline"),
    *(
        "sampler.samples_per_class=4",
        "sampler.hard_fraction=1.0",
        "sampler.warmup_steps=5",
        "index.refresh_steps=8",
    ),
    *("model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=30"),
)


def losses_of_a_run(
    replica: Replica, cache, run_dir, *overrides: str
) -> tuple[dict[int, float], dict[int, float]]:
    exact = ("train.precision=float64", "model.norm=sync_batch")
    _, _, tracker = run_once(tiny_config(cache, *SMALL, *exact, *overrides), run_dir, replica=replica)
    return tracker.series("train/loss"), tracker.series("index/version")


@pytest.mark.parametrize("mode", ["class", "sample"])
def test_hard_neighbor_training_on_two_ranks_equals_one(mode, glyph_cache, tmp_path) -> None:
    override = f"sampler.mode={mode}"
    one = losses_of_a_run(Replica(), glyph_cache, tmp_path / "one", override)
    two = run_ranks(2, losses_of_a_run, glyph_cache, tmp_path / "two", override)[0]
    random = losses_of_a_run(
        Replica(), glyph_cache, tmp_path / "random", override, "sampler.hard_fraction=0.0"
    )
    assert two[1] == one[1]
    assert max(one[1].values()) >= 3
    assert list(two[0].values()) == pytest.approx(list(one[0].values()), abs=1e-8)
    assert list(random[0].values())[:10] == list(one[0].values())[:10]
    assert list(random[0].values())[-10:] != pytest.approx(list(one[0].values())[-10:], rel=1e-3)


@pytest.mark.parametrize("stopped_at", [7, 16, 21, 26])
def test_interrupted_hard_neighbor_training_equals_never_interrupted(
    stopped_at, glyph_cache, tmp_path
) -> None:
    config = tiny_config(glyph_cache, "checkpoint.every_steps=5", "train.log_every=1", *SMALL)
    whole, _, tracker = run_once(config, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run_once(config, tmp_path / "resumed", ListTracker(fail_at=stopped_at))
    resumed, _, replayed = run_once(config, tmp_path / "resumed")
    losses = tracker.series("train/loss")
    assert replayed.series("train/loss") == {
        step: loss for step, loss in losses.items() if step in replayed.series("train/loss")
    }
    assert min(replayed.series("train/loss")) == stopped_at - 1 - (stopped_at - 1) % 5 + 1
    for ours, expected in zip(
        resumed.embedder.state_dict().values(), whole.embedder.state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy())


@pytest.mark.parametrize("source", ["stream", "sweep"])
def test_actors_are_refused_without_ray(source, glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *SMALL, f"index={source}")
    with pytest.raises(ConfigError, match=f"index={source} works in actors of Ray.*set index=inline"):
        run_once(config, tmp_path)
