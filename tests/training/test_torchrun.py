"""The core runs under torchrun, with neither Ray nor MLflow nor Hydra in the process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distmetric.distributed.replica import Replica
from distmetric.tracking.journal import read_history
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.saved_model import config_dict
from drivers import steps_saved, wait_for
from processes import run_ranks
from runs import run_once, tiny_config

SCRIPT = """
import sys
from distmetric.training.__main__ import main
code = main(sys.argv[1:])
loaded = {"ray", "mlflow", "hydra", "omegaconf"} & set(sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)


def test_two_ranks_of_torchrun_equal_one_process(glyph_cache, tmp_path: Path) -> None:
    overrides = ("train.precision=float64", "model.norm=sync_batch", "model.widths=[8, 8]", "train.steps=6")
    config = tiny_config(glyph_cache, *overrides, "eval.every_steps=3")
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config)))
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = launch(str(tmp_path / "script.py"), str(tmp_path / "config.json"), str(tmp_path / "run"))
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.strip().splitlines()[-1])
    _, expected, _ = run_once(config, tmp_path / "one")
    assert result["step"] == 6
    assert result["metrics"] == pytest.approx(expected.metrics, abs=1e-9)
    assert Path(result["checkpoint"]).is_relative_to(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read as JSON"), ('{"sed": 1}', "sed is not a setting: did you mean seed?")],
)
def test_a_wrong_configuration_is_one_line(content, message, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    command = [sys.executable, "-m", "distmetric.training", str(tmp_path / "config.json")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("", r"the ranks cannot meet at 127\.0\.0\.1:\d+ \(.*address already in use"),
        ("MASTER_ADDR", r"the ranks cannot meet at \(MASTER_ADDR is not set\):\d+ \(.*MASTER_ADDR"),
    ],
)
def test_a_port_that_is_in_use_is_said(missing: str, says: str, glyph_cache, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, f"output_dir={tmp_path}/out")
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config)))
    command = [sys.executable, "-m", "distmetric.training", str(tmp_path / "config.json")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} | place
        environment = {name: value for name, value in (os.environ | rank).items() if name != missing}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert ran.returncode == 3
    assert re.search(f"^error: {says}", ran.stderr.splitlines()[-1])
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


STEPS = 600
SETTINGS = ("model.widths=[8, 8]", "model.embedding_dim=16", f"train.steps={STEPS}", "eval.every_steps=300")
RARE = ("checkpoint.every_steps=1000", "train.log_every=1")


def start(command: list[str], *arguments: str, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as errors:
        return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True)


def whole_run(replica: Replica, cache: Path, run_dir: Path) -> tuple[list[np.ndarray], dict[int, float]]:
    worker, _, tracker = run_once(tiny_config(cache, *SETTINGS, *RARE), run_dir, replica=replica)
    weights = [tensor.numpy() for tensor in worker.embedder.state_dict().values()]
    return weights, tracker.series("train/loss")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(
    ("ranks", "number", "codes"),
    [(2, signal.SIGTERM, {1, -signal.SIGTERM}), (1, signal.SIGINT, {5})],  # of torchrun and of ours
    ids=["torchrun SIGTERM", "one process SIGINT"],
)
def test_a_signal_stops_all_ranks_at_one_step_and_the_same_command_goes_on(
    ranks, number, codes, glyph_cache, tmp_path: Path
) -> None:
    weights, losses = run_ranks(ranks, whole_run, glyph_cache, tmp_path / "whole", timeout=600)[0]
    run_dir, log = tmp_path / "run", tmp_path / "log"
    config = tiny_config(glyph_cache, *SETTINGS, *RARE)
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config)))
    command = [*TORCHRUN, "-m"] if ranks > 1 else [sys.executable, "-m"]
    arguments = ("distmetric.training", str(tmp_path / "config.json"), str(run_dir))

    stopped = start(command, *arguments, log=log)
    try:
        wait_for(lambda: len(read_history(str(run_dir)).get("train/loss", [])) > 5, stopped, log)
        stopped.send_signal(number)
        output, _ = stopped.communicate(timeout=600)
    finally:
        stopped.kill()
    assert stopped.returncode in codes, log.read_text()[-3000:]
    assert output == ""
    said = [line for line in log.read_text().splitlines() if line.startswith("stopped at step")]
    step = steps_saved(run_dir)
    assert 0 < step < STEPS
    assert said == [f"stopped at step {step} on {number.name}: checkpoint saved; the same command goes on"]

    resumed = start(command, *arguments, log=log)
    output, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, log.read_text()[-3000:]
    assert json.loads(output.strip().splitlines()[-1])["step"] == STEPS
    saved = read_checkpoint(str(run_dir / "checkpoints" / f"step_{STEPS:08d}")).tensors("model").values()
    for ours, expected in zip(saved, weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected)
    assert dict(read_history(str(run_dir))["train/loss"]) == losses


FAILING = """
import os, sys
from distmetric.errors import InputError
from distmetric.training import __main__ as program, worker

class Batches(worker.BatchLoader):
    def get(self, step):
        if step == 3 and os.environ["RANK"] == "1":
            raise InputError("images/7.png is truncated")
        return super().get(step)

worker.BatchLoader = Batches
code = program.main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""


def test_a_mistake_that_one_rank_meets_ends_all_of_them_with_its_line(glyph_cache, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *SETTINGS, "trainer.timeout_s=600")
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config)))
    (tmp_path / "failing.py").write_text(FAILING)
    logs = ("--redirects", "3", "--log-dir", str(tmp_path / "logs"))
    ran = launch(*logs, *(str(tmp_path / name) for name in ("failing.py", "config.json", "run")))
    assert ran.returncode == 1
    said = {path.parent.name: path.read_text() for path in (tmp_path / "logs").rglob("stderr.log")}
    assert said["1"] == "error: images/7.png is truncated\n"
    assert said["0"] in (
        "",  # torchrun was quicker
        "error: another rank has ended, which says why or was killed: the same command goes on\n",
    )
