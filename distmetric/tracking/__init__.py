"""Tracking: the protocol that training logs to, and MLflow behind it."""

from distmetric.tracking.tracker import History, NullTracker, Tracker

__all__ = ["History", "NullTracker", "Tracker"]
