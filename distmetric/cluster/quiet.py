"""What every process that Ray starts for us does first: keep quiet, keep secrets, and stay with its own cluster."""

from __future__ import annotations

import logging
import os

from distmetric.secrets import mask_logs


def quiet_ray() -> None:
    """Raise the level of chatty loggers, mask what is logged, and name the cluster for helpers that look for it anew.

    Called by Ray in each new worker process.
    """
    names = (
        "ray.train",
        "ray.train.v2._internal.execution.controller.placement_group_cleaner",
        "ray.train.v2._internal.execution.context",
    )
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    mask_logs()
    import ray

    # Where a machine has two clusters, Ray Train's helpers otherwise give up with a traceback.
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
