"""Tracking: the protocol that training logs to, and MLflow behind it."""

import os

from distmetric.tracking.tracker import History, NullTracker, Tracker

# Nothing about a run leaves for third parties unless its user says so; MLflow decides when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

__all__ = ["History", "NullTracker", "Tracker"]
