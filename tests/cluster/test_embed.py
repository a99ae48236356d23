"""A large set embedded by Ray workers: the same file as one process writes, whoever is lost on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from distmetric.cluster import embed as module
from distmetric.cluster.embed import EmbedWorkers, embed_on_workers
from distmetric.cluster.session import ray_session
from distmetric.config.jobs import EmbedJob
from distmetric.config.schema import TrainerConfig
from distmetric.errors import ConfigError, InputError, ResourceError
from distmetric.inference.embed import embed_source
from distmetric.inference.part_store import EmbeddedPart, PartStore
from distmetric.training.run_data import open_data
from runs import run_once, tiny_config


@pytest.fixture(scope="module")
def checkpoint_and_catalog(glyph_cache, tmp_path_factory):
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    _, result, _ = run_once(config, tmp_path_factory.mktemp("run"))
    return result.checkpoint, open_data(config.data)


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(TrainerConfig(num_workers=1)):
        yield


def workers_alive(doing: str = "") -> list[psutil.Process]:
    """Processes of the actors below this one, as Ray titles them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::EmbedWorker{doing}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@contextmanager
def meanwhile(act: Callable[[threading.Event], None]) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=act, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=240)
        assert not thread.is_alive()


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_two_workers_of_which_one_is_killed_write_what_one_process_writes(
    checkpoint_and_catalog, tmp_path, monkeypatch
) -> None:
    checkpoint, catalog = checkpoint_and_catalog
    settings: dict[str, Any] = {"source": str(catalog.path), "batch_size": 16, "part_rows": 16}
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    parts = embed_source(EmbedJob(checkpoint=checkpoint, out=str(here), **settings))["parts"]
    replaced, killed = [], []
    replace, add = EmbedWorkers._replace, PartStore.add

    def add_and_kill_one(store: PartStore, part: EmbeddedPart) -> None:
        add(store, part)
        if len(list(tmp_path.glob("there.parquet.parts/part_*"))) == 3:
            wait_until(lambda: len(workers_alive()) == 2)
            killed.append(workers_alive()[0])
            killed[0].kill()

    monkeypatch.setattr(EmbedWorkers, "_replace", lambda *args: (replaced.append(args), replace(*args)))
    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "add", add_and_kill_one)
        job = EmbedJob(checkpoint=checkpoint, out=str(there), workers=2, worker_cpus=0.5, **settings)
        found = embed_on_workers(job)
    assert len(killed) == len(replaced) == 1
    assert parts > 10
    assert (found["parts"], found["rows"], found["resumed_parts"]) == (parts, len(catalog), 0)
    assert there.read_bytes() == here.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [here.name, there.name]


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_part_that_ends_its_workers_is_named_and_where_none_was_finished_nothing_is_left(
    checkpoint_and_catalog, tmp_path, monkeypatch
) -> None:
    checkpoint, catalog = checkpoint_and_catalog
    monkeypatch.setattr(module, "MOST_LOSSES", 2)
    source, out = tmp_path / "images", tmp_path / "e.arrow"
    good, slow = source / "a", source / "b"
    good.mkdir(parents=True)
    slow.mkdir()
    (good / "0.png").write_bytes(catalog.image_bytes(0))
    for row in range(4000):  # long enough to be seen at it
        (slow / f"{row:05d}.png").hardlink_to(good / "0.png")
    (good / "0.png").unlink()
    (good / "1.png").write_bytes(catalog.image_bytes(1))
    job = EmbedJob(
        checkpoint=checkpoint, source=str(source), out=str(out), part_rows=4000, workers=1, worker_cpus=0.5
    )
    killed: list[int] = []

    def kill_whoever_embeds(over: threading.Event) -> None:
        while not over.wait(0.005):
            for process in workers_alive(".embed"):
                killed.append(process.pid)
                process.kill()

    says = r"workers=1: 2 workers ended while embedding part 0, images 0 to 3999, from .*/a/1\.png on"
    with meanwhile(kill_whoever_embeds), pytest.raises(ResourceError, match=says) as raised:
        embed_on_workers(job)
    assert "\n" not in str(raised.value)
    assert len(set(killed)) == 2
    wait_until(lambda: not workers_alive())
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_what_a_worker_cannot_do_is_one_line(checkpoint_and_catalog, tmp_path) -> None:
    checkpoint, catalog = checkpoint_and_catalog
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(catalog.image_bytes(0))
    job = EmbedJob(checkpoint=checkpoint, source=str(tmp_path), out=str(tmp_path / "e.arrow"), workers=1)

    def spoiled(work: Any, *rest: Any) -> None:
        init(work, *rest)
        (Path(checkpoint) / "model.pt").rename(tmp_path / "model.pt")

    init = EmbedWorkers.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbedWorkers, "__init__", spoiled)
        try:
            with pytest.raises(InputError, match=r"model\.pt is missing: use an older checkpoint") as raised:
                embed_on_workers(job)
        finally:
            (tmp_path / "model.pt").rename(Path(checkpoint) / "model.pt")
    assert type(raised.value) is InputError
    assert "\n" not in str(raised.value)


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_workers_without_room_are_waited_for_so_long(checkpoint_and_catalog, tmp_path) -> None:
    checkpoint, catalog = checkpoint_and_catalog
    job = EmbedJob(
        checkpoint=checkpoint,
        source=str(catalog.path),
        out=str(tmp_path / "e.arrow"),
        workers=1,
        worker_cpus=1000,
        start_timeout_s=1,
    )
    with pytest.raises(
        ResourceError, match="none of them, with 1000 CPUs each, was placed within start_time"
    ):
        embed_on_workers(job)


def test_what_this_machine_cannot_hold_is_said_before_ray_is_started(
    checkpoint_and_catalog, tmp_path, monkeypatch
) -> None:
    checkpoint, catalog = checkpoint_and_catalog
    monkeypatch.setattr(module, "ray_session", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    common: dict[str, Any] = {"checkpoint": checkpoint, "source": str(catalog.path)}
    for settings, says in (
        ({"workers": 4}, "workers=4 x worker_cpus=1 needs 4 CPUs but this machine has 3: set workers=3"),
        ({"workers": 1, "worker_cpus": 4}, "needs 4 CPUs but this machine has 3: set worker_cpus=3"),
        ({"workers": 3, "worker_gpus": 1}, "needs 3 GPUs but this machine has 2: set workers=2"),
    ):
        with pytest.raises(ConfigError, match=says):
            embed_on_workers(EmbedJob(out=str(tmp_path / "e.arrow"), **common, **settings))
    lost = tmp_path / "_ray_pkg_1234" / "e.arrow"
    with pytest.raises(ConfigError, match="which Ray deletes"):
        embed_on_workers(EmbedJob(out=str(lost), workers=1, **common))


def test_nothing_missing_needs_no_ray(checkpoint_and_catalog, tmp_path, monkeypatch) -> None:
    checkpoint, catalog = checkpoint_and_catalog
    monkeypatch.setattr(module, "ray_session", lambda *_: pytest.fail("Ray was started"))
    job = EmbedJob(checkpoint=checkpoint, source=str(catalog.path), out=str(tmp_path / "e.arrow"), workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "join", lambda *_: 1 / 0)  # all parts are done, and the job is not
        with pytest.raises(ZeroDivisionError):
            embed_source(job)
    assert embed_on_workers(job)["resumed_parts"] == 1
