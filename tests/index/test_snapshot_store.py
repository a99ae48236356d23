"""The store of a run: snapshots by version, swaps by round, safe against kills, full disks and pruning."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.index import arrays, snapshot_store
from distmetric.index.snapshot_store import SnapshotStore
from snapshots import random_snapshot


def filled(location: str, versions) -> SnapshotStore:
    store = SnapshotStore(location)
    for version in versions:
        store.save(random_snapshot(3, version, step=10 * version))
    return store


@pytest.fixture(params=["path", "uri", "object store"])
def location(request, tmp_path, monkeypatch) -> str:
    """Where to keep snapshots: a path, a URI, or a file system that knows nothing of renames."""
    if request.param == "path":
        return f"{tmp_path}/index/"
    if request.param == "uri":
        return f"file://{tmp_path}/index"
    (tmp_path / "bucket").mkdir()
    bucket = fs.SubTreeFileSystem(f"{tmp_path}/bucket", fs.LocalFileSystem())
    for module in (arrays, snapshot_store):
        monkeypatch.setattr(module, "open_location", lambda at: (bucket, at.removeprefix("store://")))
    return "store://runs/1/index"


def test_snapshots_and_swaps_come_back(location) -> None:
    store = SnapshotStore(location)
    assert store.versions() == []
    assert store.newest() is None
    assert store.swap_at(0) is None
    store.prune(set(), 5)
    filled(location, [2, 10, 9])
    store.note_swap(0, 2)
    store.note_swap(7, 10)
    again = SnapshotStore(location)
    assert again.versions() == [2, 9, 10]
    assert again.load(9).step == 90
    assert again.newest().version == 10
    assert [again.swap_at(round) for round in (0, 1, 7)] == [2, None, 10]
    again.note_swap(7, 9)
    assert store.swap_at(7) == 9
    store.prune({9}, 7)
    assert store.versions() == [9, 10]
    assert [store.swap_at(round) for round in (0, 7)] == [None, 9]


def test_files_have_names_that_sort(tmp_path) -> None:
    filled(str(tmp_path), [12]).note_swap(34, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round_00000034.json",
        "snapshot_00000012.arrow",
    ]


def test_a_missing_or_renamed_snapshot_is_named(tmp_path) -> None:
    store = filled(str(tmp_path), [1])
    with pytest.raises(InputError, match=r"snapshot_00000002\.arrow does not exist"):
        store.load(2)
    (tmp_path / "snapshot_00000001.arrow").rename(tmp_path / "snapshot_00000002.arrow")
    with pytest.raises(InputError, match="holds version 1"):
        store.load(2)


def test_the_newest_intact_snapshot_is_found_beside_damaged_ones(tmp_path, caplog) -> None:
    store = filled(str(tmp_path), [1, 2, 3])
    (tmp_path / "snapshot_00000003.arrow").write_bytes(b"ARROW1")
    (tmp_path / "snapshot_00000004.arrow.part").write_bytes(b"half")
    assert store.versions() == [1, 2, 3]
    assert store.newest().version == 2
    assert "snapshot_00000003.arrow is damaged" in caplog.text
    with pytest.raises(InputError, match="is damaged"):
        store.load(3)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"round": 5}', '{"round": 6, "version": 1}', '{"round": 5, "version": "1"}']
)
def test_a_damaged_note_is_named(text, tmp_path, caplog) -> None:
    store = filled(str(tmp_path), [1, 2])
    (tmp_path / "round_00000005.json").write_text(text)
    with pytest.raises(InputError, match=r"round_00000005\.json is damaged: take it away to plan round 5"):
        store.swap_at(5)
    store.prune({2}, 5)
    assert store.versions() == [2]
    assert "round_00000005.json is damaged" in caplog.text


@settings(deadline=None, max_examples=60)
@given(
    versions=st.sets(st.integers(1, 9), max_size=6),
    swaps=st.dictionaries(st.integers(0, 6), st.integers(1, 9), max_size=5),
    keep=st.sets(st.integers(1, 9), max_size=3),
    before_round=st.integers(0, 7),
)
def test_pruning_keeps_what_is_needed_and_what_is_to_come(
    tmp_path_factory, versions, swaps, keep, before_round
) -> None:
    store = filled(str(tmp_path_factory.mktemp("store")), sorted(versions))
    for round, version in swaps.items():
        store.note_swap(round, version)
    store.prune(keep, before_round)
    left = {round: version for round, version in swaps.items() if round >= before_round}
    assert {round: store.swap_at(round) for round in swaps} == {round: left.get(round) for round in swaps}
    needed = keep | set(left.values())
    for version in versions:
        stays = version == max(versions) or version in needed or (len(needed) > 0 and version > max(needed))
        assert (version in store.versions()) == stays


def test_files_that_vanish_while_pruning_do_not_matter(tmp_path, monkeypatch) -> None:
    store = filled(str(tmp_path), [1, 2, 3])
    store.note_swap(0, 1)
    drop = SnapshotStore._drop

    def twice(self, location):
        drop(self, location)
        drop(self, location)

    monkeypatch.setattr(SnapshotStore, "_drop", twice)
    store.prune({3}, 1)
    assert store.versions() == [3]
    assert store.swap_at(0) is None


def test_a_pruned_snapshot_stays_good_for_who_holds_it(tmp_path) -> None:
    store = filled(str(tmp_path), [1, 2])
    held = store.load(1)
    expected = held.centroids.tolist()
    store.prune({2}, 0)
    assert store.versions() == [2]
    assert held.centroids.tolist() == expected


def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    store = SnapshotStore(f"{tmp_path}/file")
    for write, name in [
        (lambda: store.save(random_snapshot(3, 1)), "snapshot_00000001.arrow"),
        (lambda: store.note_swap(4, 1), "round_00000004.json"),
    ]:
        with pytest.raises(
            ResourceError, match=rf"{name} cannot be written .*free space or fix access"
        ) as error:
            write()
        assert "\n" not in str(error.value)


KILLED = """
import os, signal, sys
from distmetric.index.snapshot_store import SnapshotStore

store = SnapshotStore(sys.argv[1])
synced = []
fsync = os.fsync
os.fsync = lambda file: (fsync(file), synced.append(os.readlink(f"/proc/self/fd/{file}")))
for round in range(3):
    store.note_swap(round, 10 + round)
print(*synced, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_swap_is_on_the_disk_when_its_note_returns(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, f"{tmp_path}/index"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -9
    folder = f"{tmp_path}/index"
    files = [f"{folder}/round_0000000{round}.json.part" for round in range(3)]
    assert done.stdout.split() == [str(tmp_path), *(at for file in files for at in (file, folder))]
    store = SnapshotStore(folder)
    assert [store.swap_at(round) for round in range(4)] == [10, 11, 12, None]


def test_any_flipped_bit_of_a_note_is_noticed(tmp_path) -> None:
    store = SnapshotStore(str(tmp_path))
    store.note_swap(7, 10)
    file = tmp_path / "round_00000007.json"
    intact = file.read_bytes()
    for place in range(len(intact)):
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=r"round_00000007\.json is damaged: take it away"):
                store.swap_at(7)
    file.write_bytes(b'{"round": 7, "version": 10}')  # as older versions wrote it
    assert store.swap_at(7) == 10


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_flipped_bit_of_a_snapshot_is_noticed_or_changes_nothing(data, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    store = SnapshotStore(str(folder))
    if not store.versions():
        filled(str(folder), [1, 2])
        (folder / "intact").write_bytes((folder / "snapshot_00000002.arrow").read_bytes())
    intact = (folder / "intact").read_bytes()
    damaged = bytearray(intact)
    damaged[data.draw(st.integers(0, len(intact) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file = folder / "snapshot_00000002.arrow"
    file.write_bytes(intact)
    expected = {name: str(value) for name, value in vars(store.load(2)).items()}
    file.write_bytes(damaged)
    found = store.newest()
    if found.version == 2:
        assert {name: str(value) for name, value in vars(found).items()} == expected
    else:
        assert found.version == 1
