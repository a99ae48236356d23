"""The client and the actors of the index on a real Ray: delivery, deaths, back-pressure, shards and sweeps."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayActorError

from distmetric.cluster.index_actor import NeighborIndexActor
from distmetric.cluster.index_client import IndexClient
from distmetric.cluster.index_messages import IndexHandles
from distmetric.cluster.index_shard import IndexShardActor
from distmetric.cluster.index_start import TrainingLabels, start_actor, start_index, stop_index
from distmetric.cluster.session import ray_session
from distmetric.cluster.sweep import SweepWorker
from distmetric.config.schema import Config, TrainerConfig
from distmetric.data.decode import ImageStore
from distmetric.errors import ConfigError
from distmetric.index.config import StreamIndexConfig, SweepIndexConfig
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.models.build import build_embedder
from distmetric.training.embedding import embed
from distmetric.training.run_data import open_data, training_labels
from distmetric.training.saved_model import config_dict
from index_rows import DIM, LABELS, ROWS, STREAM, assert_same, by_hand, embeddings
from runs import CPU, tiny_config

pytestmark = pytest.mark.ray
ALL = np.arange(ROWS)
# Whole batches only: a snapshot is due when every class was seen, not as soon as most were.
WHOLE = replace(STREAM, min_coverage=1.0)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(TrainerConfig(num_workers=1)):
            yield


@contextmanager
def actors(
    tmp_path: Path,
    config: StreamIndexConfig = WHOLE,
    coordinator: type = NeighborIndexActor,
    **options: Any,
) -> Iterator[IndexHandles]:
    """The actors of an index over `LABELS`, and their end."""

    def labels() -> np.ndarray:
        return LABELS

    names = [f"{tmp_path}-{place}" for place in range(config.shards if config.shards > 1 else 0)]
    shards = tuple(
        start_actor(IndexShardActor, name, (labels, DIM, config, True, place, config.shards), **options)
        for place, name in enumerate(names)
    )
    args = (labels, DIM, config, str(tmp_path / "index"), True, names)
    first = start_actor(coordinator, str(tmp_path), args, **options)
    handles = IndexHandles(config, first, shards or (first,))
    try:
        yield handles
    finally:
        stop_index(handles)


@contextmanager
def client(handles: IndexHandles, rank: int = 0) -> Iterator[IndexClient]:
    found = IndexClient(handles, rank, LABELS if len(handles.holders) > 1 else None)
    try:
        yield found
    finally:
        found.close()


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def until_newest(clients: list[IndexClient], version: int) -> None:
    until(lambda: all(one.newest() == version for one in clients))


def push(one: IndexClient, step: int, rows: np.ndarray = ALL) -> None:
    """Push rows as a training step does: the tensor is overwritten right after."""
    given = torch.from_numpy(embeddings(step)[rows])
    one.push(step, rows, given)
    given.fill_(1e6)


def kill(actor: Any) -> None:
    """SIGKILL the process of an actor."""
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=240), signal.SIGKILL)


def held_while(path: Path) -> type[NeighborIndexActor]:
    """A coordinator whose builds wait as long as a file is there. Ray pickles a local class by value."""

    class Held(NeighborIndexActor):
        def _build_snapshot(self, held: Any, version: int, effort: int) -> NeighborSnapshot:
            while path.exists():
                path.with_suffix(".pid").write_text(str(os.getpid()))
                time.sleep(0.02)
            return super()._build_snapshot(held, version, effort)

    return Held


@pytest.mark.parametrize("shards", [1, 3])
def test_two_ranks_push_and_both_get_the_snapshot_built_by_hand(shards, tmp_path) -> None:
    with (
        actors(tmp_path, replace(WHOLE, shards=shards)) as handles,
        client(handles, 0) as first,
        client(handles, 1) as second,
    ):
        assert (first.newest(), first.snapshot(1)) == (0, None)
        push(first, 3, np.flatnonzero(LABELS < 6))
        push(second, 3, np.flatnonzero(LABELS >= 6))
        until(lambda: first.newest() == second.newest() == 1)
        for one in (first, second):
            assert_same(one.snapshot(1), by_hand(3))
            assert not one.snapshot(1).centroids.flags.writeable
        push(first, 13)
        until(lambda: first.newest() == 2)
        assert_same(first.snapshot(2), by_hand(13, version=2))
        assert first.snapshot(1) is not None, "the version before is held for slower ranks"
        until(lambda: first.metrics()["index/rebuilds"] == 2 and first.metrics()["index/pushed"] == 2)
        assert first.metrics() == {
            "index/pushed": 2.0,
            "index/dropped_pushes": 0.0,
            "index/restarts": 0.0,
            "index/wait_seconds": 0.0,
            "index/rebuilds": 2.0,
            "index/failed_rebuilds": 0.0,
            "index/failed_sweeps": 0.0,
            "index/rejected_rows": 0.0,
            "index/coverage": 1.0,
            "index/rows_embedded": float(ROWS),
        }


def test_groups_of_any_size_follow_each_other_on_the_same_actors(tmp_path) -> None:
    """As with trainer.num_workers=[1, 3]: 3 ranks, then 1, then 2, each with clients of their own."""
    by_class = np.array_split(
        np.argsort(LABELS, kind="stable"), 3
    )  # whole classes: one build, when all are there
    with actors(tmp_path) as handles:
        for version, (ranks, step) in enumerate(((3, 3), (1, 13), (2, 23)), start=1):
            with ExitStack() as group:
                clients = [group.enter_context(client(handles, rank)) for rank in range(ranks)]
                until_newest(clients, version - 1)
                pushes = zip(clients, by_class, strict=True) if version == 1 else [(clients[-1], ALL)]
                for one, rows in pushes:
                    push(one, step, rows)
                until_newest(clients, version)
                for one in clients:
                    assert_same(one.snapshot(version), by_hand(step, version=version))
                    assert one.metrics()["index/restarts"] == 0


def test_killed_during_a_build_it_comes_back_republishes_is_refilled_and_builds_on(tmp_path, caplog) -> None:
    hold = tmp_path / "hold"
    with (
        caplog.at_level(logging.WARNING),
        actors(tmp_path, coordinator=held_while(hold)) as handles,
        client(handles) as one,
        client(handles, 1) as silent,
    ):
        push(one, 3)
        until(lambda: one.newest() == 1)
        until(lambda: one.metrics()["index/rebuilds"] == 1)
        hold.touch()
        push(one, 13)
        until(hold.with_suffix(".pid").exists)
        push(one, 14)
        until(lambda: one.metrics()["index/pushed"] == 3)  # answered while the build hangs
        os.kill(int(hold.with_suffix(".pid").read_text()), signal.SIGKILL)
        hold.unlink()
        push(one, 15, np.flatnonzero(LABELS < 6))
        until(lambda: one.metrics()["index/restarts"] == 1)
        assert_same(one.snapshot(1), by_hand(3))
        with client(handles, 1) as late:
            until(lambda: late.newest() == 1)
            assert_same(late.snapshot(1), by_hand(3))
        assert one.newest() == 1, "half of the classes are not known again yet"
        push(one, 15, np.flatnonzero(LABELS >= 6))
        until(lambda: one.newest() == 2)
        assert_same(one.snapshot(2), by_hand(15, version=2))
        until(lambda: one.metrics()["index/rebuilds"] == 2)  # one of each incarnation
        until(lambda: silent.metrics()["index/restarts"] == 1)
    lines = [record.message for record in caplog.records if "lost" in record.message]
    assert len(lines) == 1, lines
    assert lines[0].startswith(
        "the index actor was lost; training goes on with snapshot 1 until it is back ("
    )


def test_a_shard_that_was_killed_is_refilled_with_its_classes(tmp_path, caplog) -> None:
    with (
        caplog.at_level(logging.WARNING),
        actors(tmp_path, replace(WHOLE, shards=2)) as handles,
        client(handles) as one,
    ):
        push(one, 3)
        until(lambda: one.newest() == 1)
        kill(handles.holders[1])
        with pytest.raises(RayActorError):  # so that the client meets it dead
            ray.get(handles.holders[1].__ray_call__.remote(lambda _: None), timeout=240)
        push(one, 13, np.flatnonzero(LABELS % 2 == 0))
        push(one, 14, np.flatnonzero(LABELS % 2 == 1))
        until(lambda: one.newest() == 2)
        assert one.metrics()["index/restarts"] == 1
        assert_same(one.snapshot(2), by_hand(14, 2, rows=np.flatnonzero(LABELS % 2 == 1), rest=13))
    assert sum("was lost" in record.message for record in caplog.records) <= 1


def test_a_slow_actor_costs_pushes_and_no_time(tmp_path) -> None:
    hold = tmp_path / "hold"
    hold.touch()

    class Slow(NeighborIndexActor):
        async def push(self, *args: Any) -> Any:
            import asyncio

            while hold.exists():
                await asyncio.sleep(0.02)
            return await super().push(*args)

    with (
        actors(tmp_path, replace(WHOLE, max_pending=2), coordinator=Slow) as handles,
        client(handles) as one,
    ):
        push(one, 0)
        until(lambda: len(one._pushes) == 0)  # it is on its way
        for step in range(1, 11):
            push(one, step)
        metrics = one.metrics()
        assert (metrics["index/dropped_pushes"], metrics["index/wait_seconds"]) == (8.0, 0.0)
        hold.unlink()
        until(lambda: one.metrics()["index/pushed"] == 3)
        assert one.metrics()["index/dropped_pushes"] == 8
        until(lambda: one.newest() == 1)
        assert one.snapshot(1).step <= 2, "the oldest were kept"


def test_an_actor_that_never_comes_is_named_once_and_holds_nobody_up(tmp_path, caplog) -> None:
    config = replace(WHOLE, timeout_s=0.5, max_pending=1)
    with (
        caplog.at_level(logging.WARNING),
        actors(tmp_path, config, num_cpus=1000) as handles,
        client(handles) as one,
    ):
        for step in range(20):
            push(one, step)
        until(lambda: len(caplog.records) > 0)
        time.sleep(2.0)
        assert one.metrics()["index/dropped_pushes"] >= 18
        assert (one.newest(), len(one.stale_rows())) == (0, 0)
    assert [record.message for record in caplog.records] == [
        "the index actor was lost; training goes on with random batches until it is back "
        "(SilentError: silent for 0.5 s)"
    ]


def test_what_an_actor_refuses_is_said_once_and_the_next_push_is_served(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING), actors(tmp_path) as handles, client(handles) as one:
        for _ in range(2):
            one.push(1, ALL, torch.zeros(ROWS, DIM + 1))
        push(one, 3)
        until(lambda: one.newest() == 1)
        metrics = one.metrics()
        assert (metrics["index/dropped_pushes"], metrics["index/pushed"]) == (2.0, 1.0)
    (record,) = caplog.records
    assert "failed at what it was asked for" in record.message
    assert "embeddings must be (60, 6), not (60, 7)" in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize("shards", [1, 2])
def test_stale_rows_are_handed_out_once_and_only_after_their_age(shards, tmp_path) -> None:
    config = replace(WHOLE, max_age_steps=10, top_up_rows=7, shards=shards)
    with actors(tmp_path, config) as handles, client(handles) as one:
        push(one, 0)
        push(one, 9, ALL[:4])
        until(lambda: one.metrics()["index/pushed"] == 2)
        assert len(one.stale_rows()) == 0
        given: list[np.ndarray] = []
        for round_ in range(14):
            push(one, 11 + round_, ALL[:4])
            until(lambda: one.metrics()["index/pushed"] == 3 + round_)  # noqa: B023
            given.append(one.stale_rows())
            assert len(one.stale_rows()) == 0
        assert all(len(rows) <= 7 for rows in given)
        together = np.concatenate(given)
        assert sorted(together) == list(range(4, 60)), "all but those that keep coming, each once"


def sweep_config(cache: Path, tmp_path: Path, *overrides: str) -> Config:
    return tiny_config(
        cache,
        "sampler=hard_neighbors",
        "sampler.mode=sample",
        "index=sweep",
        "index.refresh_steps=20",
        "index.neighbors=5",
        "index.batch_size=64",
        f"output_dir={tmp_path}",
        *overrides,
    )


def weights_of(config: Config, seed: int) -> dict[str, torch.Tensor]:
    return build_embedder(config.model, seed).state_dict()


def assert_swept(found: NeighborSnapshot | None, config: Config, seed: int, step: int) -> None:
    """That a snapshot is the whole training set, embedded with one set of weights."""
    assert found is not None
    catalog = open_data(config.data)
    rows = catalog.rows("train")
    images = ImageStore(catalog, config.model.image_size, config.model.channels, rows=rows)
    expected = embed(build_embedder(config.model, seed), images, rows, 64, CPU)
    labels = training_labels(catalog, "train")
    assert (found.step, found.coverage, found.staleness.tolist()) == (step, 1.0, [0.0] * 4)
    assert found.class_counts.tolist() == np.bincount(labels).tolist()
    for label, centroid in enumerate(found.centroids):
        own = expected[torch.from_numpy(labels == label)].double().mean(dim=0).numpy()
        np.testing.assert_allclose(centroid, own, atol=1e-5)
    assert found.row_negatives.shape == (len(rows), 5)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_sweep_embeds_everything_with_the_weights_it_was_given(shards, glyph_cache, tmp_path) -> None:
    config = sweep_config(glyph_cache, tmp_path, "index.workers=2", f"index.shards={shards}")
    handles = start_index(config, str(tmp_path / "run"), "owner")
    assert handles is not None
    one = IndexClient(handles, 0, TrainingLabels(config.data)())
    try:
        weights = weights_of(config, 1)
        one.push_weights(19, lambda: pytest.fail("not due yet"))
        one.push_weights(20, lambda: weights)
        weights["head.weight" if "head.weight" in weights else next(iter(weights))].zero_()
        one.push_weights(21, lambda: pytest.fail("the first is under way"))
        one.push(21, ALL, torch.zeros(ROWS, 32))
        until(lambda: one.newest() == 1 and not one._sweeping)
        assert_swept(one.snapshot(1), config, 1, 20)
        one.push_weights(39, lambda: pytest.fail("not due yet"))
        one.push_weights(40, lambda: weights_of(config, 2))
        until(lambda: one.newest() == 2 and not one._sweeping)
        assert_swept(one.snapshot(2), config, 2, 40)
        assert SnapshotStore(str(tmp_path / "run" / "index")).versions() == [1, 2]
    finally:
        one.close()
        stop_index(handles)
    for handle in handles.actors:
        with pytest.raises(RayActorError):
            ray.get(handle.__ray_call__.remote(lambda _: None), timeout=240)


def test_a_sweep_that_lost_a_worker_is_begun_anew_with_the_next_weights(
    glyph_cache, tmp_path, caplog
) -> None:
    config = sweep_config(glyph_cache, tmp_path)
    index = config.index
    assert isinstance(index, SweepIndexConfig)
    hold = tmp_path / "hold"
    hold.touch()

    class Held(SweepWorker):
        def embed(self, *args: Any) -> bool:
            while hold.exists():
                hold.with_suffix(".pid").write_text(str(os.getpid()))
                time.sleep(0.02)
            return super().embed(*args)

    sweeper = start_actor(Held, f"{tmp_path}-sweep", (config_dict(config), 0, 1))
    args = (
        *(TrainingLabels(config.data), config.model.embedding_dim, index),
        *(str(tmp_path / "index"), True, [], [f"{tmp_path}-sweep"]),
    )
    coordinator = start_actor(NeighborIndexActor, str(tmp_path), args)
    handles = IndexHandles(index, coordinator, (coordinator,), (sweeper,))
    try:
        with client(handles) as one, client(handles, 1) as other:
            other.push_weights(20, lambda: pytest.fail("rank 0 sends weights"))
            one.push_weights(20, lambda: weights_of(config, 1))
            until(hold.with_suffix(".pid").exists)
            os.kill(int(hold.with_suffix(".pid").read_text()), signal.SIGKILL)
            until(lambda: not one._sweeping)
            hold.unlink()
            until(lambda: one.metrics().get("index/failed_sweeps") == 1)
            one.push_weights(25, lambda: weights_of(config, 2))
            until(lambda: one.newest() == 1)
            assert_swept(one.snapshot(1), config, 2, 25)
    finally:
        stop_index(handles)


@pytest.mark.parametrize(
    "overrides", [["sampler=pk", "index=stream"], ["sampler=hard_neighbors", "index=inline"]]
)
def test_runs_that_need_no_actor_get_none(overrides, glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *overrides)
    assert start_index(config, str(tmp_path), "owner") is None
    stop_index(None)


def test_actors_that_do_not_fit_are_refused_and_missing_gpus_are_done_without(
    glyph_cache, tmp_path, caplog
) -> None:
    config = tiny_config(glyph_cache, "sampler=hard_neighbors", "index=stream", "index.num_cpus=500")
    with pytest.raises(ConfigError, match=r"index.num_cpus=500 for 1 actors .* set them to 0"):
        start_index(config, str(tmp_path), "owner")
    config = tiny_config(glyph_cache, "sampler=hard_neighbors", "index=stream", "index.num_gpus=4000")
    with caplog.at_level(logging.WARNING):
        handles = start_index(config, str(tmp_path), "owner")
    try:
        assert handles is not None
        assert handles.config.num_gpus == 0
        assert "index.num_gpus=4000" in caplog.text
    finally:
        stop_index(handles)
