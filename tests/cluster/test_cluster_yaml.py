"""cluster.yaml passes the launcher's own check, and what that check does not look at."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import time
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


def test_only_what_is_pinned_by_its_hash_is_installed(cluster: dict[str, Any]) -> None:
    installs = [command for command in cluster["setup_commands"] if "pip install" in command]
    assert len(installs) == 3
    files = {name for command in installs for name in re.findall(r"-r ~/distmetric/(\S+)", command)}
    assert files == {"cluster-build-requirements.txt", "cluster-requirements.txt"}
    for command in installs:
        hashed = "--require-hashes" in command
        assert hashed or ("--no-deps" in command and command.endswith("-e ~/distmetric")), command
        # Otherwise pip would fetch what builds a package anew, and unpinned.
        assert "--no-build-isolation" in command or "cluster-build-requirements" in command, command


# Stand-ins for the programs that a start command calls: they write down how they were called.
RECORD = """#!{python}
import json, os, sys
known = {{name: os.environ.get(name) for name in os.environ if name.startswith(("MLFLOW_", "RAY_"))}}
with open(os.environ["CALLS"], "a") as stream:
    stream.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], known]) + "\\n")
"""


@pytest.fixture(scope="module")
def calls(
    cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, list[str], dict[str, str]]]:
    """What the start commands of head and worker call, in a home folder of their own."""
    home = tmp_path_factory.mktemp("home")
    (home / "env/bin").mkdir(parents=True)
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("a token")
    (home / "env/bin/activate").write_text(f"PATH={home}/env/bin:$PATH\n")
    programs = ("mlflow", "ray", "hostname")
    for name in programs:
        (home / "env/bin" / name).write_text(RECORD.format(python=sys.executable))
        (home / "env/bin" / name).chmod(0o700)
    (home / "env/bin/hostname").write_text("#!/bin/sh\necho 10.1.2.3 172.17.0.1\n")
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "CALLS": str(home / "calls"),
        "RAY_HEAD_IP": "10.1.2.3",
    }
    for when in START_COMMANDS:
        for command in cluster[when]:
            subprocess.run(["bash", "-c", f"{command}\nwait"], env=environment, check=True, timeout=300)
    deadline = time.monotonic() + 240
    while len(lines := (home / "calls").read_text().splitlines()) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)  # the server is started in the background
    return [json.loads(line) for line in lines]


def test_mlflow_listens_on_the_private_address_and_asks_for_a_password(calls: Any) -> None:
    ((_, arguments, environment),) = [call for call in calls if call[0] == "mlflow"]
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert options["--host"] == "10.1.2.3"
    assert options["--app-name"] == "basic-auth"
    assert options["--allowed-hosts"] == "10.1.2.3:5000,localhost:5000,127.0.0.1:5000"
    password = environment["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert password == hashlib.sha256(b"mlflow\na token").hexdigest()
    assert environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] not in ("", password)
    assert password not in " ".join(arguments), "everybody on a machine sees command lines"


def test_every_machine_knows_the_password_and_nobody_the_command_line(calls: Any) -> None:
    started = [
        (arguments, environment)
        for name, arguments, environment in calls
        if name == "ray" and "start" in arguments
    ]
    assert len(started) == 2
    for arguments, environment in started:
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["MLFLOW_TRACKING_USERNAME"] == "admin"
        assert environment["MLFLOW_TRACKING_PASSWORD"] == hashlib.sha256(b"mlflow\na token").hexdigest()
        assert "a token" not in " ".join(arguments)
    assert started[0][1]["MLFLOW_TRACKING_URI"] == "http://10.1.2.3:5000"


def test_nothing_listens_on_all_interfaces_by_our_doing() -> None:
    root = FILE.parent
    for path in [FILE, root / "Makefile", root / "README.md", *(root / "distmetric").rglob("*.py")]:
        assert not re.search(r"host[= ]+['\"]?(0\.0\.0\.0|::)(?![.\d])", path.read_text(encoding="utf-8")), (
            path
        )


@pytest.mark.parametrize("where", ["Makefile", "README.md"])
def test_servers_that_are_started_by_hand_listen_on_loopback(where: str) -> None:
    text = (FILE.parent / where).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if re.search(r"mlflow (ui|server) ", line) and "--host" in line:
            assert "--host 127.0.0.1" in line, line
        if "ray start --head" in line:
            assert "--dashboard-host 127.0.0.1" in line, line
