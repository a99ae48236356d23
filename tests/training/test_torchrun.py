"""The core runs under torchrun, with neither Ray nor MLflow nor Hydra in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distmetric.training.saved_model import config_dict
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
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=100)


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
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
