"""What a process of its own does for one cell.

    python -m distmetric.benchmarks.cell_process '{"suite": "losses", "loss": "supcon", "side": "ours", "size": 1024}'

The last line is a JSON object: a measurement, {"out_of_memory": MESSAGE}, or {"not_run": MESSAGE}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.data_path.measure import DataMeasurement, DataSpec, measure_data
from distmetric.benchmarks.index.measure import IndexMeasurement, IndexSpec, measure_index
from distmetric.benchmarks.kernels.measure import KernelMeasurement, KernelSpec, measure_kernels
from distmetric.benchmarks.losses.measure import LossMeasurement, LossSpec, measure_loss
from distmetric.benchmarks.memory import is_out_of_memory
from distmetric.benchmarks.scaling.measure import ScalingMeasurement, ScalingSpec, measure_scaling
from distmetric.benchmarks.training.measure import TrainingMeasurement, TrainingSpec, measure_training
from distmetric.distributed.replica import join_from_environment, leave
from distmetric.errors import ResourceError


@dataclass(frozen=True)
class Kind:
    """The cells of a suite: how they are written down, measured, and what comes of it."""

    spec: type[Spec]
    measurement: type[Measurement]
    measure: Callable[..., Measurement]


KINDS = {
    LossSpec.suite: Kind(LossSpec, LossMeasurement, measure_loss),
    IndexSpec.suite: Kind(IndexSpec, IndexMeasurement, measure_index),
    DataSpec.suite: Kind(DataSpec, DataMeasurement, measure_data),
    KernelSpec.suite: Kind(KernelSpec, KernelMeasurement, measure_kernels),
    ScalingSpec.suite: Kind(ScalingSpec, ScalingMeasurement, measure_scaling),
    TrainingSpec.suite: Kind(TrainingSpec, TrainingMeasurement, measure_training),
}


def to_json(spec: Spec) -> str:
    """A cell as the argument of a process."""
    return json.dumps({"suite": spec.suite, **asdict(spec)})


def main(arguments: Sequence[str]) -> int:
    """Measure what the JSON object in the first argument says, as the rank that the environment says.

    A second argument is the id of the process that waits for the result, without which this one ends too.
    """
    values: dict[str, Any] = json.loads(arguments[0])
    kind = KINDS[values.pop("suite")]
    spec = kind.spec(**values)
    if len(arguments) > 1:
        threading.Thread(target=_end_with_parent, args=(int(arguments[1]),), daemon=True).start()
    torch.set_num_threads(spec.threads)
    try:
        found = asdict(kind.measure(spec, join_from_environment()))
    except ResourceError as error:
        found = {"not_run": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(f"{type(error).__name__} {error}"):
            raise
        print(json.dumps({"out_of_memory": " ".join(str(error).split())[:300]}), flush=True)
        # Other ranks may wait for this one in a collective: to leave the group in order would be to wait for them.
        os._exit(0)
    leave()
    print(json.dumps(found), flush=True)
    return 0


def _end_with_parent(parent: int) -> None:
    """Leave when the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # All is said. What the interpreter would still take apart, in an order of its own, includes threads of gloo, and
    # has been seen to end a process whose result was there with "terminate called without an active exception".
    os._exit(code)
