"""`train.chunk_size=auto`: counted activations, what is free, one answer for all ranks, kept by a resumed run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distmetric.config.schema import Config
from distmetric.distributed import Replica
from distmetric.errors import ConfigError, ResourceError
from distmetric.models.build import build_embedder
from distmetric.training import chunk_size as module
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.chunk_size import bytes_per_image, chosen_chunk_size
from memory_process import measured
from processes import run_ranks
from runs import CPU, ListTracker, run_once, tiny_config

MIB = 1 << 20
AUTO = ("train.chunk_size=auto", "model.norm=group", "model.widths=[8, 8]", "model.embedding_dim=16")
"""Batches of 32 rows."""


def test_what_the_graph_keeps_is_counted_for_one_more_image() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten())
    images = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    # Kept as floats: 100 numbers that the convolution takes, 4 x 8 x 8 that tanh gives, and as many and a mask of
    # dropout, which on a CPU is of floats; neither weights nor what does not grow with the batch.
    kept = 4 * (100 + 256 + 256)
    assert bytes_per_image(lambda part: trunk(part.float()), trunk, images) == 1.5 * kept + 32 * 100


def test_counting_leaves_no_trace() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    bytes_per_image(lambda part: trunk(part.float()), trunk, torch.ones(2, 1, 10, 10, dtype=torch.uint8))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert all(parameter.grad is None for parameter in trunk.parameters())


def free(monkeypatch: pytest.MonkeyPatch, worker_bytes: float | None) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: worker_bytes)


def cost_of_image(config: Config) -> float:
    embedder = build_embedder(config.model, 0, Replica())
    return bytes_per_image(embedder.features, embedder, torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def enough_for(config: Config, rows: float) -> float:
    """Free memory of which half, weights and bytes of images aside, is for so many images."""
    embedder = build_embedder(config.model, 0, Replica())
    weights = sum(parameter.nbytes for parameter in embedder.trunk.parameters())
    return 2 * rows * cost_of_image(config) + 5 * weights + 2 * 32 * 28 * 28


def choice(config: Config, replica: Replica, recorded: dict[str, object] | None = None) -> int | None:
    embedder = build_embedder(config.model, 0, replica)
    return chosen_chunk_size(config, embedder.trunk, embedder.features, replica, CPU, recorded)


@pytest.mark.parametrize(
    ("rows", "chosen"), [(1000, None), (32.5, None), (31.9, 16), (16.1, 16), (15.9, 8), (1.1, 1)]
)
def test_as_many_rows_as_fit_rounded_down_and_no_chunks_where_all_do(
    rows: float, chosen: int | None, glyph_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(glyph_cache, *AUTO)
    free(monkeypatch, enough_for(config, rows))
    assert choice(config, Replica()) == chosen


def test_what_cannot_be_chosen_is_one_line(glyph_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(glyph_cache, *AUTO)
    free(monkeypatch, enough_for(config, 0.9))
    with pytest.raises(ResourceError, match=r"train.chunk_size=auto, but not even one image, of .* MiB"):
        choice(config, Replica())
    free(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"does not tell how much memory is free: set train.chunk_size to"):
        choice(config, Replica())


class Trunk(nn.Module):
    num_features = 4

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), norm)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_norms_of_any_trunk_are_seen(glyph_cache: Path) -> None:
    config = tiny_config(glyph_cache, "train.chunk_size=4", "model.norm=group")
    features = nn.Identity()
    with pytest.raises(ConfigError, match=r"train.chunk_size=4 with model.norm=sync_batch: "):
        chosen_chunk_size(config, Trunk(nn.SyncBatchNorm(4)), features, Replica(), CPU)
    assert chosen_chunk_size(config, Trunk(nn.BatchNorm2d(4)), features, Replica(), CPU) == 4
    auto = tiny_config(glyph_cache, "train.chunk_size=auto", "model.norm=group")
    with pytest.raises(ConfigError, match=r"train.chunk_size=auto with model.norm=batch: "):
        chosen_chunk_size(auto, Trunk(nn.BatchNorm2d(4)), features, Replica(), CPU)
    frozen = Trunk(nn.BatchNorm2d(4).eval())  # which normalizes every image alike
    assert chosen_chunk_size(auto, frozen, lambda images: frozen(images.float()), Replica(), CPU) is None


def of_ranks(replica: Replica, config: Config, rows: list[float]) -> int | None:
    module.available_memory = lambda: enough_for(config, rows[replica.rank])  # this process is a rank's own
    return choice(config, replica)


def test_ranks_agree_on_the_least_and_share_their_machine(glyph_cache: Path) -> None:
    config = tiny_config(glyph_cache, *AUTO)
    # Two on one machine have half of its memory each, and 16 rows.
    assert run_ranks(2, of_ranks, config, [1000, 34]) == [None, None]
    assert run_ranks(2, of_ranks, config, [1000, 17]) == [8, 8]


def resumed(
    config: Config, run_dir: Path, monkeypatch: pytest.MonkeyPatch, rows: list[float]
) -> list[Tensor]:
    """Weights after a run with so much memory at its start, and after each time that it was stopped."""
    for place, fitting in enumerate(rows):
        free(monkeypatch, enough_for(config, fitting))
        if place < len(rows) - 1:
            with pytest.raises(InterruptedError):
                run_once(config, run_dir, ListTracker(fail_at=14))
    worker, _, tracker = run_once(config, run_dir)
    assert set(tracker.series("train/chunk_size").values()) == {4.0}
    return list(worker.embedder.state_dict().values())


def test_a_resumed_run_keeps_what_was_chosen_whatever_is_free_then(
    glyph_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(glyph_cache, *AUTO, "train.log_every=2", "eval.resamples=0")
    whole = resumed(config, tmp_path / "whole", monkeypatch, [5])
    again = resumed(config, tmp_path / "again", monkeypatch, [5, 1000])
    assert all(torch.equal(ours, expected) for ours, expected in zip(again, whole, strict=True))
    newest = CheckpointStore(str(tmp_path / "again" / "checkpoints")).latest()
    assert newest.meta["chunks"] == {"chunk_size": 4, "world_size": 1}


def test_as_many_ranks_keep_it_and_others_choose_anew(
    glyph_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(glyph_cache, *AUTO)
    free(monkeypatch, enough_for(config, 9))
    assert choice(config, Replica(), {"chunk_size": None, "world_size": 1}) is None
    assert choice(config, Replica(), {"chunk_size": 2, "world_size": 1}) == 2
    assert choice(config, Replica(), {"chunk_size": None, "world_size": 4}) == 8


def test_choosing_changes_nothing_of_a_run(
    glyph_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1 << 50)
    states = []
    for name, more in (("plain", "train.chunk_size=null"), ("auto", "train.chunk_size=auto")):
        config = tiny_config(glyph_cache, *AUTO, more, "train.steps=3", "eval.resamples=0")
        worker, _, tracker = run_once(config, tmp_path / name)
        states.append(worker.embedder.state_dict())
        assert "train/chunk_size" not in tracker.logged[0][1]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value.numpy(), states[1][name].numpy())


PEAKS = """
import sys
import torch
from distmetric.benchmarks.memory import PeakMemory, give_back_free
from distmetric.distributed import Replica
from distmetric.training.chunk_size import bytes_per_image
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from runs import CPU, ListTracker, tiny_config

torch.set_num_threads(1)

def peak(classes, chunk_size):
    config = tiny_config(
        sys.argv[1], "train.steps=2", f"sampler.classes_per_batch={classes}", "sampler.samples_per_class=16",
        "model.norm=group", "model.widths=[32, 64, 64]", f"train.chunk_size={chunk_size}", "eval.batch_size=16",
        "eval.resamples=0", "checkpoint.every_steps=100", "augment=affine",
    )
    worker = Worker(config, f"{sys.argv[2]}/{classes}-{chunk_size}", ListTracker(), Replica(), CPU)
    give_back_free()
    memory = PeakMemory(CPU)
    train(worker)
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    return memory.above_base(), bytes_per_image(worker.embedder.features, worker.embedder, images)

peak(4, 16)  # what libraries set up once
for classes, chunk_size in ((8, 32), (32, 32), (32, "null")):
    print(*peak(classes, chunk_size))
"""


@pytest.mark.timeout(300)
def test_four_times_the_batch_has_the_same_peak(glyph_cache: Path, tmp_path: Path) -> None:
    lines = measured(PEAKS, glyph_cache, tmp_path)
    (small, cost), (large, _), (whole, _) = (map(float, line.split()) for line in lines)
    print(f"128 rows {small / MIB:.1f}, 512 rows {large / MIB:.1f}, 512 at once {whole / MIB:.1f} MiB")
    assert large < 1.25 * small + 16 * MIB
    assert large < 0.3 * whole
    # What `auto` reckons with is what a step takes, and not much more.
    assert 0.5 * 512 * cost < whole < 512 * cost
