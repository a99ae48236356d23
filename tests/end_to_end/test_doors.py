"""A run on the Ray of its own: who reaches its ports can do nothing there, and none of its files holds a secret."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest

from drivers import descendants, kill, start, steps_saved, wait_for
from runs import FEW_GLYPHS

# By Ray's process, a call that its port understands: with it others would run code, or take data.
CALLS = {
    "gcs_server": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
    "worker": "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
}
OBJECTS, TASKS, LEASES = (
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
)
TRUNK = """
from torch import nn
class Trunk(nn.Conv2d):
    def __init__(self, width, api_key):
        assert api_key == "correct-horse-battery"
        super().__init__(1, width, 3, stride=4)
"""
SECRET, OTHER = "correct-horse-battery", "tr0ub4dor-and-3-more"


class Port(NamedTuple):
    process: str
    ip: str
    port: int

    def grpc(self, method: str, token: str | None = None) -> str:
        """The status that a call ends with."""
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with grpc.insecure_channel(f"{self.ip}:{self.port}") as channel:
            try:
                channel.unary_unary(method)(b"", timeout=240, metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    def http(self, path: str, data: bytes | None = None, token: str | None = None) -> tuple[int, bytes]:
        """Status and the first bytes of an answer; (0, b"") from what is no web server."""
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        request = urllib.request.Request(f"http://{self.ip}:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(200)
        except urllib.error.HTTPError as error:
            return error.code, error.read(200)
        except (OSError, ValueError):
            return 0, b""
        except Exception as error:
            if type(error).__name__ == "BadStatusLine":
                return 0, b""
            raise


def listening(processes: list[psutil.Process]) -> Iterator[Port]:
    for process in processes:
        try:
            name, found = " ".join(process.cmdline()), process.net_connections(kind="inet")
        except psutil.Error:
            continue
        for each in found:
            if each.status == psutil.CONN_LISTEN:
                yield Port(
                    name,
                    "127.0.0.1" if each.laddr.ip in ("::", "0.0.0.0") else each.laddr.ip,
                    each.laddr.port,
                )


def on_loopback_only(processes: list[psutil.Process]) -> list[int]:
    return [
        each.laddr.port
        for process in processes
        for each in process.net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN and each.laddr.ip == "127.0.0.1"
    ]


@pytest.fixture
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder without a token of Ray, secrets in the environment, and a trunk of one's own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "trunk_of_ours.py").write_text(TRUNK)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.setenv("SOME_API_TOKEN", OTHER)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.ray
@pytest.mark.usefixtures("_home")
def test_nobody_gets_in_without_the_token_and_no_file_holds_a_secret(
    glyph_cache: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    custom = (
        "model=custom",
        "model.target=trunk_of_ours.Trunk",
        f"model.kwargs={{width: 8, api_key: {SECRET}}}",
    )
    overrides = (
        *("debug=two_ranks", *FEW_GLYPHS, *custom, "model.embedding_dim=16", "allow_custom_targets=true"),
        *("train.steps=100000", "eval.every_steps=100000", "checkpoint.every_steps=10", f"output_dir={out}"),
        *("name=doors", f"data.cache_dir={glyph_cache}", f"tracking.experiment=of {OTHER}"),
    )
    driver = start(*overrides, log=log)
    everything: list[psutil.Process] = []
    try:
        wait_for(lambda: steps_saved(out / "doors") >= 20, driver, log, seconds=180)
        everything = [psutil.Process(driver.pid), *descendants(driver)]
        token = psutil.Process(driver.pid).environ().get("RAY_AUTH_TOKEN", "")
        assert not token, "set after the start, so it is not in the first environment"
        (gcs,) = descendants(driver, "gcs_server ")
        token = gcs.environ()["RAY_AUTH_TOKEN"]
        assert re.fullmatch(r"[0-9a-f]{64}", token)
        session = Path(re.search(r"--log_dir=(\S+)/logs", " ".join(gcs.cmdline()))[1])  # type: ignore[index]

        ports = list(listening(everything))
        check_ports(ports, token)
        workers = descendants(driver, "RayTrainWorker")
        assert len(workers) == 2
        for worker in workers:
            assert on_loopback_only([worker]), "gradients go over the loopback interface"

        assert not any(token in " ".join(each.cmdline()) for each in everything)
    finally:
        everything = everything or [psutil.Process(driver.pid), *descendants(driver)]
        kill([*everything, *descendants(driver)])
        driver.wait()
    assert not (tmp_path / "home" / ".ray").exists(), "no token is left behind"
    for secret, folders in {
        token: (tmp_path, session),
        SECRET: (out, session),
        OTHER: (out / "doors", session),
    }.items():
        assert holding(secret, *folders) == []
    assert (
        json.loads((out / "doors" / "run.json").read_text())["config"]["model"]["kwargs"]["api_key"] == "***"
    )
    assert "error" not in log.read_text()


def check_ports(ports: list[Port], token: str) -> None:
    """Every port refuses who has no token, and those that do something answer who has it."""
    with ThreadPoolExecutor(len(ports)) as pool:
        answered = Counter(
            kind for kinds in pool.map(partial(check_port, token=token), ports) for kind in kinds
        )
    assert answered["gcs_server"] == answered["raylet"] == 1, "the token opens them"
    assert answered["worker"] >= 3, "the driver and two workers at least"


def check_port(port: Port, token: str) -> list[str]:
    """What a port does for who has the token; for others it must do nothing."""
    status, body = port.http("/")
    # Figures for Prometheus need no token: they do nothing, and say nothing of the run.
    assert status in (0, 401, 404) or body.startswith(b"# HELP"), port
    submit = json.dumps({"entrypoint": "true"}).encode()
    for wrong in (None, "0" * 64):
        assert port.http("/api/job_agent/jobs/", submit, wrong)[0] in (0, 401, 403, 404, 405), port
    if port.grpc("/no.such/Method") not in ("UNIMPLEMENTED", "UNAUTHENTICATED"):
        return []  # it speaks something else, as gloo does
    for method in (*CALLS.values(), OBJECTS, TASKS, LEASES):
        for wrong in (None, "0" * 64):
            assert port.grpc(method, wrong) in ("UNAUTHENTICATED", "UNIMPLEMENTED"), (port, method)
    return [kind for kind, method in CALLS.items() if port.grpc(method, token) == "OK"]


def holding(secret: str, *folders: Path) -> list[Path]:
    """Files that have a text in them."""
    needle, found = secret.encode(), []
    for folder in folders:
        for path in folder.rglob("*"):
            if (
                path.is_file()
                and not path.is_symlink()
                and "code" not in path.parts
                and needle in path.read_bytes()
            ):
                found.append(path)
    return found
