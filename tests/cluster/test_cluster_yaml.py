"""cluster.yaml passes the launcher's own check, and what that check does not look at."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).resolve().parents[2] / "cluster.yaml"
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def test_the_launcher_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_the_launcher_would_refuse_an_unknown_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="wrkers"):
        validate_config(prepare_config({**copy.deepcopy(cluster), "wrkers": 1}))


def test_the_head_is_one_of_the_node_types_and_takes_no_work(cluster: dict[str, Any]) -> None:
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}


def test_machines_with_gpus_come_and_go(cluster: dict[str, Any]) -> None:
    workers = [
        kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]
    ]
    assert workers
    assert all(kind["min_workers"] == 0 < kind["max_workers"] <= cluster["max_workers"] for kind in workers)


@pytest.mark.parametrize("when", START_COMMANDS)
def test_every_start_command_names_the_token_mode(cluster: dict[str, Any], when: str) -> None:
    assert all("RAY_AUTH_MODE=token" in command for command in cluster[when])


def test_every_machine_gets_the_token_and_keeps_it_to_its_user(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])


def test_the_dashboard_listens_on_loopback(cluster: dict[str, Any]) -> None:
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert re.search(r"--dashboard-host[ =]127\.0\.0\.1(\s|$)", start)


def test_the_copy_of_the_repository_leaves_out_data_but_no_code(cluster: dict[str, Any]) -> None:
    assert "/data" in cluster["rsync_exclude"]
    assert "data" not in cluster["rsync_exclude"], "would leave out distmetric/data as well"


def test_it_holds_no_credentials() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_(access|secret)|PRIVATE KEY|RAY_AUTH_TOKEN=", text)
    assert not re.search(r"\b[0-9a-f]{32,}\b", text), "looks like a token"
