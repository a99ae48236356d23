"""Loggers of Ray Train that say nothing a user can use, kept quiet in every process that Ray starts."""

from __future__ import annotations

import logging


def quiet_ray() -> None:
    """Raise the level of the chatty loggers; called by Ray in each new process, so it imports nothing."""
    names = (
        "ray.train",
        "ray.train.v2._internal.execution.controller.placement_group_cleaner",
        "ray.train.v2._internal.execution.context",
    )
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
