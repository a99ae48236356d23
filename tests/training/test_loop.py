"""The promises of the training loop: it learns, W ranks equal one, and an interruption changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.distributed import Replica
from distmetric.errors import InputError
from distmetric.evaluation import RetrievalMetrics
from distmetric.training import worker as worker_module
from distmetric.training.evaluations import Evaluation
from processes import run_ranks
from runs import ListTracker, run_once, tiny_config

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16")


@pytest.mark.parametrize("loss", ["triplet", "triplet_hard_margin", "lifted_structure"])
def test_each_loss_learns_without_collapse(loss, glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, f"loss={loss}", "train.steps=60", "eval.every_steps=20")
    _, result, tracker = run_once(config, tmp_path)
    losses, recall = tracker.series("train/loss"), tracker.series("eval/recall_at_1")
    gaps = tracker.series("train/hardest_gap")
    assert np.mean([losses[s] for s in range(51, 61)]) < 0.9 * np.mean([losses[s] for s in range(1, 11)])
    assert recall[60] > 0.6
    assert result.metrics["recall_at_1"] == max(recall.values())
    assert gaps[60] > gaps[1]
    spread = tracker.series("train/embedding_variance")
    assert spread[60] > 0.5 * spread[1]


def ten_steps(replica: Replica, cache, run_dir, *overrides) -> tuple[list[float], list[np.ndarray], float]:
    config = tiny_config(
        cache,
        "train.steps=10",
        "train.precision=float64",
        "eval.every_steps=5",
        "sampler.classes_per_batch=7",
        "model.norm=sync_batch",
        *SMALL,
        *overrides,
    )
    worker, result, tracker = run_once(config, run_dir, replica=replica)
    weights = [parameter.detach().numpy() for parameter in worker.embedder.parameters()]
    return list(tracker.series("train/loss").values()), weights, result.metrics["map_at_r"]


@pytest.mark.parametrize("loss", ["triplet", "lifted_structure"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_world_size_invariance_of_ten_steps(loss, world_size, glyph_cache, tmp_path) -> None:
    # 28 rows on 3 ranks are ragged slices: 10, 9, 9.
    one = ten_steps(Replica(), glyph_cache, tmp_path / "one", f"loss={loss}")
    many = run_ranks(world_size, ten_steps, glyph_cache, tmp_path / "many", f"loss={loss}")
    assert len(one[0]) == 10
    np.testing.assert_allclose(many[0][0], one[0], rtol=0, atol=1e-9)
    for rank in many:
        for ours, single in zip(rank[1], one[1], strict=True):
            np.testing.assert_allclose(ours, single, rtol=0, atol=1e-8)
        assert rank[2] == pytest.approx(one[2], abs=1e-9)


def final_state(cache, run_dir, fail_at: int | None) -> tuple[list[np.ndarray], dict[int, float]]:
    """Weights and logged losses of a run, which is stopped once and started again where `fail_at` says."""
    config = tiny_config(cache, "train.log_every=3", *SMALL)
    if fail_at is not None:
        with pytest.raises(InterruptedError):
            run_once(config, run_dir, ListTracker(fail_at))
    worker, _, tracker = run_once(config, run_dir)
    weights = [tensor.numpy().copy() for tensor in worker.embedder.state_dict().values()]
    return weights, tracker.series("train/loss")


@pytest.mark.parametrize("fail_at", [4, 11, 17])
def test_interrupted_at_any_step_equals_never_interrupted(fail_at, glyph_cache, tmp_path) -> None:
    whole, losses = final_state(glyph_cache, tmp_path / "whole", None)
    resumed, replayed = final_state(glyph_cache, tmp_path / "resumed", fail_at)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    first = min(replayed)
    assert first == (11 if fail_at > 10 else 1)  # from the checkpoint of step 10, where it had been reached
    assert replayed == {step: loss for step, loss in losses.items() if step >= first}


def test_resumes_on_another_number_of_ranks_with_the_same_batches(glyph_cache, tmp_path) -> None:
    overrides = ("train.precision=float64", "model.norm=sync_batch", "train.log_every=1", *SMALL)
    config = tiny_config(glyph_cache, *overrides)
    _, _, whole = run_once(config, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run_once(config, tmp_path / "moved", ListTracker(fail_at=14))
    moved = run_ranks(2, losses_of_a_run, glyph_cache, tmp_path / "moved", overrides)
    assert min(moved[0]) == 11
    for step, loss in moved[0].items():
        assert loss == pytest.approx(whole.series("train/loss")[step], abs=1e-9)


def losses_of_a_run(replica: Replica, cache, run_dir, overrides) -> dict[int, float]:
    _, _, tracker = run_once(tiny_config(cache, *overrides), run_dir, replica=replica)
    return tracker.series("train/loss")


def test_a_finished_run_that_is_resumed_trains_no_further(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *SMALL)
    _, first, _ = run_once(config, tmp_path)
    _, again, tracker = run_once(config, tmp_path)
    assert tracker.logged == []
    assert (again.checkpoint, again.metrics) == (first.checkpoint, first.metrics)


def test_the_best_evaluation_is_kept_though_no_checkpoint_was_due(glyph_cache, tmp_path, monkeypatch) -> None:
    recalls = iter([0.2, 0.9, 0.3, 0.4, 0.5])
    monkeypatch.setattr(
        worker_module,
        "evaluate_sharded",
        lambda *_: Evaluation(
            RetrievalMetrics(9, 0, dict.fromkeys([1, 2, 4, 8], next(recalls)), 0.1, 0.1), None
        ),
    )
    schedule = ("train.steps=30", "eval.every_steps=7", "checkpoint.every_steps=30", "checkpoint.keep_last=1")
    _, result, tracker = run_once(tiny_config(glyph_cache, *schedule, *SMALL), tmp_path)
    assert list(tracker.series("eval/recall_at_1")) == [7, 14, 21, 28, 30]
    assert result.metrics["recall_at_1"] == 0.9
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000014",
        "step_00000030",
    ]


def test_bfloat16_autocast_trains_with_float32_weights_and_loss(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, "train.precision=bfloat16", "train.steps=3", *SMALL)
    worker, _, tracker = run_once(config, tmp_path)
    assert {parameter.dtype for parameter in worker.embedder.parameters()} == {torch.float32}
    assert len(tracker.series("train/loss")) == 3


def test_every_step_logs_what_tells_a_healthy_run(glyph_cache, tmp_path) -> None:
    _, _, tracker = run_once(
        tiny_config(glyph_cache, "train.steps=12", "train.log_every=5", *SMALL), tmp_path
    )
    expected = {
        "train/loss", "train/active_fraction", "train/gradient_norm", "train/learning_rate",
        "train/positive_distance_mean", "train/positive_distance_p10", "train/positive_distance_p50",
        "train/positive_distance_p90", "train/negative_distance_mean", "train/negative_distance_p10",
        "train/negative_distance_p50", "train/negative_distance_p90", "train/nearest_negative_mean",
        "train/hardest_gap",
        "train/embedding_norm_mean", "train/embedding_variance", "train/samples_per_second", "train/world_size",
        "train/collapsed",
        "time/plan", "time/data", "time/forward", "time/index", "time/gather", "time/loss", "time/backward",
        "time/optimizer",
    }  # fmt: skip
    steps = [(step, set(metrics)) for step, metrics in tracker.logged if "train/loss" in metrics]
    assert steps == [(step, expected) for step in range(1, 13)]


def test_changed_data_is_refused(glyph_cache, tmp_path) -> None:
    run_once(tiny_config(glyph_cache, *SMALL), tmp_path)
    with pytest.raises(InputError, match="the data has changed"):
        run_once(tiny_config(glyph_cache, "data.seed=1", *SMALL), tmp_path)


def test_another_architecture_is_refused(glyph_cache, tmp_path) -> None:
    run_once(tiny_config(glyph_cache, *SMALL), tmp_path)
    with pytest.raises(InputError, match="another architecture"):
        run_once(tiny_config(glyph_cache, "model.widths=[8, 16]", "model.embedding_dim=16"), tmp_path)
