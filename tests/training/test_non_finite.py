"""A loss or gradient that is not finite stops the run, or costs it that step and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distmetric.distributed.replica import Replica
from distmetric.errors import NonFiniteError
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.loop import train
from distmetric.training.notices import read_notices
from distmetric.training.worker import Worker
from poison import Poison, poisoned_run, states
from processes import run_ranks
from runs import CPU, ListTracker, run_once, tiny_config

SMALL = (
    *("model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=12", "train.log_every=5"),
    *("eval.every_steps=100", "eval.resamples=0", "checkpoint.every_steps=100", "schedule.warmup_steps=0"),
)
SKIP = (*SMALL, "train.non_finite=skip")


def moments(worker: Any) -> list[torch.Tensor]:
    return [value for state in worker.optimizer.state.values() for value in state.values()]


def assert_equal_tensors(ours: Any, theirs: Any) -> None:
    if isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        return
    assert len(ours) == len(theirs)
    pairs = (
        zip(ours.values(), theirs.values(), strict=True)
        if isinstance(ours, dict)
        else zip(ours, theirs, strict=True)
    )
    for one, other in pairs:
        assert_equal_tensors(one, other)


def batch_file(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((run_dir / "non_finite" / f"step_{step:08d}.json").read_text())


@pytest.mark.parametrize(
    ("overrides", "poison"),
    [
        ((), "embedding"),
        (("train.precision=float64",), "gradient"),
        (("train.precision=bfloat16",), "embedding"),
        (("optim=sgd", "optim.lr=0.01", "optim.clip_norm=1.0"), "gradient"),
        (("optim=sgd", "optim.momentum=0.0", "miner=triplet_margin"), "embedding"),
        (("loss=cross_batch_memory", "loss.memory_size=256"), "embedding"),
        (("loss=proxy_anchor", "optim=sgd", "optim.lr=0.01"), "embedding"),
    ],
)
def test_a_run_with_steps_left_out_equals_one_that_never_took_them(
    overrides: tuple[str, ...], poison: Poison, glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *SKIP, *overrides)
    # The first step, which a momentum begins with, one that is followed by another, and the last before a flush.
    steps = (0, 4, 6, 7)
    skipping, _, tracker = poisoned_run(config, tmp_path / "skips", dict.fromkeys(steps, poison))
    without, _, expected = poisoned_run(config, tmp_path / "without", dict.fromkeys(steps, "forget"))
    assert_equal_tensors(states(skipping.worker), states(without.worker))
    assert_equal_tensors(moments(skipping.worker), moments(without.worker))
    whole = {step: loss for step, loss in expected.series("train/loss").items() if step - 1 not in steps}
    found = {step: loss for step, loss in tracker.series("train/loss").items() if step - 1 not in steps}
    assert found == whole
    assert len(whole) == 8
    assert list(tracker.series("train/skipped_steps").values()) == [1, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("poison", ["embedding", "gradient"])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_the_run_stops_before_anything_of_it_is_saved(
    poison: Poison, precision: str, glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *SMALL, f"train.precision={precision}", "checkpoint.every_steps=3")
    with pytest.raises(NonFiniteError) as caught:
        poisoned_run(config, tmp_path, {7: poison})
    store = CheckpointStore(f"{tmp_path}/checkpoints", keep_last=9)
    assert store.steps() == [3, 6]
    message = str(caught.value)
    assert "\n" not in message
    wrong = (
        "the embeddings of 1 of 32 images were not finite" if poison == "embedding" else "the gradient became"
    )
    for told in (
        *("at step 8", wrong, "learning rate 0.00", f"{tmp_path}/non_finite/step_00000008.json"),
        *(
            f"resume={tmp_path} train.non_finite=skip",
            f"{tmp_path}/checkpoints/step_00000006",
            "lower optim.lr",
        ),
    ):
        assert told in message
    assert [(one["kind"], one["step"]) for one in read_notices(str(tmp_path))] == [("non_finite", 8)]


def test_the_batch_is_kept_with_its_numbers_and_images(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *SKIP)
    poisoned, _, _ = poisoned_run(config, tmp_path, {4: "embedding", 9: "gradient"})
    worker = poisoned.worker
    first, second = (batch_file(tmp_path, step) for step in (5, 10))
    assert sorted(path.name for path in (tmp_path / "non_finite").iterdir()) == [
        "step_00000005.json",
        "step_00000010.json",
    ]
    assert (first["step"], first["seed"], first["skipped"], first["loss"]) == (5, config.seed, True, "nan")
    assert 0 < second["loss"] < 10
    assert second["gradient_norm"] in ("inf", "nan")
    for document, step in ((first, 4), (second, 9)):
        planned = worker.sampler.batch(step)
        assert [row["id"] for row in document["rows"]] == worker.catalog.ids[planned].tolist()
        assert [row["path"] for row in document["rows"]] == [
            worker.catalog.source_path(row) for row in planned
        ]
        names = [worker.catalog.label_names[label] for label in worker.catalog.labels[planned]]
        assert [row["label"] for row in document["rows"]] == names
    assert [row["finite"] for row in first["rows"]] == [place != 1 for place in range(32)]
    assert all(row["finite"] for row in second["rows"])


def test_a_rate_that_blows_up_the_weights_leaves_no_checkpoint_of_them(
    glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *SKIP, "optim=sgd", "optim.lr=1e39", "checkpoint.every_steps=1")
    with pytest.raises(NonFiniteError, match=r"weights, moments or running statistics .* at step 1 .*1e\+39"):
        run_once(config, tmp_path)
    assert CheckpointStore(f"{tmp_path}/checkpoints").steps() == []


def test_running_statistics_that_are_not_finite_are_never_saved(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *SMALL, "checkpoint.every_steps=4")
    worker = Worker(config, str(tmp_path), ListTracker(), Replica(), CPU)
    take = worker.steps.take

    def take_and_break(step: int, *rest: Any) -> None:
        take(step, *rest)
        if step == 4:
            next(buffer for name, buffer in worker.embedder.named_buffers() if "running_var" in name).fill_(
                torch.inf
            )

    worker.steps.take = take_and_break
    with pytest.raises(NonFiniteError, match=r"running statistics are not finite any more at step 5 "):
        train(worker)
    assert CheckpointStore(f"{tmp_path}/checkpoints").steps() == [4]


def test_too_many_in_a_row_stop_a_run_that_skips(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(
        glyph_cache, *SKIP, "train.max_skipped=3", "train.log_every=2", "checkpoint.every_steps=2"
    )
    poisons: dict[int, Poison] = {1: "embedding", 2: "embedding", **dict.fromkeys(range(5, 12), "gradient")}
    with pytest.raises(NonFiniteError, match=r"train.max_skipped=3 steps in a row .* at step 8 ") as caught:
        poisoned_run(config, tmp_path, poisons)
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step_00000006" in str(caught.value)
    told = [(one["step"], one["message"].partition(":")[0]) for one in read_notices(str(tmp_path))]
    assert told[0][0] == 2
    assert told[1] == (8, "the run stopped")
    assert len(told) == 2


def test_a_resumed_run_goes_on_counting_and_tells_nothing_twice(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *SKIP, "checkpoint.every_steps=5", "train.log_every=3")
    poisons: dict[int, Poison] = {1: "embedding", 4: "gradient", 5: "embedding", 8: "embedding"}
    whole, _, tracker = poisoned_run(config, tmp_path / "whole", poisons)
    with pytest.raises(InterruptedError):
        poisoned_run(config, tmp_path / "moved", poisons, ListTracker(fail_at=8))
    moved, _, resumed = poisoned_run(config, tmp_path / "moved", poisons)
    counts, again = (one.series("train/skipped_steps") for one in (tracker, resumed))
    assert list(again.values()) == [3, 3, 3, 4, 4, 4, 4]
    assert again == {step: count for step, count in counts.items() if step > 5}
    assert_equal_tensors(states(moved.worker), states(whole.worker))
    assert_equal_tensors(moments(moved.worker), moments(whole.worker))
    told = [(one["step"], one["message"]) for one in read_notices(str(tmp_path / "moved"))]
    assert [step for step, _ in told] == [2]
    for name in ("whole", "moved"):
        assert [path.name for path in sorted((tmp_path / name / "non_finite").iterdir())] == [
            f"step_{step:08d}.json" for step in (2, 5, 6, 9)
        ]


def test_a_stopped_run_resumes_without_the_step(glyph_cache: Path, tmp_path: Path) -> None:
    stopping = tiny_config(glyph_cache, *SMALL, "checkpoint.every_steps=4")
    skipping = tiny_config(glyph_cache, *SKIP, "checkpoint.every_steps=4")
    with pytest.raises(NonFiniteError):
        poisoned_run(stopping, tmp_path / "run", {6: "embedding"})
    resumed, _, _ = poisoned_run(skipping, tmp_path / "run", {6: "embedding"})
    whole, _, _ = poisoned_run(skipping, tmp_path / "whole", {6: "embedding"})
    assert_equal_tensors(states(resumed.worker), states(whole.worker))


def on_ranks(replica: Replica, cache: Path, run_dir: Path, poison: Poison, overrides: tuple[str, ...]) -> Any:
    config = tiny_config(cache, *overrides)
    try:
        poisoned, _, tracker = poisoned_run(config, run_dir, {6: poison}, None, replica, rank=1)
    except NonFiniteError as error:
        return str(error)
    numbers = [value.double().numpy() for part in states(poisoned.worker) for value in part.values()]
    return numbers, tracker.series("train/skipped_steps"), tracker.series("train/loss")


@pytest.mark.parametrize("poison", ["embedding", "gradient"])
def test_what_one_rank_meets_stops_all_at_the_same_step(
    poison: Poison, glyph_cache: Path, tmp_path: Path
) -> None:
    first, second = run_ranks(2, on_ranks, glyph_cache, tmp_path, poison, SMALL)
    assert first == second
    assert " at step 7 " in first
    row = 17 if poison == "embedding" else None  # the second of the second rank's sixteen
    assert [place for place, row in enumerate(batch_file(tmp_path, 7)["rows"]) if not row["finite"]] == (
        [] if row is None else [row]
    )


@pytest.mark.parametrize("poison", ["embedding", "gradient"])
def test_what_one_rank_meets_is_left_out_by_all(poison: Poison, glyph_cache: Path, tmp_path: Path) -> None:
    overrides = (*SKIP, "train.precision=float64", "model.norm=sync_batch")
    one, other = run_ranks(2, on_ranks, glyph_cache, tmp_path / "two", poison, overrides)
    for ours, theirs in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one[1][6] == 0
    assert one[1][7] == one[1][12] == 1
    _, _, tracker = poisoned_run(tiny_config(glyph_cache, *overrides), tmp_path / "one", {6: "forget"})
    losses = tracker.series("train/loss")
    for step in (*range(1, 7), *range(8, 13)):
        assert one[2][step] == pytest.approx(losses[step], abs=1e-9)


def test_embeddings_that_are_not_finite_are_not_evaluated(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, *SMALL, "eval.every_steps=6", "checkpoint.every_steps=4")
    worker = Worker(config, str(tmp_path), ListTracker(), Replica(), CPU)
    worker.embedder.register_forward_hook(
        lambda module, _, found: (
            found if module.training else found.index_fill(0, torch.tensor([2]), torch.nan)
        )
    )
    with pytest.raises(
        NonFiniteError, match=r"embeddings of 1 of \d+ evaluated images are not finite"
    ) as caught:
        train(worker)
    assert worker.catalog.source_path(int(worker.test_rows[2])) in str(caught.value)
    assert not (tmp_path / "evaluations").exists()
    assert CheckpointStore(f"{tmp_path}/checkpoints").steps() == [4]


def test_a_batch_that_cannot_be_written_does_not_hide_why_the_run_stopped(
    glyph_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "non_finite").write_text("a file where the folder should be")
    with pytest.raises(NonFiniteError, match="at step 3 "):
        poisoned_run(tiny_config(glyph_cache, *SMALL), tmp_path, {2: "embedding"})
    assert re.search(r"non_finite/step_00000003.json cannot be written", caplog.text)
