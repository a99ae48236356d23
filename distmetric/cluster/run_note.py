"""What the page of a run in MLflow begins with: what it is, what came out, and where everything lies."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distmetric.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known once a run has ended.

    Args:
        checkpoint: Folder of the best checkpoint.
        best_step: Its step.
        steps: Steps done.
        metrics: Of the best checkpoint.
        intervals: 95 % intervals of those that have one.
        threshold: Distance up to which two images are of one class, if it was measured.
        report: Where the report is, if there is one.
        registered: Where the best checkpoint is in the model registry, as Markdown, if it is there.
    """

    checkpoint: str
    best_step: int
    steps: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    threshold: float | None = None
    report: str | None = None
    registered: str | None = None


def summary(config: Config, data: str) -> str:
    """One line of what is trained on what."""
    trainer, sampler = config.trainer, config.sampler
    batch = f"{sampler.classes_per_batch} classes x {sampler.samples_per_class} images"
    device = "GPU" if trainer.use_gpu else "CPU"
    workers = f"{trainer.workers()} {device} worker{'s' * (trainer.max_workers > 1)}"
    return (
        f"**{data}**: {config.model.name} with {config.model.embedding_dim} dimensions, loss {config.loss.name}, "
        f"batches of {batch} ({sampler.name}), {config.train.steps:,} steps on {workers}."
    )


def run_note(config: Config, data: str, run_dir: str, outcome: Outcome | None = None) -> str:
    """The Markdown text for a run that has begun or, with its outcome, ended."""
    paragraphs = [summary(config, data)]
    if outcome is not None:
        paragraphs = [_headline(config, outcome), *paragraphs, _table(outcome)]
    paragraphs.append("\n".join(f"- {line}" for line in _places(run_dir, outcome)))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _headline(config: Config, outcome: Outcome) -> str:
    name = config.checkpoint.best_metric
    if name not in outcome.metrics:
        return ""
    interval = outcome.intervals.get(name)
    within = f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    threshold = "" if outcome.threshold is None else f" Same class: distance up to {outcome.threshold:.3f}."
    return (
        f"### {name} {outcome.metrics[name]:.3f}{within}\n\nat step {outcome.best_step:,} of {outcome.steps:,}, "
        f"leave-one-out on split {config.data.test_split}.{threshold}"
    )


def _table(outcome: Outcome) -> str:
    names = [name for name in outcome.metrics if not name.startswith("num_")]
    if not names:
        return ""
    rows = [names, ["---:"] * len(names), [f"{outcome.metrics[name]:.4f}" for name in names]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _places(run_dir: str, outcome: Outcome | None) -> list[str]:
    command = f"command: `{shlex.join(['python', *sys.argv])}`"
    if outcome is None:
        return [f"folder: `{run_dir}`", f"checkpoints: `{run_dir}/checkpoints`", command]
    found = [f"folder: `{run_dir}`", f"best checkpoint: `{outcome.checkpoint}`"]
    if outcome.report is not None:
        found.append(f"report: `report.html` under Artifacts, and `{outcome.report}`")
    if outcome.registered is not None:
        found.append(f"registered: {outcome.registered}")
    return [*found, command]
