"""Addresses at which there is no Ray, and machines that do not let it start: one line each, soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from disks import UNWRITABLE
from distmetric.cluster import joining
from distmetric.cluster.joining import check_address, join_cluster, start_private
from distmetric.errors import ConfigError, ResourceError

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def server(*answers: bytes) -> Iterator[int]:
    """Answers each connection in turn, then closes it; nobody reads what it is told."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(answer)
                    connection.recv(4096)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "localhost:{port}"])
def test_a_port_at_which_nobody_listens_is_said_at_once(form) -> None:
    address = form.format(port=free_port())
    with pytest.raises(
        ResourceError, match=rf"no Ray cluster answers at {address} \(.*refused\): start it, or"
    ):
        check_address(address, patience_s=0.5)


def test_a_host_that_nobody_has_is_said() -> None:
    for address in ("no-such-host.invalid:6379", f"{'x' * 70}:6379", "bad host:99"):
        with pytest.raises(ResourceError, match="no Ray cluster answers at"):
            check_address(address, patience_s=0.1)


def test_a_port_of_another_service_is_said() -> None:
    with (
        server(*[b"HTTP/1.1 400 Bad Request\r\n\r\n"] * 20) as port,
        pytest.raises(ResourceError, match="what answers there is not Ray"),
    ):
        check_address(f"127.0.0.1:{port}", patience_s=0.5)


def test_a_service_that_only_listens_is_not_waited_for() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listening,
        pytest.raises(ResourceError, match=r"no Ray cluster answers at .* \(timed out\)"),
    ):
        check_address(f"127.0.0.1:{listening.getsockname()[1]}", patience_s=0.5)


def test_a_cluster_that_comes_up_a_little_later_is_waited_for() -> None:
    with server(b"", b"\0\0\0\x04\0\0\0\0\0") as port:
        check_address(f"127.0.0.1:{port}", patience_s=20)


@pytest.mark.parametrize(
    "address", ["nonsense", "host:", ":6379", "host:x", "host:0", "host:99999", "ray://:1", "1.2.3.4:-5", ""]
)
def test_what_is_no_address_is_a_mistake_in_the_settings(address) -> None:
    with pytest.raises(
        ConfigError, match=rf"trainer.address or RAY_ADDRESS={address} is wrong .* give host:port"
    ):
        join_cluster(address, {})


@pytest.mark.parametrize("address", ["auto", "local", "other://x"])
def test_what_only_ray_can_judge_is_left_to_ray(address) -> None:
    check_address(address)


def test_a_cluster_of_another_version_says_both(monkeypatch) -> None:
    def init(**_) -> None:
        check_version_info({"ray_version": "1.13.0", "python_version": "3.7.0"}, "here:1")

    monkeypatch.setattr(joining, "check_address", lambda _: None)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        ResourceError, match=r"cannot be joined \(Version mismatch.*1\.13\.0.*install the cluster's"
    ) as told:
        join_cluster("127.0.0.1:1", {})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("folder", [UNWRITABLE, "file", "x" * 100])
def test_a_machine_on_which_ray_cannot_write_is_said(folder, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / folder))
    with pytest.raises(ResourceError, match=r"Ray cannot be started on this machine \(.*RAY_TMPDIR") as told:
        start_private({})
    assert "\n" not in str(told.value)
    assert not ray.is_initialized()


def test_a_machine_that_is_too_busy_for_ray_is_said(monkeypatch) -> None:
    def init(*_, **__) -> None:
        raise Exception("The current node timed out during startup. The GCS\nhas become overloaded.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        ResourceError, match=r"cannot be started on this machine \(.*overloaded.* too busy"
    ) as told:
        start_private({})
    assert "\n" not in str(told.value)


def test_a_dead_cluster_ends_a_job_in_one_line(glyph_cache, tmp_path) -> None:
    address = f"127.0.0.1:{free_port()}"
    overrides = ["debug=tiny", f"data.cache_dir={glyph_cache}", f"output_dir={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "jobs/train.py", *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: no Ray cluster answers at {address} (Connection refused): start it, or correct trainer.address or "
        "RAY_ADDRESS"
    ]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
