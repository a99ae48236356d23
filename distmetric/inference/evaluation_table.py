"""Evaluations as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

_COUNTS = ("num_", "iterations", "ways", "shots", "queries")


def evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Metrics down, evaluations across, intervals beside the values.

    Args:
        evaluations: At least one, all by one protocol, each with protocol, images, metrics, intervals, and checkpoint
            where there is one.

    Returns:
        Lines of text. Rates have four digits after the point, counts none.
    """
    first = evaluations[0]
    with_intervals = any(each["intervals"] for each in evaluations)
    head = [first["protocol"] + (" [95 % interval]" if with_intervals else ""), *map(_title, evaluations)]
    names = list(dict.fromkeys(name for each in evaluations for name in each["metrics"]))
    rows = [head, *([name, *(_cell(each, name) for each in evaluations)] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _title(evaluation: Mapping[str, Any]) -> str:
    images = f"{evaluation['images']:,} images"
    if "checkpoint" not in evaluation:
        return images
    run = PurePosixPath(evaluation["checkpoint"].partition("/checkpoints/")[0]).name
    return f"{run} step {evaluation['step']}, {images}"


def _cell(evaluation: Mapping[str, Any], name: str) -> str:
    value = evaluation["metrics"].get(name)
    if value is None:
        return "-"
    if name.startswith(_COUNTS):
        return f"{value:,.0f}"
    ends = evaluation["intervals"].get(name)
    return f"{value:.4f}" + ("" if ends is None else f" [{ends[0]:.4f}, {ends[1]:.4f}]")
