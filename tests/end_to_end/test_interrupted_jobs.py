"""Jobs that a signal ends while they work: one line, the exit code of shells, nothing half-written, parts kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distmetric.training.run_data import open_data
from drivers import REPOSITORY
from image_sources import make_zip, png
from runs import run_once, tiny_config


def interrupted(
    job: str, *overrides: str, log: Path, when: Callable[[], bool], number: int
) -> tuple[int, str, list[str]]:
    """Start a job, signal it when something holds; its exit code, result, and what it said in whole lines."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, f"jobs/{job}.py", *overrides],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        deadline = time.monotonic() + 400
        while not when():
            assert process.poll() is None, f"it ended too early:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"waited too long:\n{log.read_text()}"
            time.sleep(0.002)
        process.send_signal(number)
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output, log.read_text().splitlines()


@pytest.mark.timeout(1800)
def test_an_interrupted_ingest_leaves_nothing(tmp_path: Path) -> None:
    images = [png(number) for number in range(50)]
    files = {f"{number % 40}/{number}.png": images[number % 50] for number in range(20_000)}
    source = make_zip(tmp_path / "images.zip", files)
    out = tmp_path / "out"
    out.mkdir()
    code, output, said = interrupted(
        *("ingest", f"source={source}", f"out={out}/images.arrow"),
        log=tmp_path / "log",
        when=lambda: any(path.stat().st_size for path in out.iterdir()),
        number=signal.SIGINT,
    )
    assert (code, output) == (130, "")
    assert said[-1] == "stopped on SIGINT: what was complete is kept, and nothing half-written"
    assert not [line for line in said if "Traceback" in line]
    assert list(out.iterdir()) == []


@pytest.mark.timeout(1800)
def test_an_interrupted_embedding_job_keeps_its_parts_and_the_same_command_does_the_rest(
    glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=2")
    _, trained, _ = run_once(config, tmp_path / "run")
    catalog = open_data(config.data)
    out = tmp_path / "out" / "embeddings.parquet"
    out.parent.mkdir()
    command = (
        "embed",
        f"checkpoint={trained.checkpoint}",
        f"source={catalog.path}",
        f"out={out}",
        "part_rows=2",
    )

    def parts() -> list[Path]:
        return list(Path(f"{out}.parts").glob("part_*.arrow"))

    code, output, said = interrupted(
        *command, log=tmp_path / "log", when=lambda: len(parts()) > 2, number=signal.SIGTERM
    )
    assert (code, output) == (143, "")
    assert said[-1] == "stopped on SIGTERM: what was complete is kept, and nothing half-written"
    assert not [line for line in said if "Traceback" in line]
    assert not out.exists()
    kept = len(parts())
    assert kept > 2

    again = subprocess.run(
        [sys.executable, f"jobs/{command[0]}.py", *command[1:]],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    result = json.loads(again.stdout.strip().splitlines()[-1])
    assert result["rows"] == len(catalog)
    assert result["resumed_parts"] == kept
    assert list(out.parent.iterdir()) == [out]
