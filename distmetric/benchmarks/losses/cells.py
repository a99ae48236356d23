"""What is measured: our losses and pytorch-metric-learning's, with the same settings, on the same data."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distmetric import losses
from distmetric.benchmarks.data import clusters
from distmetric.distributed.loss import DistributedLoss
from distmetric.distributed.replica import Replica
from distmetric.errors import ResourceError
from distmetric.losses import MetricLoss

PEER = "pytorch-metric-learning"
_PEER_MODULE = "pytorch_metric_learning"
DIM = 128
PER_CLASS = 4
_SPREAD = 0.1  # per coordinate, of centers of length one: the nearest negative is about as far as a positive

Side = Literal["ours", "peer"]


@dataclass(frozen=True)
class Cell:
    """A loss as both libraries have it, mining included.

    Args:
        ours: N -> our loss.
        peer: (package, N) -> pytorch-metric-learning's, called with embeddings and labels.
        columns_per_row: M / N, where M is what every embedding is compared with: the batch, class vectors, a memory.
        fills_memory: Whether there is a memory that earlier batches have to fill first.
        peer_spans_ranks: Whether pytorch-metric-learning's wrappers give the loss of the batch of all ranks, with its
            gradient: not for losses with parameters, nor for a memory, whose order differs between ranks.
    """

    ours: Callable[[int], MetricLoss]
    peer: Callable[[Any, int], nn.Module]
    columns_per_row: float = 1.0
    fills_memory: bool = False
    peer_spans_ranks: bool = True


class Mined(nn.Module):
    """A loss of pytorch-metric-learning on what its miner finds."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        value: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return value


def _triplet(strategy: Any) -> Callable[[int], MetricLoss]:
    return lambda _: losses.TripletLoss(0.2, strategy, normalize_embeddings=True, reduction="nonzero_mean")


_CLASSES_PER_ROW, _CENTERS, _BATCHES_KEPT = 2.5, 10, 4


def _classes(n: int) -> int:
    return int(_CLASSES_PER_ROW * n)


CELLS: dict[str, Cell] = {
    "batch_hard": Cell(
        _triplet("batch_hard"),
        lambda pml, _: Mined(pml.losses.TripletMarginLoss(margin=0.2), pml.miners.BatchHardMiner()),
    ),
    "batch_all": Cell(_triplet("batch_all"), lambda pml, _: pml.losses.TripletMarginLoss(margin=0.2)),
    "semi_hard": Cell(
        _triplet("semi_hard"),
        lambda pml, _: Mined(
            pml.losses.TripletMarginLoss(margin=0.2),
            pml.miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
        ),
    ),
    "contrastive": Cell(lambda _: losses.ContrastiveLoss(), lambda pml, _: pml.losses.ContrastiveLoss()),
    "lifted": Cell(lambda _: losses.LiftedStructureLoss(), lambda pml, _: pml.losses.LiftedStructureLoss()),
    "gen_lifted": Cell(
        lambda _: losses.GeneralizedLiftedStructureLoss(),
        lambda pml, _: pml.losses.GeneralizedLiftedStructureLoss(),
    ),
    "multi_sim": Cell(
        lambda _: losses.MultiSimilarityLoss(epsilon=0.1),
        lambda pml, _: Mined(pml.losses.MultiSimilarityLoss(), pml.miners.MultiSimilarityMiner(epsilon=0.1)),
    ),
    "supcon": Cell(lambda _: losses.SupConLoss(), lambda pml, _: pml.losses.SupConLoss()),
    "ntxent": Cell(lambda _: losses.NTXentLoss(), lambda pml, _: pml.losses.NTXentLoss()),
    "circle": Cell(lambda _: losses.CircleLoss(), lambda pml, _: pml.losses.CircleLoss()),
    "soft_triple": Cell(
        lambda n: losses.SoftTripleLoss(_classes(n), DIM, centers_per_class=_CENTERS, tau=0.0),
        lambda pml, n: pml.losses.SoftTripleLoss(_classes(n), DIM, centers_per_class=_CENTERS),
        columns_per_row=_CLASSES_PER_ROW * _CENTERS,
        peer_spans_ranks=False,
    ),
    "proxy_anchor": Cell(
        lambda n: losses.ProxyAnchorLoss(_classes(n), DIM),
        lambda pml, n: pml.losses.ProxyAnchorLoss(_classes(n), DIM),
        columns_per_row=_CLASSES_PER_ROW,
        peer_spans_ranks=False,
    ),
    "arcface": Cell(
        lambda n: losses.ArcFaceLoss(_classes(n), DIM),
        lambda pml, n: pml.losses.ArcFaceLoss(_classes(n), DIM),
        columns_per_row=_CLASSES_PER_ROW,
        peer_spans_ranks=False,
    ),
    "cross_batch_memory_contrastive": Cell(
        lambda n: losses.CrossBatchMemory(losses.ContrastiveLoss(), DIM, memory_size=_BATCHES_KEPT * n),
        lambda pml, n: pml.losses.CrossBatchMemory(
            pml.losses.ContrastiveLoss(), DIM, memory_size=_BATCHES_KEPT * n
        ),
        columns_per_row=_BATCHES_KEPT,
        fills_memory=True,
        peer_spans_ranks=False,
    ),
}


def columns(name: str, size: int) -> int:
    """M: how many vectors each of the N embeddings is compared with."""
    return int(CELLS[name].columns_per_row * size)


def clustered(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A batch as a half-trained network gives it: unit vectors around one center per class, in random order.

    Args:
        size: N, a multiple of 4.
        seed: Key of the noise and of the order; the centers are always the same.

    Returns:
        (N, 128) embeddings and (N,) labels, four rows of each of N / 4 classes.
    """
    return clusters(size, DIM, PER_CLASS, _SPREAD, seed)


def build(name: str, side: Side, size: int, replica: Replica) -> nn.Module:
    """A loss of N embeddings, of all ranks together where there are more than one.

    Both sides get the same class vectors where the loss has some.

    Raises:
        ResourceError: If pytorch-metric-learning is wanted and not there.
    """
    cell = CELLS[name]
    if side == "ours":
        loss = _with_equal_vectors(cell.ours(size))
        return loss if replica.world_size == 1 else DistributedLoss(loss, replica)
    package = peer_package()
    criterion = _with_equal_vectors(cell.peer(package, size))
    if replica.world_size == 1:
        return criterion
    wrappers = importlib.import_module(f"{_PEER_MODULE}.utils.distributed")
    if isinstance(criterion, Mined):
        return Mined(
            wrappers.DistributedLossWrapper(criterion.loss), wrappers.DistributedMinerWrapper(criterion.miner)
        )
    wrapped: nn.Module = wrappers.DistributedLossWrapper(criterion)
    return wrapped


@torch.no_grad()
def fill_memory(criterion: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Let a cross-batch memory see earlier batches."""
    for embeddings, labels in batches:
        enqueue: Any = getattr(criterion, "add_to_memory", None)
        if enqueue is None:
            criterion(embeddings, labels)
        else:  # pytorch-metric-learning's, which computes no loss
            enqueue(embeddings, labels, len(embeddings))


def peer_package() -> Any:
    """pytorch-metric-learning, with its losses and miners loaded.

    Raises:
        ResourceError: If it is not installed.
    """
    require_peer()
    for part in ("losses", "miners"):
        importlib.import_module(f"{_PEER_MODULE}.{part}")
    return importlib.import_module(_PEER_MODULE)


def require_peer() -> None:
    """Raise ResourceError unless pytorch-metric-learning is installed."""
    if importlib.util.find_spec(_PEER_MODULE) is None:
        raise ResourceError(
            f"peers=true needs {PEER}, which is not installed: pip install 'distmetric[bench]', or set peers=false"
        )


@torch.no_grad()
def _with_equal_vectors(criterion: nn.Module) -> nn.Module:
    """Class vectors that are the same for both libraries, one of which keeps some of them as columns."""
    for parameter in criterion.parameters():
        vectors: Tensor = parameter if parameter.shape[1] == DIM else parameter.t()
        vectors.copy_(torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)))
    return criterion
