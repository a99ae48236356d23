"""The history of a run in its folder: every step once, in order, whatever died while it was written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import ResourceError
from distmetric.tracking import journal
from distmetric.tracking.journal import (
    MEASURED,
    TOLD,
    JournalReader,
    JournalWriter,
    read_history,
    read_status,
    read_stream,
    remove_history,
)
from distmetric.tracking.journal_tracker import JournalTracker

LOSS = "train/loss"


def measured(steps, value: float = 1.0) -> list[dict]:
    return [{"step": step, "time": 1000 + step, "metrics": {LOSS: value * step}} for step in steps]


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "history").iterdir())


def test_what_is_flushed_is_in_the_folder_and_what_was_only_logged_need_not_be(tmp_path) -> None:
    tracker = JournalTracker(str(tmp_path))
    tracker.log(1, {LOSS: 0.1, "train/bad": float("nan"), "train/worse": float("inf")})
    tracker.flush()
    assert read_history(str(tmp_path)) == {LOSS: [(1, 0.1)]}
    tracker.log(2, {LOSS: 1 / 3})
    tracker.close()
    assert read_history(str(tmp_path)) == {LOSS: [(1, 0.1), (2, 1 / 3)]}


def test_what_is_logged_is_written_before_anybody_asks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("distmetric.tracking.journal_tracker._WRITE_EVERY_S", 0.01)
    tracker = JournalTracker(str(tmp_path))
    written = JournalReader(str(tmp_path), MEASURED)
    tracker.log(1, {LOSS: 0.5})
    while not written.read():
        pass
    tracker.close()


def test_replayed_steps_are_not_noted_again(tmp_path) -> None:
    first = JournalTracker(str(tmp_path))
    for step in range(1, 8):
        first.log(step, {LOSS: float(step)})
    first.log(4, {"eval/recall_at_1": 0.4})
    first.flush()  # and is killed
    resumed = JournalTracker(str(tmp_path))
    for step in range(5, 11):
        resumed.log(step, {LOSS: -float(step)})
    resumed.log(8, {"eval/recall_at_1": 0.8})
    resumed.close()
    history = read_history(str(tmp_path))
    assert history[LOSS] == [
        *((step, float(step)) for step in range(1, 8)),
        (8, -8.0),
        (9, -9.0),
        (10, -10.0),
    ]
    assert history["eval/recall_at_1"] == [(4, 0.4), (8, 0.8)]
    assert resumed.next_step("eval/") == 9
    assert resumed.next_step("system/") == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    attempts=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), min_size=1, max_size=6),
    file_bytes=st.sampled_from([1, 150, 1 << 19]),
)
def test_any_number_of_killed_attempts_leaves_every_step_once_with_its_first_value(
    attempts, file_bytes, tmp_path_factory
) -> None:
    """Each attempt goes on from a checkpoint, which is flushed before, takes some steps, and is killed."""
    run_dir = str(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_FILE_BYTES", file_bytes)
        checkpoint, expected = 0, {}
        for number, (steps, behind) in enumerate(attempts):
            tracker = JournalTracker(run_dir)
            reached = checkpoint + steps
            flushed = max(checkpoint, reached - behind)
            for step in range(checkpoint + 1, reached + 1):
                tracker.log(step, {LOSS: step + number / 100})
                if step <= flushed:
                    expected.setdefault(step, step + number / 100)
                if step == flushed:
                    tracker.flush()
            tracker._over.set()  # its thread writes nothing more, as one of a process that is gone
            checkpoint = flushed - flushed % 5
        assert read_history(run_dir).get(LOSS, []) == sorted(expected.items())


def test_files_are_full_before_the_next_one_is_begun_and_are_read_on_from_any_place(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(journal, "_FILE_BYTES", 200)
    writer = JournalWriter(str(tmp_path), MEASURED)
    reader = JournalReader(str(tmp_path), MEASURED)
    seen = []
    for step in range(1, 31):
        writer.write(measured([step]))
        while records := reader.read():
            seen += [record["step"] for record, _ in records]
            reader.place = records[-1][1]
    assert seen == list(range(1, 31))
    assert len(files(tmp_path)) > 5
    assert all((tmp_path / "history" / name).stat().st_size < 400 for name in files(tmp_path))
    places = [place for _, place in JournalReader(str(tmp_path), MEASURED, reader.place).read()]
    assert places == []
    everything = list(read_stream(str(tmp_path), MEASURED))
    reader = JournalReader(str(tmp_path), MEASURED)
    while records := reader.read():
        for record, place in records:
            rest = list(read_stream(str(tmp_path), MEASURED, place))
            assert rest == everything[record["step"] :]
        reader.place = records[-1][1]


def test_processes_have_files_of_their_own_even_one_that_was_taken_for_dead(tmp_path) -> None:
    undead = JournalWriter(str(tmp_path), MEASURED)
    undead.write(measured([1, 2, 3]))
    successor = JournalWriter(str(tmp_path), MEASURED)
    undead.write(measured([4], value=-1.0))
    successor.write(measured([4, 5]))
    undead.write(measured([5], value=-1.0))
    successor.write(measured([6]))
    assert files(tmp_path) == ["measured-0000-000000.jsonl", "measured-0001-000000.jsonl"]
    assert [step for step, _ in read_history(str(tmp_path))[LOSS]] == [1, 2, 3, 4, 5, 6]
    header = json.loads((tmp_path / "history" / files(tmp_path)[1]).read_text().splitlines()[0])
    assert header.keys() == {"kind", "time", "host", "pid", "check"}


def test_a_full_disk_is_one_line_and_nothing_is_lost_or_doubled_once_there_is_room(
    tmp_path, monkeypatch
) -> None:
    from distmetric.locations import put_in_place

    tracker = JournalTracker(str(tmp_path))
    tracker.log(1, {LOSS: 1.0})
    tracker.flush()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "put_in_place", full)
    tracker.log(2, {LOSS: 2.0})
    for _ in range(2):
        with pytest.raises(
            ResourceError, match=r"history of the run in .* cannot be written .*No space left.*: free"
        ):
            tracker.flush()
    tracker.log(3, {LOSS: 3.0})
    monkeypatch.setattr(journal, "put_in_place", put_in_place)
    tracker.flush()
    tracker.close()
    assert read_history(str(tmp_path)) == {LOSS: [(1, 1.0), (2, 2.0), (3, 3.0)]}
    reader = JournalReader(str(tmp_path), MEASURED)
    steps = []
    while records := reader.read():
        steps += [record["step"] for record, _ in records]
        reader.place = records[-1][1]
    assert steps == [1, 2, 3]


def test_a_close_that_cannot_write_says_so_and_does_not_hide_why_the_run_ended(
    tmp_path, monkeypatch, caplog
) -> None:
    tracker = JournalTracker(str(tmp_path))
    tracker.log(1, {LOSS: 1.0})
    monkeypatch.setattr(tracker._writer, "write", lambda _: (_ for _ in ()).throw(ResourceError("no space")))
    with caplog.at_level(logging.WARNING):
        tracker.close()
    assert [record.getMessage() for record in caplog.records] == ["no space"]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[1]", b'{"step": 2}', b"[" * 100_000, range(0, 800, 7)]
)
def test_a_damaged_line_is_named_and_costs_that_line_only(damage, tmp_path, caplog) -> None:
    """Also one of which a single bit has flipped."""
    writer = JournalWriter(str(tmp_path), MEASURED)
    writer.write(measured([1, 2, 3]))
    path = tmp_path / "history" / files(tmp_path)[0]
    lines = path.read_bytes().splitlines()
    for bit in damage if isinstance(damage, range) else [None]:
        flipped = bytearray(lines[2])
        if bit is not None:
            place = bit // 8 % len(flipped)
            flipped[place] ^= 1 << bit % 8
        if flipped.count(b"\n"):
            continue  # then it is two damaged lines
        line = damage if bit is None else bytes(flipped)
        path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
        with caplog.at_level(logging.WARNING):
            assert read_history(str(tmp_path))[LOSS] == [(1, 1.0), (3, 3.0)]
    assert "line 3 of" in caplog.text
    assert "is damaged and passed over" in caplog.text


def test_a_run_without_a_history_has_none(tmp_path) -> None:
    assert read_history(str(tmp_path / "nowhere")) == {}
    assert read_status(str(tmp_path)) == ("", "")
    remove_history(str(tmp_path))
    JournalWriter(str(tmp_path), TOLD).write(
        [{"kind": "status", "status": "KILLED", "reason": "why", "time": 1}, {"kind": "tags", "tags": {}}]
    )
    assert read_status(str(tmp_path)) == ("KILLED", "why")
    remove_history(str(tmp_path))
    assert read_status(str(tmp_path)) == ("", "")


def test_histories_work_on_any_file_system(tmp_path) -> None:
    location = f"file://{tmp_path}/run"
    tracker = JournalTracker(location)
    tracker.log(1, {LOSS: 0.25})
    tracker.close()
    assert read_history(location) == read_history(str(tmp_path / "run")) == {LOSS: [(1, 0.25)]}
