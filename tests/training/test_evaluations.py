"""Evaluations of a run leave records in its folder, and checkpoints carry the threshold of their own weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distmetric.distributed.replica import Replica
from distmetric.errors import ResourceError
from distmetric.evaluation.calibration import Calibration, DistanceHistogram, survey_pairs
from distmetric.evaluation.retrieval import evaluate
from distmetric.training.checkpoint import find_checkpoint, read_checkpoint
from distmetric.training.embedding import embed
from distmetric.training.evaluations import read_evaluations, write_evaluation
from distmetric.training.saved_model import calibration_of
from processes import run_ranks
from runs import run_once, tiny_config

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=12", "eval.every_steps=5")


@pytest.fixture(scope="module")
def finished(glyph_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    worker, result, tracker = run_once(tiny_config(glyph_cache, *SMALL), folder)
    return folder, worker, result, tracker


def test_there_is_a_record_of_every_evaluation(finished) -> None:
    folder, worker, _, tracker = finished
    records = read_evaluations(str(folder))
    assert [record["step"] for record in records] == [5, 10, 12]
    for record in records:
        recall = tracker.series("eval/recall_at_1")[record["step"]]
        low, high = record["intervals"]["recall_at_1"]
        assert record["metrics"]["recall_at_1"] == recall
        assert low <= recall <= high
        assert low < high
        assert tracker.series("eval/recall_at_1_low")[record["step"]] == low
        histogram = DistanceHistogram.from_dict(record["histogram"])
        rows = len(worker.test_rows)
        assert int(histogram.positive.sum() + histogram.negative.sum()) == rows * (rows - 1) // 2
        assert tracker.series("eval/threshold")[record["step"]] == record["calibration"]["threshold"]


def test_the_last_record_is_what_the_weights_say(finished) -> None:
    folder, worker, _, _ = finished
    labels = worker.catalog.labels[worker.test_rows]
    embeddings = embed(worker.embedder, worker.images, worker.test_rows, 100, worker.device)
    last = read_evaluations(str(folder))[-1]
    assert last["metrics"] == pytest.approx(evaluate(embeddings, labels).to_dict())
    survey = survey_pairs(embeddings, labels, target_far=worker.config.eval.target_far)
    assert Calibration.from_dict(last["calibration"]) == survey.calibration


def test_a_checkpoint_has_the_threshold_of_its_own_weights(finished, tmp_path, glyph_cache) -> None:
    folder, _, result, _ = finished
    best = read_checkpoint(result.checkpoint)
    record = {record["step"]: record for record in read_evaluations(str(folder))}[best.step]
    assert calibration_of(best) == Calibration.from_dict(record["calibration"])
    unevaluated = tiny_config(glyph_cache, *SMALL, "eval.every_steps=12", "checkpoint.every_steps=5")
    run_once(unevaluated, tmp_path)
    assert calibration_of(read_checkpoint(f"{tmp_path}/checkpoints/step_00000010")) is None
    assert calibration_of(find_checkpoint(f"{tmp_path}/checkpoints/step_00000012")) is not None


def test_intervals_can_be_left_out(glyph_cache, tmp_path) -> None:
    _, _, tracker = run_once(tiny_config(glyph_cache, *SMALL, "eval.resamples=0"), tmp_path)
    assert read_evaluations(str(tmp_path))[-1]["intervals"] == {}
    assert "eval/recall_at_1" in {name for _, metrics in tracker.logged for name in metrics}
    assert "eval/recall_at_1_low" not in {name for _, metrics in tracker.logged for name in metrics}


def records_of(replica: Replica, cache, folder, *overrides: str) -> list[dict]:
    config = tiny_config(cache, *SMALL, "train.precision=float64", "model.norm=sync_batch", *overrides)
    run_once(config, folder, replica=replica)
    return read_evaluations(str(folder))


@pytest.mark.parametrize("overrides", [(), ("model.whitening=true", "model.views=3")])
def test_any_number_of_ranks_leaves_the_same_records(overrides, glyph_cache, tmp_path) -> None:
    one = records_of(Replica(), glyph_cache, tmp_path / "one", *overrides)
    three = run_ranks(3, records_of, glyph_cache, tmp_path / "three", *overrides)[0]
    assert [record["step"] for record in three] == [record["step"] for record in one]
    for ours, single in zip(three, one, strict=True):
        assert ours["metrics"] == pytest.approx(single["metrics"], abs=1e-9)
        for name, interval in single["intervals"].items():
            assert ours["intervals"][name] == pytest.approx(interval, abs=1e-9)
        # Weights agree to 1e-9, so a pair or two may fall on the other side of an edge.
        moved = np.abs(np.subtract(ours["histogram"]["negative"], single["histogram"]["negative"]))
        assert moved.sum() <= 4
        assert ours["calibration"]["threshold"] == pytest.approx(single["calibration"]["threshold"], abs=1e-6)


def test_records_are_replaced_and_read_by_step(tmp_path) -> None:
    for step, value in ((20, 1), (5, 2), (20, 3)):
        write_evaluation(str(tmp_path), {"step": step, "value": value})
    assert read_evaluations(str(tmp_path)) == [{"step": 5, "value": 2}, {"step": 20, "value": 3}]
    assert read_evaluations(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize("content", ["{", "[]", "", '{"step": 6}', '{"step": "5"}', "[" * 100_000, "\udcff"])
def test_damaged_records_are_named_and_left_out(content, tmp_path, caplog) -> None:
    for step in (5, 6):
        write_evaluation(str(tmp_path), {"step": step})
    file = tmp_path / "evaluations" / "step_00000005.json"
    file.write_text(content, errors="surrogateescape")
    assert read_evaluations(str(tmp_path)) == [{"step": 6}]
    assert "step_00000005.json is damaged and left out" in caplog.text


def test_any_flipped_bit_of_a_record_is_noticed(tmp_path) -> None:
    record = {"step": 5, "metrics": {"recall_at_1": 0.5, "map_at_r": 0.25}, "check": "mine"}
    write_evaluation(str(tmp_path), {**record})
    file = tmp_path / "evaluations" / "step_00000005.json"
    intact = file.read_bytes()
    assert read_evaluations(str(tmp_path))[0]["metrics"] == record["metrics"]
    for place in range(len(intact)):
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            assert read_evaluations(str(tmp_path)) == [], (place, bit)


def test_records_of_older_versions_have_no_checksum(tmp_path) -> None:
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "step_00000005.json").write_text(json.dumps({"step": 5}))
    assert read_evaluations(str(tmp_path)) == [{"step": 5}]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_evaluation(str(tmp_path / "file"), {"step": 5})
