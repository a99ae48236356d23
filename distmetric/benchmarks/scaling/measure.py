"""One cell of the scaling, in this process: the parts of a step at several sizes, and the step that is made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distmetric.benchmarks.cell import Measurement, Spec
from distmetric.benchmarks.data import clusters
from distmetric.benchmarks.index.data import Rows
from distmetric.benchmarks.index.methods import Settings as IndexSettings
from distmetric.benchmarks.index.methods import SnapshotBuild
from distmetric.benchmarks.memory import PeakMemory, give_back_free
from distmetric.benchmarks.scaling.cost import WORK, StepSize
from distmetric.benchmarks.timing import BareMatmul
from distmetric.distributed.gather import gather, gather_batch
from distmetric.distributed.loss import DistributedLoss
from distmetric.distributed.parallel import average_gradients, parallel
from distmetric.distributed.replica import Replica
from distmetric.losses import SupConLoss
from distmetric.models.build import build_embedder
from distmetric.models.spec import ConvSpec

DIM, PER_CLASS, NEIGHBORS = 128, 4, 50
MODEL = ConvSpec(embedding_dim=DIM)
"""What is trained: images of 28 x 28."""
PRODUCT = "product"
"""Not a part of a step: the bare product of its anchors and columns, beside which the pair loss is seen."""
_COUNTED_IMAGES = 8
_SPREAD = 0.1


@dataclass(frozen=True)
class ScalingSpec(Spec):
    """What one cell measures.

    Args:
        kind: A training step, or a rebuild of the index.
        size: Images of each process, or rows of the index.
    """

    suite: ClassVar[str] = "scaling"

    kind: Literal["step", "build"]
    size: int


@dataclass(frozen=True)
class ScalingMeasurement(Measurement):
    """What one process of a cell found; `seconds` are of whole steps, or of builds, which no part was fitted to.

    Args:
        cpu_seconds: As `seconds`, CPU time of this process.
        points: (part of `WORK` or `PRODUCT`, its work, seconds, CPU seconds of this process), at several sizes.
        image_flops: Operations of an image, forward and backward.
        parameters: P.
        activation_bytes: Kept of an image for the backward pass.
        classes: Of the index.
    """

    cpu_seconds: list[float] = field(default_factory=list)
    points: list[tuple[str, float, float, float]] = field(default_factory=list)
    image_flops: float = 0.0
    parameters: int = 0
    activation_bytes: float = 0.0
    classes: int = 0


def measure_scaling(spec: ScalingSpec, replica: Replica | None = None) -> ScalingMeasurement:
    """Measure a cell in this process.

    Args:
        spec: What to measure.
        replica: Which of its ranks this process is.
    """
    replica = replica or Replica()
    clock = _Clock(replica, spec.steps)
    if spec.kind == "build":
        return _measure_build(spec, clock)
    parts = _Parts(spec.size, replica)
    points = list[tuple[str, float, float, float]]()
    for part, work, call in parts.calls():
        if work > 0:
            wall, cpu = clock(call)
            points.append((part, work, median(wall), median(cpu)))
    step = parts.step()
    step()
    give_back_free()
    memory = PeakMemory(torch.device("cpu"))
    step()
    peak = memory.above_base()
    products, busy = clock(BareMatmul(spec.size, parts.size.rows, DIM, torch.device("cpu")))
    points.append((PRODUCT, WORK["pair"](parts.size), median(products), median(busy)))
    seconds, cpu_seconds = clock(step)
    return ScalingMeasurement(
        *(seconds, products, memory.base, peak, cpu_seconds, points),
        image_flops=parts.size.image_flops,
        parameters=parts.size.parameters,
        activation_bytes=parts.activation_bytes,
    )


class _Clock:
    def __init__(self, replica: Replica, steps: int) -> None:
        self._replica, self._steps = replica, steps

    def __call__(self, call: Callable[[], object]) -> tuple[list[float], list[float]]:
        """Seconds and CPU seconds of a call, again and again, each begun by all ranks together, the first left out."""
        wall, cpu = [], []
        for _ in range(self._steps + 1):
            self._replica.barrier()
            started, busy = time.perf_counter(), time.process_time()
            call()
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - busy)
        return wall[1:], cpu[1:]


class _Parts:
    """The parts of a training step, each alone, and the whole.

    Args:
        images: B.
        replica: Who this rank is.
    """

    def __init__(self, images: int, replica: Replica) -> None:
        self._replica = replica
        self._model = build_embedder(MODEL, 0, replica)
        self._criterion = DistributedLoss(SupConLoss(), replica)
        rows, labels = clusters(images * replica.world_size, DIM, PER_CLASS, _SPREAD, seed=0)
        own = slice(replica.rank * images, (replica.rank + 1) * images)
        self._embeddings, self._labels = rows[own].clone(), labels[own].clone()
        self._images = torch.rand(images, MODEL.channels, *MODEL.image_sides)
        alone = build_embedder(MODEL, 0, Replica())
        parameters = sum(each.numel() for each in alone.parameters())
        self.activation_bytes = _kept_bytes(alone, self._images[:_COUNTED_IMAGES])
        self.size = StepSize(
            processes=replica.world_size,
            images=images,
            dim=DIM,
            parameters=parameters,
            image_flops=_image_flops(alone, self._images[:_COUNTED_IMAGES]),
        )
        self._alone = alone

    def calls(self) -> Iterator[tuple[str, float, Callable[[], object]]]:
        """(part, its work, what does it), every part with half as much and with all of it, or with more."""
        for images in (self.size.images // 2, self.size.images):
            part = replace(self.size, images=images)
            yield "trunk", WORK["trunk"](part), self._trunk(images)
            yield "pair", WORK["pair"](part), self._pair(images)
        for times in (1, 4):
            rows = torch.randn(self.size.images * times, DIM, requires_grad=True)
            part = replace(self.size, images=len(rows), parameters=self.size.parameters * times)
            yield "gather", WORK["gather"](part), self._gather(rows)
            weights = [torch.randn(part.parameters, requires_grad=True)]
            weights[0].grad = torch.zeros(part.parameters)
            yield "reduce", WORK["reduce"](part), lambda w=weights: average_gradients(w, self._replica)  # type: ignore[misc]
            yield "update", WORK["update"](part), _adamw(weights).step

    def step(self) -> Callable[[], object]:
        """A training step: forward, gather, loss, backward with DDP, update."""
        model = parallel(self._model, self._replica, torch.device("cpu"))
        optimizer = _adamw(self._model.parameters())
        sizes = [self.size.images] * self.size.processes

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            batch = gather_batch(model(self._images), self._labels, self._replica, sizes)
            self._criterion.joint(batch)[0].backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def _trunk(self, images: int) -> Callable[[], object]:
        part, gradient = self._images[:images], torch.ones(images, DIM)
        return lambda: self._alone(part).backward(gradient)

    def _pair(self, images: int) -> Callable[[], object]:
        sizes = [images] * self.size.processes
        rows = self._embeddings[:images].clone().requires_grad_()
        batch = gather_batch(rows, self._labels[:images], self._replica, sizes)
        columns = batch.columns.detach().clone().requires_grad_()
        batch = replace(batch, columns=rows if self.size.processes == 1 else columns)
        return lambda: self._criterion.joint(batch)[0].backward()  # type: ignore[no-untyped-call]

    def _gather(self, rows: Tensor) -> Callable[[], object]:
        sizes = [len(rows)] * self.size.processes
        gradient = torch.ones(len(rows) * self.size.processes, DIM)
        return lambda: gather(rows, self._replica, sizes).backward(gradient)  # type: ignore[no-untyped-call]


def _adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)  # type: ignore[arg-type]


def _image_flops(model: nn.Module, images: Tensor) -> float:
    """Operations of an image, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return float(counter.get_total_flops() / len(images))


def _kept_bytes(model: nn.Module, images: Tensor) -> float:
    """Bytes that an image's forward pass keeps for the backward pass, weights aside."""
    kept = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    total = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            kept.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = model(images)
    del result
    return total / len(images)


def _measure_build(spec: ScalingSpec, clock: _Clock) -> ScalingMeasurement:
    embeddings, labels = clusters(spec.size, DIM, PER_CLASS, _SPREAD, seed=0)
    rows = Rows(embeddings, labels)
    build = SnapshotBuild(
        rows,
        IndexSettings(k=NEIGHBORS, lists=None, probes=32, device="cpu", threads=spec.threads),
        row_lists=False,
    )
    memory = PeakMemory(torch.device("cpu"))
    build.run()
    peak = memory.above_base()
    seconds, cpu_seconds = clock(build.run)
    return ScalingMeasurement(seconds, [], memory.base, peak, cpu_seconds, classes=rows.num_classes)
