"""Figures and the report of a run; the only room that draws."""

from distmetric.reports.figures import learning_curves, time_split
from distmetric.reports.grid import retrieval_grid
from distmetric.reports.run_report import RunReport, write_run_report

__all__ = ["RunReport", "learning_curves", "retrieval_grid", "time_split", "write_run_report"]
