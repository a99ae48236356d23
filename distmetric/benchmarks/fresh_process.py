"""A cell in processes of its own: started, waited for, and ended whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

from distmetric.benchmarks import cell_process
from distmetric.benchmarks.cell import Measurement, Outcome, Spec, Status
from distmetric.benchmarks.memory import is_out_of_memory

_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_fresh(spec: Spec, timeout_s: float) -> Outcome[Any, Any]:
    """Measure a cell in fresh processes, one per rank.

    Args:
        spec: What to measure.
        timeout_s: After so many seconds, start of the processes included, they are killed.

    Returns:
        The outcome. Running out of memory or time, or crashing, is an outcome too.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        try:
            with socket.socket() as reserved:
                reserved.bind(("127.0.0.1", 0))
                port = reserved.getsockname()[1]
            for rank in range(spec.processes):
                processes.append(_Process(spec, rank, port, folder))
            return _outcome(spec, processes, time.monotonic() + timeout_s, timeout_s, load)
        finally:
            for process in processes:
                process.end()


class _Process:
    def __init__(self, spec: Spec, rank: int, port: int, folder: str) -> None:
        self.rank = rank
        self._measurement = cell_process.KINDS[spec.suite].measurement
        self._out = _file(folder, f"out{rank}")
        self._err = _file(folder, f"err{rank}")
        self._popen = subprocess.Popen(
            [sys.executable, "-m", cell_process.__name__, cell_process.to_json(spec), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env=_environment(spec, rank, port),
            start_new_session=True,  # Ctrl-C is for the parent alone, which ends its children
        )

    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def end(self) -> None:
        if not self.has_ended():
            self._popen.kill()
            self._popen.wait()
        self._out.close()
        self._err.close()

    def result(self) -> Measurement | tuple[Status, str]:
        """What a process that has ended found, or why it did not."""
        code = self._popen.returncode
        lines = _lines(self._out)
        if code == 0 and lines:
            values = json.loads(lines[-1])
            if "out_of_memory" in values:
                return "out of memory", values["out_of_memory"]
            if "not_run" in values:
                return "not run", values["not_run"]
            return self._measurement(**values)
        errors = _lines(self._err)
        message = errors[-1][:300] if errors else f"ended with code {code}"
        if code == -signal.SIGKILL or any(is_out_of_memory(line) for line in errors):
            return "out of memory", message  # the kernel's killer, or an allocation that nobody could catch
        return "failed", message


def _outcome(
    spec: Spec, processes: list[_Process], deadline: float, timeout_s: float, load: float
) -> Outcome[Any, Any]:
    waiting, failures, ranks = list(processes), list[tuple[Status, str]](), dict[int, Measurement]()
    while waiting and not failures:
        for process in [each for each in waiting if each.has_ended()]:
            waiting.remove(process)
            found = process.result()
            if isinstance(found, Measurement):
                ranks[process.rank] = found
            else:
                failures.append(found)
        if waiting and not failures:
            if time.monotonic() > deadline:
                return Outcome(spec, "timed out", f"not done after {timeout_s:g} s", load=load)
            time.sleep(0.02)
    if failures:
        status, message = min(failures, key=lambda failure: failure[0] != "out of memory")
        return Outcome(spec, status, message, load=load)
    return Outcome(spec, "ok", ranks=[ranks[rank] for rank in sorted(ranks)], load=load)


def _environment(spec: Spec, rank: int, port: int) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _RENDEZVOUS}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(spec.threads))
    if spec.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # no context there, and no part of it in a process group
    if spec.processes > 1:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(spec.processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return environment


def _file(folder: str, name: str) -> IO[bytes]:
    return open(f"{folder}/{name}", "w+b")


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
