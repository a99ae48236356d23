"""Thousands of damaged files: each is read, or refused in one sentence; none crashes, hangs or leaves something."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.data.decode import BadImageError, check_image, decode_image
from distmetric.data.manifest import read_manifest
from distmetric.errors import UserError
from fuzzed_data import KINDS, mutated

FIRST_SEED = 0
CASES = {
    "image": 1500,
    "zip": 400,
    "tar": 200,
    "market_attribute.mat": 150,
    "list_eval_partition.txt": 150,
    "parquet": 800,
    "manifest": 500,
    "catalog": 800,
    "embeddings": 800,
    "arrays": 300,
    "run.json": 100,
    "meta.json": 50,
    "manifest.json": 50,
    "model.pt": 30,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: a case makes and deletes files, for which disks take long."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def fuzz(folder: Path, kind: str, first: int, cases: int) -> dict[str, int]:
    """Read damaged files in a process of its own."""
    program = [sys.executable, str(Path(__file__).with_name("fuzzed_data.py"))]
    done = subprocess.run(
        [*program, str(folder), str(first), str(cases), kind], capture_output=True, text=True, timeout=500
    )
    last = (folder / "case").read_text() if (folder / "case").exists() else "none"
    assert done.returncode == 0, f"case {last!r} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])[kind]
    return found


@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_are_read_or_refused_in_one_sentence(kind: str, folder: Path) -> None:
    found = fuzz(folder, kind, FIRST_SEED, CASES[kind])
    print(f"{kind}: {found}")
    assert sum(found.values()) == CASES[kind]
    # Most damage is damage, and the intact rest of the reader is reached as well (but where all of a file is hashed).
    assert found["refused"] > CASES[kind] / 5
    assert found.get("read", 0) > CASES[kind] / 50 or kind in (
        "run.json",
        "meta.json",
        "manifest.json",
        "model.pt",
    )


def test_at_least_two_thousand_files_of_every_kind_that_is_read() -> None:
    assert CASES.keys() == KINDS.keys()
    assert sum(CASES.values()) >= 2000


def test_a_crash_and_a_hang_would_be_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: what kills the process is told with its case."""
    program = (
        "import sys; sys.path.insert(0, {tests!r}); import fuzzed_data as f, {module}\n"
        "f.SECONDS_A_CASE = 1\n"
        "f.KINDS['manifest'] = f.KINDS['manifest']._replace(read=lambda path: {call})\n"
        "f.main({folder!r}, 7, 1, ['manifest'])"
    )
    for module, call in (("ctypes", "ctypes.string_at(0)"), ("time", "time.sleep(60)")):
        text = program.format(tests=str(Path(__file__).parent), module=module, call=call, folder=str(folder))
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=300)
        assert done.returncode != 0
        assert (folder / "case").read_text() == "manifest 7"


def test_damage_is_a_function_of_its_seed() -> None:
    data = bytes(range(256)) * 4
    made = [mutated(data, random.Random(seed), [data[::-1]]) for seed in range(50)]
    assert made == [mutated(data, random.Random(seed), [data[::-1]]) for seed in range(50)]
    assert sum(each != data for each in made) >= 45
    assert len(set(made)) >= 45


STARTS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"RIFF\0\0\0\0WEBP", b"BM", b"P6 ")
SIGNS = st.text(st.sampled_from('path,label;"\n\r\t\x00\x1b\ufeffäa/..\\'), max_size=60)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(st.binary(max_size=400))
def test_bytes_of_any_kind_are_an_image_or_none(data: bytes) -> None:
    for start in STARTS:
        reason = "none"
        try:
            width, height = check_image(start + data)
            assert decode_image(start + data, 3).shape == (3, 3, 3)
            assert min(width, height) > 0
        except BadImageError as error:
            reason = str(error)
        assert reason.isprintable()


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(SIGNS, st.sampled_from(["", "path,label\n"]))
def test_text_of_any_kind_is_a_manifest_or_none(
    tmp_path_factory: pytest.TempPathFactory, text: str, start: str
) -> None:
    place, reason = tmp_path_factory.getbasetemp() / "m.csv", "none"
    place.write_text(start + text, encoding="utf-8", newline="")
    try:
        assert all(name and labels.class_name for name, labels in read_manifest(str(place)).items())
    except UserError as error:
        reason = str(error)
    assert reason.isprintable()
