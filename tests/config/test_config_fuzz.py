"""Thousands of configurations that are wrong: each ends in one line with exit code 2 or 3, and nothing is written.

    DISTMETRIC_FUZZ_SEED=7 DISTMETRIC_FUZZ_FACTOR=10 pytest tests/config/test_config_fuzz.py

draws other ones, and ten times as many.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import config_fuzz
from distmetric.benchmarks import run as benchmark_module
from distmetric.cluster import fit as fit_module
from distmetric.cluster import study as study_module
from distmetric.cluster import tune as tune_module
from distmetric.cluster.fit import checked
from distmetric.cluster.run_folder import load_resumable
from distmetric.config.command import run_command
from distmetric.config.compose import compose, resume
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.distributed.replica import Replica
from distmetric.errors import UserError
from distmetric.training import __main__ as without_ray
from distmetric.training.run_folder import RunFolder
from distmetric.training.worker import Worker
from runs import CPU, ListTracker

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("DISTMETRIC_FUZZ_SEED", "0"))
FACTOR = int(os.environ.get("DISTMETRIC_FUZZ_FACTOR", "1"))
# How many command lines of each job, together more than two thousand.
COUNTS = {
    job: 800 if job == "config" else 200 if job in ("tune", "evaluate") else 130
    for job in config_fuzz.REQUIRED
}
LONGEST_LINE, SECONDS = 1500, 120


class PassedError(Exception):
    """All that can be checked before the work begins was found to be fine."""


def passed(*_: Any, **__: Any) -> None:
    raise PassedError


def main_of(job: str) -> Callable[[list[str]], Any]:
    path = ROOT / "jobs" / f"{'train' if job == 'config' else job}.py"
    spec = importlib.util.spec_from_file_location(f"job_{job}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], Any] = module.main
    return main


def fit_until_data(config: Config, **_: Any) -> None:
    validate(config)
    raise PassedError


@pytest.fixture
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and home, no cluster, and no work after the checks."""
    for name in ("home", "a/b/c/d"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("DISTMETRIC_CACHE", raising=False)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c" / "d")
    monkeypatch.setattr(fit_module, "fit", fit_until_data)
    monkeypatch.setattr(tune_module, "tune_settings", passed)
    monkeypatch.setattr(study_module, "run_study", passed)
    monkeypatch.setattr(benchmark_module, "describe_machine", passed)


@contextmanager
def at_most(seconds: int, what: object) -> Iterator[None]:
    def end(*_: object) -> None:
        raise AssertionError(f"still at it after {seconds} s: {what}")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def names_what_is_wrong(line: str, job: str, overrides: list[str]) -> bool:
    """Whether a message has a key, a value or a word of the command line in it, or a key that is missing there."""
    words = {
        word
        for text in [*overrides, *config_fuzz.REQUIRED[job]]
        for word in re.split(r"[=+~@.\[\]{}:,'\"\s]+", text[:500])
        if word
    }
    escaped = {repr(word)[1:-1] for word in words}
    return (
        any(word in line for word in words | escaped) or "cannot be read: give settings as key=value" in line
    )


def test_at_least_two_thousand_configurations_of_every_job_there_is() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert {"train" if job == "config" else job for job in COUNTS} == jobs
    assert sum(COUNTS.values()) >= 2000


@pytest.mark.timeout(900 * FACTOR)
@pytest.mark.usefixtures("_nowhere")
@pytest.mark.parametrize("job", sorted(COUNTS))
def test_wrong_settings_are_one_line_and_leave_nothing_behind(
    job: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main, before, outcomes = main_of(job), everything_in(tmp_path), Counter[str]()
    for number in range(COUNTS[job] * FACTOR):
        overrides = config_fuzz.bad_overrides(random.Random(f"{SEED} {job} {number}"), job)
        with at_most(SECONDS, overrides):
            try:
                code = run_command(job, "", main, overrides)
            except PassedError:
                code = 0
            except Exception as error:
                raise AssertionError(f"no sentence for {overrides!r}") from error
        out, err = capfd.readouterr()
        outcomes["fine" if code == 0 else "refused"] += 1
        assert everything_in(tmp_path) == before, overrides
        if code == 0:
            continue
        assert code in (2, 3), overrides
        assert (out, err.count("\n"), err[:7]) == ("", 1, "error: "), (overrides, err)
        assert len(err) < LONGEST_LINE, (overrides, err)
        assert "Traceback" not in err, (overrides, err)
        assert names_what_is_wrong(err, job, overrides), (overrides, err)
    assert outcomes["refused"] > 4 * outcomes["fine"], "what is drawn is hardly ever wrong"


@pytest.mark.timeout(900 * FACTOR)
@pytest.mark.usefixtures("_nowhere")
def test_settings_that_pass_the_checks_can_be_built(glyph_cache: Path, tmp_path: Path) -> None:
    tiny = ["debug=tiny", "data.max_classes=60", "tracking=none", f"data.cache_dir={glyph_cache}"]
    outcomes = Counter[str]()
    for number in range(100 * FACTOR):
        overrides = config_fuzz.valid_overrides(random.Random(f"{SEED} valid {number}"))
        if "sampler=hard_neighbors" in overrides:
            overrides.append("index=inline")  # the others work in actors of Ray
        refusal = None
        try:
            with at_most(SECONDS, overrides):
                config, _ = checked(decode(Config, compose("config", [*tiny, *overrides])))
                worker = Worker(config, str(tmp_path / f"run{number}"), ListTracker(), Replica(), CPU)
                worker.batches.close()
        except UserError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"these pass all checks and cannot be built: {overrides}") from error
        outcomes["built" if refusal is None else "refused"] += 1
        if refusal is not None:
            assert "\n" not in refusal, overrides
            assert names_what_is_wrong(refusal, "config", overrides), (overrides, refusal)
    assert outcomes["built"] > 30 * FACTOR, outcomes


@pytest.mark.usefixtures("_nowhere")
def test_damaged_configurations_of_torchrun_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, path = compose("config", []), tmp_path / "config.json"
    path.touch()
    before = everything_in(tmp_path)
    for number in range(300 * FACTOR):
        draw = random.Random(f"{SEED} torchrun {number}")
        text = json.dumps(config_fuzz.damaged(draw, whole))
        if number % 5 == 0:
            at = draw.randrange(len(text))
            text = (
                text[:at]
                + draw.choice(("", "\x00", "[" * 5000, '"', "9" * 6000, "}", "\u00e9"))
                + text[at + 1 :]
            )
        path.write_text(text, encoding="latin-1" if number % 7 == 0 else "utf-8", errors="replace")
        with at_most(SECONDS, text):
            try:
                config, _ = without_ray._read([str(path)])
                validate(config)
                continue
            except UserError as error:
                line = str(error)
        assert "\n" not in line, text
        assert len(line) < LONGEST_LINE, text
        assert everything_in(tmp_path) == before, text


@pytest.mark.usefixtures("_nowhere")
def test_damaged_folders_of_runs_are_one_line(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"), "run", compose("config", []), "0" * 64, "0.1.0")
    folder.write()
    path = tmp_path / "run" / "run.json"
    whole = json.loads(path.read_text())
    before = everything_in(tmp_path)
    for number in range(300 * FACTOR):
        draw = random.Random(f"{SEED} run {number}")
        found = config_fuzz.damaged(draw, {key: value for key, value in whole.items() if key != "check"})
        path.write_text(
            json.dumps(found) if number % 9 else draw.choice(("[" * 9000, '{"a": ' * 9000, "", "9" * 9000))
        )
        with at_most(SECONDS, found):
            try:
                values = resume(
                    load_resumable(str(tmp_path / "run")), [f"resume={tmp_path}/run", "train.steps=7"]
                )
                validate(decode(Config, values))
                continue
            except UserError as error:
                line = str(error)
        assert "\n" not in line, found
        assert len(line) < LONGEST_LINE, found
        assert everything_in(tmp_path) == before, found
