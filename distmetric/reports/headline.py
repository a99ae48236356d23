"""The numbers of a run: its metrics with their intervals, and the threshold between same and different."""

from collections.abc import Mapping, Sequence
from typing import Any

from distmetric.reports.history import Record, in_order
from distmetric.reports.metric_names import interval_text, metric_about, metric_name, metric_text
from distmetric.reports.page import Cell, Section, table


def record_at(evaluations: Sequence[Record], step: int | None) -> Record:
    """The evaluation record of a step, or the last one where no step is given; an empty one where there is none."""
    known = in_order(evaluations)
    if step is not None:
        known = [record for record in known if int(record["step"]) == step]
    return known[-1] if known else {}


def headline_section(metrics: Mapping[str, float], record: Record, step: int | None) -> Section:
    """The section of results.

    Args:
        metrics: of the best checkpoint.
        record: of its evaluation, from which intervals and threshold are taken; may be empty.
        step: of that checkpoint, where it is known.

    Returns:
        The section, without parts where there are no metrics.
    """
    if not metrics:
        return Section("Results", "", ())
    intervals: Mapping[str, tuple[float, float]] = record.get("intervals") or {}
    rows = [
        (
            Cell(metric_name(key), metric_about(key)),
            Cell(metric_text(key, value), _interval(key, intervals), "number"),
        )
        for key, value in metrics.items()
    ]
    parts = [table(("Metric", "Value"), rows, "headline")]
    calibration: Mapping[str, Any] | None = record.get("calibration")
    if calibration:
        parts += ["<h3>Same or different?</h3>", _threshold(calibration)]
    which = "" if step is None else f"Of the best checkpoint, that of step {step:,}."
    bounds = " Below the values: 95% bootstrap intervals over the queries." if intervals else ""
    return Section("Results", f"{which}{bounds}".strip(), parts)


def _interval(key: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    return interval_text(key, *intervals[key]) if key in intervals else ""


def _threshold(calibration: Mapping[str, Any]) -> str:
    rows = [
        (
            Cell("Threshold", "pairs of images up to this distance are taken for the same class"),
            Cell(f"{calibration['threshold']:.4g}", kind="number"),
        ),
        (
            Cell("False accepts (FAR)", f"of {calibration['negatives']:,} pairs of different classes"),
            Cell(
                f"{100 * calibration['far']:.3g}%", f"target {100 * calibration['target_far']:.3g}%", "number"
            ),
        ),
        (
            Cell("True accepts (TAR)", f"of {calibration['positives']:,} pairs of the same class"),
            Cell(f"{100 * calibration['tar']:.2f}%", kind="number"),
        ),
    ]
    return table(("Measure", "Value"), rows, "headline")
