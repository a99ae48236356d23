"""What the charts of a run's history are called, what they tell, and which metrics they show."""

import re
from dataclasses import dataclass

from distmetric.reports.history import HIGH, LOW, History, series


@dataclass(frozen=True)
class Line:
    """One curve: its metric, its name in the legend, its color role, and the metrics that bound its band."""

    metric: str
    name: str
    color: str = "first"
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what it is called, what it tells, its curves, and how its axis is scaled.

    Attributes:
        title: heading, with the unit.
        caption: one sentence for readers and for the text alternative.
        lines: curves, drawn when the history has them.
        fraction: values lie between 0 and 1 and are shown as percentages.
        zero: draw a line at zero.
        smooth: draw the values faintly and their moving average on top.
        stairs: values hold until the next one.
        quiet: there is nothing to show as long as all values are zero.
    """

    title: str
    caption: str
    lines: tuple[Line, ...]
    fraction: bool = False
    zero: bool = False
    smooth: bool = False
    stairs: bool = False
    quiet: bool = False

    @property
    def file_name(self) -> str:
        """What a file with it is called, without an ending."""
        return re.sub(r"\W+", "_", self.title.lower()).strip("_")

    def has_data(self, history: History) -> bool:
        """Whether the history has a finite value of any of the curves, or for quiet panels one that is not zero."""
        values = [series(history, line.metric)[1] for line in self.lines]
        return any(bool(each.any()) if self.quiet else len(each) > 0 for each in values)


def _banded(side: str, color: str) -> Line:
    stem = f"train/{side}_distance_"
    return Line(f"{stem}mean", f"{side} pairs", color, f"{stem}p10", f"{stem}p90")


def _evaluated(metric: str, name: str, color: str) -> Line:
    return Line(f"eval/{metric}", name, color, f"eval/{metric}{LOW}", f"eval/{metric}{HIGH}")


TRAINING_PANELS = (
    Panel(
        "Retrieval quality",
        "Recall at 1 and mean average precision at R of the evaluation split over training steps; bands are 95% "
        "intervals.",
        (_evaluated("recall_at_1", "recall@1", "first"), _evaluated("map_at_r", "MAP@R", "second")),
        fraction=True,
    ),
    Panel("Loss", "Training loss over training steps.", (Line("train/loss", "loss"),), smooth=True),
    Panel(
        "Distances in the batch",
        "Mean distances of positive and of negative pairs, in bands from the 10th to the 90th percentile; learning "
        "moves them apart.",
        (_banded("positive", "third"), _banded("negative", "second")),
    ),
    Panel(
        "Active tuples",
        "Share of tuples that still cause a gradient, over training steps.",
        (Line("train/active_fraction", "active"),),
        fraction=True,
        smooth=True,
    ),
    Panel(
        "Hardest gap",
        "Distance of the hardest negative less that of the hardest positive; above zero is right.",
        (Line("train/hardest_gap", "gap"),),
        zero=True,
        smooth=True,
    ),
    Panel(
        "Embedding variance",
        "Variance of the embeddings in a batch over training steps; a fall towards zero is collapse.",
        (Line("train/embedding_variance", "variance"),),
        smooth=True,
    ),
    Panel(
        "Gradient norm",
        "Length of the gradient over training steps.",
        (Line("train/gradient_norm", "norm"),),
        smooth=True,
    ),
    Panel("Learning rate", "Learning rate over training steps.", (Line("train/learning_rate", "rate"),)),
    Panel(
        "Throughput (samples/s)",
        "Training samples per second over training steps.",
        (Line("train/samples_per_second", "samples/s"),),
        smooth=True,
    ),
)

INDEX_PANELS = (
    Panel(
        "Margin-violating anchors",
        "Share of anchors with a negative not a margin farther than a positive: planned batches beside random ones.",
        (
            Line("hard/violating_fraction", "planned"),
            Line("hard/violating_fraction_random", "random", "second"),
        ),
        fraction=True,
    ),
    Panel(
        "Nearest negatives (distance)",
        "Mean distance of an anchor's nearest negative: planned batches beside random ones.",
        (
            Line("hard/nearest_negative_distance", "planned"),
            Line("hard/nearest_negative_distance_random", "random", "second"),
        ),
    ),
    Panel(
        "Hardness dial",
        "Share of the groups that were to be hard, share of the classes that joined as neighbors, and what the "
        "back-off left of the dial.",
        (
            Line("hard/fraction", "hard groups"),
            Line("hard/mates_fraction", "neighbors", "second"),
            Line("hard/back_off_level", "back-off", "third"),
        ),
        fraction=True,
        stairs=True,
    ),
    Panel(
        "Rank of neighbors in a batch",
        "Mean place of the neighbors that joined a class in its list of neighbors; 0 is the nearest.",
        (Line("hard/mean_neighbor_rank", "rank"),),
    ),
    Panel(
        "Index version",
        "Version of the snapshot that batches are planned from; 0 is random batches, before the first one.",
        (Line("index/version", "version"),),
        stairs=True,
    ),
    Panel(
        "Age of neighbors (steps)",
        "Steps since the embeddings that batches are planned from: of the snapshot, its median row and its oldest.",
        (
            Line("index/snapshot_age_steps", "snapshot"),
            Line("index/staleness_p50_steps", "median row", "second"),
            Line("index/staleness_max_steps", "oldest row", "third"),
        ),
    ),
    Panel(
        "Building a snapshot (s)",
        "Seconds that the snapshot in use took to build, beside training.",
        (Line("index/build_seconds", "seconds"),),
        stairs=True,
    ),
    Panel(
        "What went wrong with the index",
        "Batches of embeddings that were dropped, builds that failed, and restarts of its actors, counted since the "
        "workers were started.",
        (
            Line("index/dropped_pushes", "dropped"),
            Line("index/failed_rebuilds", "failed builds", "second"),
            Line("index/restarts", "restarts", "third"),
        ),
        stairs=True,
        quiet=True,
    ),
)

PANELS = TRAINING_PANELS + INDEX_PANELS
"""All of them, in the order in which a report shows them."""

INDEX_FACTS = {
    "index/version": "snapshots that batches were planned from",
    "index/coverage": "share of the classes that the index knows",
    "index/pushed": "batches of embeddings delivered",
    "index/dropped_pushes": "batches of embeddings dropped",
    "index/rebuilds": "builds",
    "index/failed_rebuilds": "failed builds",
    "index/restarts": "restarts of actors",
    "index/wait_seconds": "seconds that training waited for the index",
}
"""What a report says of the index in numbers: metric -> in words."""
