"""Ray itself: join the cluster there is, or start a private one for this process and stop it again."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

# Before `import ray`: what it would print, send home or double otherwise.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # Ray makes its workers nice (15) to whatever else runs; here they are what the user waits for.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A thread that outlives a session must not start a Ray of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Where a worker has failed, the others sit in a collective: they are not worth waiting for.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from distmetric.cluster.joining import join_cluster, start_private  # noqa: E402
from distmetric.cluster.private_token import private_token  # noqa: E402
from distmetric.config.schema import TrainerConfig  # noqa: E402
from distmetric.config.signals import Interrupted, kept_handlers  # noqa: E402
from distmetric.data.decode import available_cores  # noqa: E402
from distmetric.errors import ConfigError  # noqa: E402

NAMESPACE = "distmetric"
_PLACED_S = 30.0


def cluster_address(trainer: TrainerConfig) -> str | None:
    """Of the Ray cluster to join; None where Ray is started for this process alone."""
    return trainer.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def ray_session(trainer: TrainerConfig) -> Iterator[None]:
    """A Ray to run `trainer`'s workers on, left as it was found.

    Inside a Ray job, or with `trainer.address`, the cluster is joined. Otherwise Ray is started for this process
    alone, without dashboard, and stopped at the end. Ray's ports are open on all interfaces then, too; a random token
    (`private_token`) keeps others from using them.

    Raises:
        ConfigError: If the private Ray could not hold the workers.
        ResourceError: If the cluster cannot be joined, or Ray cannot be started here.
        Interrupted: If SIGTERM came while Ray was starting.
    """
    if ray.is_initialized():
        yield
        return
    address = cluster_address(trainer)
    # Elastic groups of workers wait for their places before they are started.
    start_s = min(trainer.start_timeout_s, _PLACED_S) if trainer.is_elastic else trainer.start_timeout_s
    environment = {
        **{name: os.environ[name] for name in _ENVIRONMENT},
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_s),
    }
    os.environ.update(environment)
    options = {
        "namespace": NAMESPACE,
        "logging_level": logging.ERROR,
        "runtime_env": {
            "env_vars": environment,
            "worker_process_setup_hook": "distmetric.cluster.quiet.quiet_ray",
        },
    }
    if not address:
        check_local(trainer)
        environment |= _on_loopback()
    with nullcontext() if address else private_token():
        try:
            with _own_handlers():
                if address:
                    join_cluster(address, options)
                else:
                    start_private(options)
            yield
        finally:
            ray.shutdown()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep our handlers of signals where Ray sets its own, and take what those do for the signal that it was."""
    with kept_handlers():
        try:
            yield
        except SystemExit:
            raise Interrupted(signal.SIGTERM) from None


def _on_loopback() -> dict[str, str]:
    """What has the workers of one machine exchange gradients over its loopback interface, which nobody else reaches."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    return {} if interface or not Path("/sys/class/net/lo").exists() else {"GLOO_SOCKET_IFNAME": "lo"}


def check_local(trainer: TrainerConfig) -> None:
    """Say at once what this machine cannot hold; of a [min, max], the least has to fit.

    Raises:
        ConfigError: Naming the setting and what would fit.
    """
    workers = trainer.min_workers
    cpus, wanted = available_cores(), workers * trainer.cpus_per_worker
    if wanted > cpus:
        fits = max(1, int(cpus / trainer.cpus_per_worker))
        raise ConfigError(
            f"trainer.num_workers={trainer.num_workers} x trainer.cpus_per_worker={trainer.cpus_per_worker:g} needs "
            f"{wanted:g} CPUs but this machine has {cpus}: set trainer.num_workers={fits} "
            f"or trainer.cpus_per_worker={cpus / workers:.3g}"
        )
    if trainer.use_gpu:
        import torch

        gpus = torch.cuda.device_count()
        if workers > gpus:
            raise ConfigError(
                f"trainer.num_workers={trainer.num_workers} with trainer.use_gpu=true needs {workers} "
                f"GPUs but this machine has {gpus}: set "
                + (f"trainer.num_workers={gpus}" if gpus else "trainer.use_gpu=false")
            )
