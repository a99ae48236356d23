"""What the arithmetic of scale says of the cells that were measured, to be held against them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from distmetric.benchmarks.index.measure import IndexMeasurement, IndexSpec
from distmetric.index import scale

_KINDS: dict[str, scale.Kind] = {"flat": "flat", "ivf": "ivf"}
_FAISS_BYTES = 24 * 2**20  # of distances that it works on at one time
_TIMES_FOUND = 5  # as found, without the row itself, with labels, and what lies between, for all rows at once


@dataclass(frozen=True)
class Prediction:
    """What a cell should take.

    Args:
        times_matmul: Time, in that of the bare N x N x D product.
        num_bytes: Most memory beyond the rows.
    """

    times_matmul: float
    num_bytes: int


def predict(spec: IndexSpec, found: IndexMeasurement) -> Prediction | None:
    """Time and memory by `index/scale.py`; None where it says nothing.

    That is of what the index of a training run does not do, such as pruned mining, whose cost depends on how the
    classes lie.

    Args:
        spec: The cell.
        found: What was measured of it; used are the speeds of the machine and the number of classes.
    """
    product = 2.0 * spec.size**2 * spec.dim
    kind = _KINDS.get(spec.method)
    if kind is not None:
        settings = (kind, spec.lists, spec.probes)
        operations = scale.search_operations(spec.size, spec.size, spec.dim, found.k, *settings)
        held = scale.searcher_bytes(spec.size, spec.dim, kind, spec.lists) + _FAISS_BYTES
        return Prediction(operations / product, held + _TIMES_FOUND * scale.found_bytes(spec.size, found.k))
    if spec.method not in ("snapshot", "row_snapshot"):
        return None
    size = scale.IndexSize(
        rows=spec.size,
        classes=found.num_classes,
        dim=spec.dim,
        neighbors=found.k,
        row_lists=spec.method == "row_snapshot",
    )
    flops = product / median(found.matmul_seconds)
    seconds = scale.build_seconds(size, scale.Speed(flops=flops, bytes_per_second=found.bytes_per_second))
    memory = scale.build_bytes(size)
    # Nothing was built before: there is one view, and one snapshot.
    held = (
        memory.table
        + memory.views // 2
        + memory.search
        + memory.work
        + memory.classes
        + memory.snapshots // 2
    )
    return Prediction(seconds.total * flops / product, held)
