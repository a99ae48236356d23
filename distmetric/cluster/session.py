"""Ray itself: join the cluster there is, or start a private one for this process and stop it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

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
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from distmetric.config.schema import TrainerConfig  # noqa: E402
from distmetric.data.decode import available_cores  # noqa: E402
from distmetric.errors import ConfigError, ResourceError  # noqa: E402

NAMESPACE = "distmetric"


@contextmanager
def ray_session(trainer: TrainerConfig) -> Iterator[None]:
    """A Ray to run `trainer`'s workers on, left as it was found.

    Inside a Ray job, or with `trainer.address`, the cluster is joined. Otherwise Ray is started for this process
    alone, without dashboard, reachable only from this machine, and stopped at the end.

    Raises:
        ConfigError: If the private Ray could not hold the workers.
        ResourceError: If the cluster cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    address = trainer.address or os.environ.get("RAY_ADDRESS")
    environment = {
        **{name: os.environ[name] for name in _ENVIRONMENT},
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(trainer.start_timeout_s),
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
    if address:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ResourceError(
                f"the Ray cluster at {address} cannot be joined ({reason}): check its address and RAY_AUTH_MODE"
            ) from None
    else:
        check_local(trainer)
        # Nobody else is meant to connect; an explicit mode keeps Ray from writing a token into the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=available_cores(), include_dashboard=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def check_local(trainer: TrainerConfig) -> None:
    """Say at once what this machine cannot hold.

    Raises:
        ConfigError: Naming the setting and what would fit.
    """
    cpus, wanted = available_cores(), trainer.num_workers * trainer.cpus_per_worker
    if wanted > cpus:
        fits = max(1, int(cpus / trainer.cpus_per_worker))
        raise ConfigError(
            f"trainer.num_workers={trainer.num_workers} x trainer.cpus_per_worker={trainer.cpus_per_worker:g} needs "
            f"{wanted:g} CPUs but this machine has {cpus}: set trainer.num_workers={fits} "
            f"or trainer.cpus_per_worker={cpus / trainer.num_workers:.3g}"
        )
    if trainer.use_gpu:
        import torch

        gpus = torch.cuda.device_count()
        if trainer.num_workers > gpus:
            raise ConfigError(
                f"trainer.num_workers={trainer.num_workers} with trainer.use_gpu=true needs {trainer.num_workers} "
                f"GPUs but this machine has {gpus}: set "
                + (f"trainer.num_workers={gpus}" if gpus else "trainer.use_gpu=false")
            )
