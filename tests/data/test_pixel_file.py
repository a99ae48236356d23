"""Pixels that processes decode together and share: each once, complete or not believed, and gone at the end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distmetric.data import pixel_file
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore
from distmetric.data.pixel_file import PixelFile

SHAPE = (300, 1, 4, 5)
EXPECTED = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where the files are, for this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"distmetric-{os.getuid()}"


def files_in(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


class Decoder:
    """Decodes, noting which images in a file; slowly, or ending its process at some image."""

    def __init__(self, note: Path, wait_s: float = 0.0, dies_at: int | None = None) -> None:
        self.note, self.wait_s, self.dies_at = note, wait_s, dies_at

    def __call__(self, part: slice) -> np.ndarray:
        if self.dies_at is not None and self.dies_at in range(*part.indices(SHAPE[0])):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.wait_s)
        with open(self.note, "a") as note:
            note.writelines(f"{image}\n" for image in range(*part.indices(SHAPE[0])))
        return EXPECTED[part]

    def noted(self) -> list[int]:
        return sorted(map(int, self.note.read_text().split())) if self.note.exists() else []


def use(key: str, decode: Decoder, ready, pipe) -> None:
    file = PixelFile(key, SHAPE)
    ready.wait()
    pixels = file.fill(decode)
    entries = Path("/proc/self/smaps").read_text().split("VmFlags")
    (mapped,) = (entry for entry in entries if ".pixels" in entry)
    anonymous = next(line for line in mapped.splitlines() if line.startswith("Anonymous"))
    pipe.send((bool((pixels == EXPECTED).all()), anonymous.split()[1]))
    ready.wait()
    file.release()
    pipe.send(bool((pixels == EXPECTED).all()))
    pipe.close()


def start(key: str, decode: Decoder, ready) -> tuple:
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=use, args=(key, decode, ready, sending), daemon=True)
    process.start()
    sending.close()
    return process, receiving


def heard(pipe) -> object:
    assert pipe.poll(30), "no answer"
    return pipe.recv()


def test_processes_decode_every_image_once_share_it_and_leave_nothing(folder, tmp_path) -> None:
    decode = Decoder(tmp_path / "note", wait_s=0.005)
    ready = FORK.Barrier(3, timeout=30)
    started = [start("key", decode, ready) for _ in range(3)]
    for _, pipe in started:
        assert heard(pipe) == (True, "0")  # no page is this process's own
    assert decode.noted() == list(range(SHAPE[0]))
    for process, pipe in started:
        assert heard(pipe) is True
        process.join(30)
    assert files_in(folder) == {""}  # the lock


def test_what_a_killed_process_had_finished_is_kept_and_the_rest_is_not_believed(folder, tmp_path) -> None:
    first = Decoder(tmp_path / "first", dies_at=100)
    process, _ = start("key", first, FORK.Barrier(1, timeout=30))
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    done = first.noted()
    assert 0 < len(done) <= 100
    second = Decoder(tmp_path / "second")
    file = PixelFile("key", SHAPE)
    np.testing.assert_array_equal(file.fill(second), EXPECTED)
    assert sorted(done + second.noted()) == list(range(SHAPE[0]))
    file.release()
    assert files_in(folder) == {""}


def test_a_part_that_is_half_written_is_decoded_again(tmp_path, monkeypatch) -> None:
    written = pixel_file._write

    def half(file: int, data: bytes, offset: int) -> None:
        written(file, data[: len(data) // 2], offset)
        if len(data) > 32 and len(data) != len(EXPECTED[:1].tobytes()):
            raise KeyboardInterrupt

    file = PixelFile("key", SHAPE)
    monkeypatch.setattr(pixel_file, "_write", half)
    with pytest.raises(KeyboardInterrupt):
        file.fill(Decoder(tmp_path / "first"))
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    np.testing.assert_array_equal(file.fill(Decoder(tmp_path / "second")), EXPECTED)
    file.release()


def test_who_waits_for_a_process_that_is_killed_takes_its_part(tmp_path) -> None:
    slow = Decoder(tmp_path / "slow", wait_s=60)
    process, _ = start("key", slow, FORK.Barrier(1, timeout=30))
    file = PixelFile("key", SHAPE)
    deadline = time.monotonic() + 30
    while not file.path.with_suffix(".claims").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # it holds a part now
    killer = FORK.Process(target=lambda: (time.sleep(0.3), os.kill(process.pid, signal.SIGKILL)), daemon=True)
    killer.start()
    np.testing.assert_array_equal(file.fill(Decoder(tmp_path / "quick")), EXPECTED)
    killer.join(30)
    process.join(30)
    file.release()


def test_the_last_one_removes_the_file_and_readers_keep_what_they_mapped(folder, tmp_path) -> None:
    one, other = PixelFile("key", SHAPE), PixelFile("key", SHAPE)
    pixels = one.fill(Decoder(tmp_path / "note"))
    one.release()
    assert ".pixels" in files_in(folder)
    np.testing.assert_array_equal(other.fill(Decoder(tmp_path / "again")), EXPECTED)
    assert Decoder(tmp_path / "again").noted() == []
    other.release()
    other.release()
    assert files_in(folder) == {""}
    np.testing.assert_array_equal(pixels, EXPECTED)


def test_what_is_written_into_pixels_stays_here(tmp_path) -> None:
    one, other = PixelFile("key", SHAPE), PixelFile("key", SHAPE)
    one.fill(Decoder(tmp_path / "note"))[:] = 0
    np.testing.assert_array_equal(other.fill(Decoder(tmp_path / "note")), EXPECTED)
    one.release()
    other.release()


def test_files_that_nobody_uses_are_swept_and_those_in_use_are_not(folder) -> None:
    used, left = PixelFile("used", SHAPE), PixelFile("left", SHAPE)
    left._release.detach()
    os.close(left._file)  # as if it had been killed
    (folder / "half.new").touch()
    (folder / "gone.claims").touch()
    third = PixelFile("third", SHAPE)
    assert {path.name for path in folder.glob("*.*")} == {used.path.name, third.path.name}
    used.release()
    third.release()


@pytest.mark.parametrize("damage", ["another boot", "other bytes", "cut off", "empty"])
def test_a_file_that_cannot_be_this_one_is_made_anew(damage, tmp_path, monkeypatch) -> None:
    file = PixelFile("key", SHAPE)
    file.fill(Decoder(tmp_path / "first"))
    file._release.detach()
    os.close(file._file)
    if damage == "another boot":
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr(pixel_file, "_BOOT", tmp_path / "boot")
    elif damage == "other bytes":
        with open(file.path, "r+b") as stream:
            stream.write(b"x")
    else:
        os.truncate(file.path, 0 if damage == "empty" else file.path.stat().st_size - 1)
    again = Decoder(tmp_path / "again")
    file = PixelFile("key", SHAPE)
    np.testing.assert_array_equal(file.fill(again), EXPECTED)
    assert again.noted() == list(range(SHAPE[0]))
    file.release()


def no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_file, "_SLACK", 1 << 62)


def open_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    folder.chmod(0o755)


def a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def not_linux(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_file, "_BOOT", folder / "none")


@pytest.mark.parametrize("spoil", [no_room, open_to_others, a_link, not_linux])
def test_where_no_file_can_be_shared_every_store_has_its_own(
    spoil, folder, glyphs, monkeypatch, caplog
) -> None:
    spoil(folder, monkeypatch)
    with pytest.raises(OSError, match=r"room|alone|No such file"):
        PixelFile("key", SHAPE)
    rows = np.arange(40)
    shared = ImageStore(glyphs, 28, 1, rows=rows, shared=True)
    assert "every worker decodes images for itself" in caplog.text
    assert torch.equal(shared.images(rows), ImageStore(glyphs, 28, 1, rows=rows).images(rows))


def test_stores_that_share_give_the_same_pixels_until_they_are_gone(glyphs, folder) -> None:
    rows = np.array([3, 50, 4, 7])
    stores = [ImageStore(glyphs, 28, 1, rows=rows, shared=True) for _ in range(2)]
    own = ImageStore(glyphs, 28, 1, rows=rows)
    mixed = np.array([50, 3, 3, 9])  # one of them is not held
    for store in stores:
        assert store.held_bytes == own.held_bytes
        assert torch.equal(store.images(mixed), own.images(mixed))
    assert len(list(folder.glob("*.pixels"))) == 1
    assert len({ImageStore(glyphs, size, 1, rows=rows, shared=True)._file.path for size in (28, 14)}) == 2
    for store in stores:
        store.close()
        assert torch.equal(store.images(mixed), own.images(mixed))
    assert list(folder.glob("*.pixels")) == []


@pytest.fixture(scope="module")
def glyphs(glyph_cache) -> Catalog:
    """A few glyphs."""
    from distmetric.training.run_data import open_data
    from runs import tiny_config

    return open_data(tiny_config(glyph_cache).data)
