"""Between two logs the host never waits for the device, so that a GPU always has work queued."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from distmetric.distributed import Replica
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from host_syncs import HostSyncs
from processes import run_ranks
from runs import CPU, ListTracker, tiny_config

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=5", "train.log_every=100")
# Whether pairs of a block are too near for a product of matrices to tell them apart is decided by one number of it.
NEAR = {f"{name} in functional/pair_blocks.py:_near_pairs" for name in ("__bool__", "_local_scalar_dense")}
CASES = {
    "loss=triplet loss.strategy=batch_hard": NEAR,
    "loss=triplet loss.strategy=batch_hard loss.distance=cosine": set(),
    "loss=triplet loss.strategy=batch_all": NEAR,
    "loss=supcon": set(),
    "loss=ntxent": set(),
    "loss=multi_similarity": set(),
    "loss=circle": set(),
    "loss=generalized_lifted_structure": NEAR,
    "loss=soft_triple": set(),
    "loss=arcface": set(),
    "loss=cosface": set(),
    "loss=proxy_nca": set(),
    "loss=proxy_anchor": set(),
    "loss=centroid_bound": NEAR,
    "loss=supcon sampler=hard_neighbors index=inline": set(),
    "loss=supcon augment=photo augment.saturation=0": set(),
    "loss=supcon augment=affine train.non_finite=skip optim=sgd optim.clip_norm=1": set(),
    "loss=supcon train.precision=bfloat16": set(),
    "loss=supcon train.chunk_size=8 model.norm=group": set(),
}


class Watched(Worker):
    """Watches its steps from the third on, what is planned before them and measured after them left out."""

    watch: Callable[[], AbstractContextManager[None]]

    def plan(self, step: int) -> None:
        super().plan(step)
        self._watching = ExitStack()
        if step >= 2:
            self._watching.enter_context(self.watch())

    def after_step(self, done: int) -> None:
        self._watching.close()
        super().after_step(done)


def syncs(replica: Replica, cache: Path, run_dir: str, *overrides: str) -> set[str]:
    worker = Watched(tiny_config(cache, *SMALL, *overrides), run_dir, ListTracker(), replica, CPU)
    seen = HostSyncs()
    worker.watch = seen.watch
    train(worker)
    return set(seen.found)


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_device(case, glyph_cache, tmp_path) -> None:
    assert syncs(Replica(), glyph_cache, str(tmp_path), *case.split()) <= CASES[case]


def test_nor_does_one_of_several_ranks(glyph_cache, tmp_path) -> None:
    case = (
        "loss=weighted_sum",
        "loss@loss.parts.triplet.loss=supcon",
        "loss@loss.parts.contrastive.loss=arcface",
    )
    assert run_ranks(2, syncs, glyph_cache, str(tmp_path), *case) == [set(), set()]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch's own debug mode needs a GPU, and there is none"
)
def test_cuda_finds_no_wait_either(glyph_cache, tmp_path) -> None:
    @contextmanager
    def watch():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    config = tiny_config(glyph_cache, *SMALL, "loss=supcon", "train.precision=bfloat16")
    worker = Watched(config, str(tmp_path), ListTracker(), Replica(), torch.device("cuda", 0))
    worker.watch = watch
    assert train(worker).step == 5


@pytest.mark.parametrize(
    ("waits", "named"),
    [
        (lambda x: x.item(), "_local_scalar_dense"),
        (lambda x: bool(x.any()), "__bool__"),
        (lambda x: float(x), "__float__"),
        (lambda x: x[None][x[None] > 0], "index by a mask"),
        (lambda x: x[None].index_put_((x[None] > 0,), x), "index_put_ by a mask"),
        (lambda x: x[None].nonzero(), "nonzero"),
        (lambda x: x[None].masked_select(x[None] > 0), "masked_select"),
        (lambda x: x[None].unique(), "_unique2"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.new_tensor([1.0]), "new_tensor"),
        (lambda x: torch.tensor([1.0], device=x.device), "tensor"),
        (lambda x: torch.repeat_interleave(x[None], x[None].long()), "repeat_interleave"),
    ],
)
def test_the_watch_sees_what_would_wait(waits, named) -> None:
    seen = HostSyncs()
    with seen.watch():
        waits(torch.tensor(1.0))
    assert any(found.startswith(f"{named} in ") for found in seen.found), seen.found


def test_the_watch_lets_pass_what_would_not() -> None:
    seen = HostSyncs()
    with seen.watch():
        x = torch.ones(3, requires_grad=True)
        (x * torch.full((), 2.0) + torch.arange(3)).where(x > 0, 0.0).sum().backward()
        x.detach()[torch.tensor([0, 2])].repeat_interleave(2).sort()
    assert seen.found == []
