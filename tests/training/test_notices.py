"""Notices of a run are kept once each, whoever adds them, and cost no run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distmetric.training.notices import Notices, read_notices

COLLAPSE = {"kind": "collapse", "step": 7, "message": "embeddings have collapsed: lower optim.lr"}


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_run_without_notices_has_none(tmp_path: Path) -> None:
    assert read_notices(str(tmp_path)) == []
    assert read_notices(str(tmp_path / "nowhere")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_notice_is_kept_and_logged_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notices(str(tmp_path / "run")).add(**COLLAPSE)
    assert read_notices(str(tmp_path / "run")) == [COLLAPSE]
    assert messages(caplog) == [f"step 7: {COLLAPSE['message']}"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["notices.json"]


def test_a_replayed_step_adds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Notices(str(tmp_path))
    first.add(**COLLAPSE)
    first.add(**COLLAPSE)
    Notices(f"{tmp_path}/").add(**COLLAPSE)
    assert read_notices(str(tmp_path)) == [COLLAPSE]
    assert len(messages(caplog)) == 1


def test_notices_of_others_stay_in_their_order(tmp_path: Path) -> None:
    driver, worker = Notices(str(tmp_path)), Notices(str(tmp_path))
    driver.add("tracking", 0, "not reachable")
    worker.add(**COLLAPSE)
    driver.add("tracking", 9, "reachable again")
    assert [(one["kind"], one["step"]) for one in read_notices(str(tmp_path))] == [
        ("tracking", 0),
        ("collapse", 7),
        ("tracking", 9),
    ]


def test_threads_and_processes_lose_no_notice_of_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from distmetric.training.notices import Notices\n"
        "mine = Notices(sys.argv[1])\n"
        "for step in range(15): mine.add('other', step, 'x')"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    shared, own = Notices(str(tmp_path)), Notices(str(tmp_path))
    try:
        with ThreadPoolExecutor(4) as pool:
            for step in range(30):
                pool.submit((shared if step % 2 else own).add, "thread", step, "x")
        assert other.wait(50) == 0
    finally:
        other.kill()
    found = sorted((one["kind"], one["step"]) for one in read_notices(str(tmp_path)))
    assert found == [("other", step) for step in range(15)] + [("thread", step) for step in range(30)]


def test_what_could_not_be_written_is_written_with_the_next_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.write_text("a file where the folder should be")
    notices = Notices(str(run))
    notices.add(**COLLAPSE)
    logged = messages(caplog)
    assert len(logged) == 2
    assert "notices.json cannot be written" in logged[0]
    assert logged[1].endswith(COLLAPSE["message"])
    run.unlink()
    notices.add("tracking", 8, "not reachable")
    assert [one["step"] for one in read_notices(str(run))] == [7, 8]


@pytest.mark.parametrize("content", ["[{", "{}5", '[{"kind": "collapse"}]', "7", "[3]", "null"])
def test_a_damaged_file_is_named_and_taken_as_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / "notices.json").write_text(content)
    assert read_notices(str(tmp_path)) == []
    assert "notices.json is damaged" in messages(caplog)[0]
    Notices(str(tmp_path)).add(**COLLAPSE)
    assert json.loads((tmp_path / "notices.json").read_text()) == [COLLAPSE]
