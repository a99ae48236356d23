"""Whatever happens while checkpoints are written, or to any byte of them, the newest intact one is found."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import fs

from disks import fill
from distmetric import locations
from distmetric.errors import InputError, ResourceError
from distmetric.training import checkpoint, checkpoint_folder
from distmetric.training.checkpoint import CheckpointStore


def save(store: CheckpointStore, step: int, score: float | None = None, num_parts: int = 0) -> None:
    metrics = None if score is None else {"recall_at_1": score}
    parts = {}
    if num_parts:
        store.start(step)
    for rank in range(num_parts):  # in processes of their own, where there are several
        name = f"classes_{rank}_{rank + 1}"
        parts[f"{name}.pt"] = CheckpointStore(store.location).write_part(
            step, name, {"": torch.tensor([step])}
        )
    tensors = {"model": {"w": torch.full((3,), float(step))}, "training": {"step": step, "score": score}}
    store.save(step, tensors, {"metrics": metrics, "version": "x", "config": {}}, parts)


class Died(BaseException):
    """The process is no more."""


class Mortal(fs.LocalFileSystem):
    """The local file system under a process that dies at an operation, or whose disk refuses from there on.

    A file dies half-written, and a folder with its files deleted in any order.
    """

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = at, error

    def operation(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[HalfWritten]:
        self.operation()
        with Path(path).open("wb") as file:
            yield HalfWritten(file, self)

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        self.operation()
        super().create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.operation()
        super().delete_file(path)

    def delete_dir(self, path: str) -> None:
        for file in sorted(Path(path).iterdir(), key=lambda file: file.name != "model.pt"):
            self.delete_file(str(file))
        self.operation()
        super().delete_dir(path)


class HalfWritten:
    def __init__(self, file, disk: Mortal) -> None:
        self.file, self.disk = file, disk

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.disk.operation()
        self.file.write(data[len(data) // 2 :])


@contextmanager
def mortal(at: int, error: BaseException) -> Iterator[Mortal]:
    """Have checkpoints written through a disk that fails at operation number `at`, and at all that follow."""
    disk = Mortal(at, error)

    def doomed(function):
        def call(*arguments):
            disk.operation()
            return function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module in (locations, checkpoint, checkpoint_folder):
            patch.setattr(module, "open_location", lambda location: (disk, location))
        patch.setattr(locations, "_sync", doomed(lambda path: None))
        patch.setattr(Path, "replace", doomed(Path.replace))
        patch.setattr(Path, "unlink", doomed(Path.unlink))
        yield disk


SCENES = {
    "the first": ([], 5, None, 2, 0),
    "one more": ([(1, 0.1), (2, 0.9), (3, 0.2)], 4, 0.3, 2, 0),
    "a better one": ([(1, 0.1), (2, 0.9), (3, 0.2)], 4, 0.95, 1, 0),
    "the only one again": ([(4, None)], 4, 0.3, 1, 0),
    "over half of one": ([(1, 0.1), (2, None), (3, "half")], 3, None, 1, 0),
    "one in parts": ([(1, 0.1), (2, 0.9)], 4, 0.3, 2, 2),
    "the only one again in parts": ([(4, None)], 4, 0.3, 1, 2),
}


def prepared(folder: Path, before, keep_last: int, num_parts: int) -> CheckpointStore:
    store = CheckpointStore(str(folder), keep_last)
    for step, score in before:
        save(store, step, None if score == "half" else score, num_parts)
        if score == "half":
            (folder / f"step_{step:08d}" / "manifest.json").unlink()
            save(CheckpointStore(str(folder / "other")), 1)
            shutil.copytree(folder / "other" / "step_00000001", folder / "step_00000001", dirs_exist_ok=True)
    return store


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("ends", ["dies", "is refused"])
def test_an_end_between_any_two_writes_leaves_the_newest_or_the_one_before(
    scene, ends, tmp_path, monkeypatch
) -> None:
    before, step, score, keep_last, num_parts = SCENES[scene]
    error = Died() if ends == "dies" else OSError(28, "No space left on device")
    start, folder = tmp_path / "start", tmp_path / "checkpoints"
    start.mkdir()
    prepared(start, before, keep_last, num_parts)
    monkeypatch.setattr(
        locations, "_sync", lambda path: None
    )  # which takes its time, and here nobody cuts the power
    for at in range(1000):
        shutil.copytree(start, folder)
        intact = CheckpointStore(str(folder), keep_last).latest()
        best = CheckpointStore(str(folder), keep_last).best()
        with mortal(at, error) as disk, suppress(Died, ResourceError):
            save(CheckpointStore(str(folder), keep_last), step, score, num_parts)
        for manifest in folder.glob("*/manifest.json"):  # what looks complete is complete
            checkpoint_folder.read_checkpoint(str(manifest.parent))
        found = CheckpointStore(str(folder), keep_last).latest()
        if intact is None:
            assert found is None or found.step == step
        else:
            assert found.step in (intact.step, step)
            kept = CheckpointStore(str(folder), keep_last).best()
            assert kept.step in (best.step, step)
            assert kept.tensors("model")["w"].tolist() == [kept.step] * 3
        save(
            CheckpointStore(str(folder), keep_last), step + 1, None, num_parts
        )  # what goes on from there is as good as ever
        assert CheckpointStore(str(folder), keep_last).latest().step == step + 1
        shutil.rmtree(folder)
        if disk.left > 0:
            assert at > 20, "so few operations cannot have been all"
            return
    pytest.fail("there is no end to the operations")


WRITES_UNTIL_KILLED = """
import os, random, signal, sys, time
import torch
from distmetric.training.checkpoint import CheckpointStore

torch.set_num_threads(1)
folder, rounds = sys.argv[1], int(sys.argv[2])
chance = random.Random(3)
for _ in range(rounds):
    before = CheckpointStore(folder).latest()
    start = 0 if before is None else before.step
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        store = CheckpointStore(folder)
        for step in range(start + 1, start + 10_000):
            weights = {"w": torch.full((20_000,), float(step))}
            store.save(step, {"model": weights, "training": {}}, {"metrics": {"recall_at_1": 1 / step}})
            os.write(writer, step.to_bytes(4, "little"))
    os.close(writer)
    saved = os.read(reader, 4)  # a first one, so that something is under way
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reader, 4096):
        saved = more[-4:]
    os.close(reader)
    found = CheckpointStore(folder).latest()
    told = int.from_bytes(saved, "little")
    assert found.step in (told, told + 1), (found.step, told)
    assert found.tensors("model")["w"].unique().tolist() == [found.step]
    assert CheckpointStore(folder).best().step == 1
    print(found.step)
"""


def test_killed_at_any_moment_of_writing_what_was_saved_is_there(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path / "checkpoints"), "25"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [int(line) for line in done.stdout.split()]
    assert len(steps) == 25
    assert sorted(set(steps)) == steps


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    store = CheckpointStore(str(folder))
    save(store, 1, 0.25)
    save(store, 2, 0.5, num_parts=1)
    return folder


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_noticed_and_the_one_before_is_used(data, two, caplog) -> None:
    file = data.draw(st.sampled_from(sorted((two / "step_00000002").iterdir())))
    intact = file.read_bytes()
    damaged = bytearray(intact)
    damaged[data.draw(st.integers(0, len(intact) - 1))] ^= data.draw(st.integers(1, 255))
    caplog.clear()
    try:
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert CheckpointStore(str(two)).latest().step == 1
            assert CheckpointStore(str(two)).best().step == 1
    finally:
        file.write_bytes(intact)
    assert "step_00000002" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_every_changed_bit_of_a_manifest_is_noticed(two) -> None:
    file = two / "step_00000002" / "manifest.json"
    intact = file.read_bytes()
    try:
        for place in range(len(intact)):
            for bit in range(8):
                damaged = bytearray(intact)
                damaged[place] ^= 1 << bit
                file.write_bytes(damaged)
                with pytest.raises(InputError):
                    checkpoint_folder.read_manifest(str(file.parent))
    finally:
        file.write_bytes(intact)
    assert CheckpointStore(str(two)).at(2).step == 2


@pytest.mark.parametrize("name", ["model.pt", "training.pt", "meta.json", "manifest.json"])
@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_file_of_any_other_length_is_noticed(name, length, two, tmp_path, caplog) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    file = folder / "step_00000002" / name
    file.write_bytes(file.read_bytes()[:length])
    assert CheckpointStore(str(folder)).latest().step == 1
    assert f"step_00000002/{name} is" in caplog.text
    file.write_bytes((two / "step_00000002" / name).read_bytes() + b"\n")
    with pytest.raises(InputError, match=name):
        CheckpointStore(str(folder)).at(2)


def test_a_checkpoint_of_the_same_step_is_replaced_as_often_as_wanted(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path), keep_last=1)
    for score in (None, 0.1, 0.2, 0.2, 0.1, None):
        save(store, 4, score)
        found = CheckpointStore(str(tmp_path)).latest()
        assert found.metrics.get("recall_at_1") == score
        assert found.tensors("training") == {"step": 4, "score": score}
        assert found.tensors("model")["w"].tolist() == [4.0] * 3
        assert len(list((tmp_path / "step_00000004").iterdir())) == 4
    (tmp_path / "step_00000004" / "model.pt").write_bytes(b"damaged")
    save(store, 4)
    assert store.latest().tensors("model")["w"].tolist() == [4.0] * 3


LIMITED = """
import resource, sys
import torch
from distmetric.errors import ResourceError
from distmetric.training.checkpoint import CheckpointStore

store = CheckpointStore(sys.argv[1])
store.save(1, {"model": {"w": torch.zeros(10)}, "training": {}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save(2, {"model": {"w": torch.zeros(100_000)}, "training": {}}, {})
except ResourceError as error:
    print(error)
print(store.latest().step)
"""


def test_a_file_that_may_not_grow_stops_the_save_and_leaves_the_older_ones(tmp_path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    told, newest = done.stdout.splitlines()
    assert "step_00000002 cannot be written (" in told
    assert "older checkpoints are untouched; free space or fix access, then resume" in told
    assert newest == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_full_disk_stops_the_save_and_leaves_the_older_ones(small_disk) -> None:
    store = CheckpointStore(f"{small_disk}/run/checkpoints")
    store.open()
    save(store, 1)
    ballast = fill(small_disk)
    with pytest.raises(ResourceError, match=r"step_00000002 cannot be written \(.*No space left on device"):
        save(store, 2)
    assert store.steps() == [1]
    assert store.latest().tensors("training") == {"step": 1, "score": None}
    ballast.unlink()
    save(store, 2)
    assert store.latest().step == 2


def test_documents_of_other_tools_are_not_taken_for_sealed_ones() -> None:
    plain = json.dumps({"check": "sha256:" + "0" * 64}).encode()
    with pytest.raises(ValueError, match="checksum"):
        locations.unsealed(plain)
    assert locations.unsealed(b'{"a": 1}') == {"a": 1}
    assert locations.unsealed(locations.sealed({"a": [1, None, float("inf")]})) == {
        "a": [1, None, float("inf")]
    }
