"""Metrics as readers see them: names, values and meanings of what `to_dict` calls recall_at_1."""

_ABOUT = {
    "recall_at_1": "queries whose nearest neighbor is of their class",
    "map_at_r": "ranking quality among the first R, R being the size of the class",
    "r_precision": "share of the first R neighbors that are of the query's class",
    "mean_average_precision": "ranking quality of the whole gallery",
    "mean_reciprocal_rank": "one over the rank of the first right neighbor, on average",
    "num_queries": "queries that have something to find",
    "num_lone_queries": "queries alone in their class, counted nowhere else",
}
_NAMES = {
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "mean_average_precision": "Mean average precision",
    "mean_reciprocal_rank": "Mean reciprocal rank",
    "num_queries": "Queries",
    "num_lone_queries": "Lone queries",
}


def metric_name(key: str) -> str:
    """What a metric is called."""
    k = key.removeprefix("recall_at_")
    return _NAMES.get(key, f"Recall@{k}" if k != key else key)


def metric_about(key: str) -> str:
    """What a metric says; empty where nobody knows."""
    k = key.removeprefix("recall_at_")
    return _ABOUT.get(key, f"queries with one of their class among their {k} nearest" if k != key else "")


def metric_text(key: str, value: float) -> str:
    """A value of a metric: a count, a percentage or a number."""
    if is_count(key):
        return f"{value:,.0f}"
    return f"{100 * value:.2f}%" if is_share(key) else f"{value:.5g}"


def interval_text(key: str, low: float, high: float) -> str:
    """An interval of a metric, "90.1–91.7%"."""
    return f"{100 * low:.1f}–{100 * high:.1f}%" if is_share(key) else f"{low:.4g}–{high:.4g}"


def is_count(key: str) -> bool:
    """Whether a metric counts things, and so is neither good nor bad."""
    return key.startswith("num_")


def is_share(key: str) -> bool:
    """Whether a metric lies between 0 and 1 and more of it is better."""
    return not is_count(key) and (key.startswith("recall_at_") or key in _NAMES)
