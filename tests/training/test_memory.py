"""What is certain not to fit into memory is refused with what to lower, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distmetric.distributed import Replica
from distmetric.errors import ResourceError
from distmetric.models.spec import TimmSpec
from distmetric.training.memory import Need, available_memory, check_memory, least_memory
from distmetric.training.run_data import open_data
from distmetric.training.worker import Worker
from runs import CPU, ListTracker, tiny_config

GIB = 1 << 30


def test_the_parts_are_those_of_a_worker(glyph_cache, tmp_path) -> None:
    for overrides in ((), ("optim=sgd",), ("train.precision=float64", "optim=sgd", "optim.momentum=0")):
        config = tiny_config(glyph_cache, *overrides)
        need = least_memory(config, open_data(config.data))
        worker = Worker(config, str(tmp_path / "-".join(overrides)), ListTracker(), Replica(), CPU)
        assert need.images == worker.images.held_bytes > 0
        assert need.batches == 2 * worker.batches.get(0).images.numel()
        worker.embedder(worker.batches.get(0).images.to(worker.dtype)).sum().backward()
        worker.optimizer.step()
        kept = [value for state in worker.optimizer.state.values() for value in state.values()]
        tensors = [value.nbytes for value in kept if hasattr(value, "nbytes") and value.ndim]
        weights = sum(parameter.nbytes for parameter in worker.embedder.parameters())
        assert need.model == 2 * weights + sum(tensors)
        assert need.total == need.images + need.batches + need.model
        worker.batches.close()


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        (
            ["data.memory_limit_gib=1"],
            "lower data.memory_limit_gib, so that images are decoded when they are used",
        ),
        (
            [
                "data.memory_limit_gib=0",
                "model.image_size=2000",
                "data.size=28",
                "sampler.classes_per_batch=30",
            ],
            "lower sampler.classes_per_batch or model.image_size",
        ),
        (
            ["data.memory_limit_gib=0", "model.embedding_dim=100000"],
            "choose a smaller model or model.embedding_dim",
        ),
        (["model.embedding_dim=4000000000000000000"], "choose a smaller model or model.embedding_dim"),
        (["model.embedding_dim=99999999999999999999999999"], "choose a smaller model or model.embedding_dim"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_setting_to_lower(overrides, fix, glyph_cache) -> None:
    config = tiny_config(glyph_cache, *overrides)
    catalog = open_data(config.data)
    need = least_memory(config, catalog).total
    check_memory(config, catalog, available=need)
    with pytest.raises(ResourceError, match=rf"needs .*iB of memory at the least \(.*free: {fix}") as told:
        check_memory(config, catalog, available=min(need - 1, 1 << 60))
    assert "\n" not in str(told.value)


def test_attribute_heads_and_frames_of_clips_count(glyph_cache) -> None:
    plain, heads = (tiny_config(glyph_cache, f"loss={loss}") for loss in ("triplet", "aitl"))
    catalog = open_data(plain.data)
    assert least_memory(heads, catalog).model > least_memory(plain, catalog).model
    moving = ("data=moving_glyphs", "data.max_classes=20", "data.tracklets_per_class=3")
    still, clips = (tiny_config(glyph_cache, *moving, *more) for more in ([], ["model.frames_per_clip=3"]))
    catalog = open_data(still.data)
    assert least_memory(clips, catalog).batches == 3 * least_memory(still, catalog).batches
    assert least_memory(clips, catalog).images == least_memory(still, catalog).images


def test_models_of_others_count_for_nothing_before_they_are_there(glyph_cache) -> None:
    config = tiny_config(glyph_cache)
    config = replace(config, model=TimmSpec(model="resnet18", channels=1, image_size=28))
    assert least_memory(config, open_data(config.data)).model == 0


def test_every_worker_holds_its_model_and_all_share_the_images() -> None:
    assert Need(images=5, batches=7, model=3, workers=4).total == 5 + 7 + 4 * 3


def test_this_machine_tells_and_holds_a_small_run(glyph_cache) -> None:
    config = tiny_config(glyph_cache)
    check_memory(config, open_data(config.data))


def machine(
    folder: Path, cgroup: str, meminfo: str = "MemAvailable: 8388608 kB\nSwapFree: 1048576 kB\n"
) -> Path:
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(meminfo)
    (folder / "self" / "cgroup").write_text(cgroup)
    return folder


def group(folder: Path, version: int, limit: object, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[
        version
    ]
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    stat = (
        f"total_inactive_file {cached}\ninactive_file 0\n"
        if version == 1
        else f"anon 1\ninactive_file {cached}\n"
    )
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(("version", "line"), [(1, "4:memory:/a/b"), (2, "0::/a/b")])
def test_limits_of_groups_count_without_what_the_kernel_can_give_back(version, line, tmp_path) -> None:
    proc = machine(tmp_path / "proc", f"3:cpuset:/\n{line}\n")
    groups = tmp_path / "groups"
    assert available_memory(proc, groups) == 9 * GIB
    root = groups / "memory" if version == 1 else groups
    group(root / "a" / "b", version, 4 * GIB, 3 * GIB, GIB // 2)
    assert available_memory(proc, groups) == 3 * GIB // 2
    group(root / "a", version, 2 * GIB, GIB, 0)  # the group above is tighter
    assert available_memory(proc, groups) == GIB
    group(root, version, GIB, GIB // 2, 0)  # as where a container sees its own group only
    assert available_memory(proc, groups) == GIB // 2
    group(root, version, GIB, 2 * GIB, 0)
    assert available_memory(proc, groups) == 0


def test_without_limits_the_machine_decides_and_without_a_word_nobody(tmp_path) -> None:
    proc = machine(tmp_path / "proc", "0::/\n")
    group(tmp_path / "groups", 2, "max", GIB, 0)
    assert available_memory(proc, tmp_path / "groups") == 9 * GIB
    assert available_memory(tmp_path / "nothing", tmp_path / "nothing") is None
    odd = machine(tmp_path / "odd", "nonsense", "MemAvailable\n")
    assert available_memory(odd, tmp_path / "nothing") is None
