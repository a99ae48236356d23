"""Figures and the reports of runs; the only room that draws."""

from distmetric.reports.figures import learning_curves
from distmetric.reports.grid import retrieval_grid
from distmetric.reports.run_report import RunReport, write_run_report
from distmetric.reports.step_times import time_split

__all__ = ["RunReport", "learning_curves", "retrieval_grid", "time_split", "write_run_report"]
