"""Whitening in a run: from which rows, the same on any number of ranks, and that training does not notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.data.decode import ImageStore
from distmetric.distributed import Replica
from distmetric.errors import NonFiniteError
from distmetric.evaluation import evaluate
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.models.build import build_embedder
from distmetric.models.whitening import within_class_whitening
from distmetric.training.embedding import embed
from distmetric.training.evaluations import read_evaluations
from distmetric.training.run_data import open_data
from distmetric.training.whitening import CLASSES, IMAGES, whiten, whitening_rows
from processes import run_ranks
from runs import CPU, final_state, run_once, tiny_config

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=12", "eval.every_steps=5")


def test_rows_are_of_classes_with_two_images_and_few_of_each() -> None:
    draw = np.random.default_rng(3)
    labels = np.concatenate([np.arange(900) % 700, np.full(50, 1000)])
    draw.shuffle(labels)
    rows = draw.permutation(5000)[: len(labels)]
    found = whitening_rows(rows, labels, 0)
    label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    counts: dict[int, int] = {}
    for row in found.tolist():
        counts[label_of[row]] = counts.get(label_of[row], 0) + 1
    assert found.tolist() == sorted(set(found.tolist()))
    for label, count in counts.items():
        assert count == min(IMAGES, int((labels == label).sum()))
    # 200 classes have two images and one has 50; the other 500 have one.
    assert set(counts) == {*range(200), 1000}
    assert found.tolist() == whitening_rows(rows, labels, 0).tolist()


def test_of_many_classes_some_are_drawn_by_the_seed() -> None:
    labels = np.repeat(np.arange(3000), 2)
    rows = np.arange(len(labels))
    first, second = (labels[whitening_rows(rows, labels, seed)] for seed in (0, 1))
    assert len(set(first.tolist())) == len(set(second.tolist())) == CLASSES
    assert len(first) == 2 * CLASSES
    assert set(first.tolist()) != set(second.tolist())
    assert not len(whitening_rows(rows[::2], labels[::2], 0)), "no class has two"
    assert not len(whitening_rows(rows[:0], labels[:0], 0))


def parts(cache):
    config = tiny_config(cache, "model.widths=[8, 8]", "model.embedding_dim=16", "model.whitening=true")
    catalog = open_data(config.data)
    rows = catalog.rows("train")[:301]
    embedder = build_embedder(config.model, 0)
    embedder.whitening.copy_(torch.diag(torch.arange(16) + 1.0))  # as an earlier evaluation may have left it
    return embedder, ImageStore(catalog, 28, 1, rows=rows), rows


def whitened(replica: Replica, cache) -> tuple[np.ndarray, int]:
    embedder, images, rows = parts(cache)
    pauses = [0]

    def pause() -> None:
        pauses[0] += 1

    whiten(embedder, images, rows, 64, replica, CPU, pause)
    return embedder.whitening.numpy().copy(), pauses[0]


def test_it_is_computed_from_the_embeddings_of_all_ranks_as_they_are_without(glyph_cache) -> None:
    embedder, images, rows = parts(glyph_cache)
    with embedder.not_whitened():
        embeddings = embed(embedder, images, rows, 1000, CPU)
    labels = torch.from_numpy(images.catalog.labels[rows])
    expected = within_class_whitening(embeddings, labels).numpy()
    assert np.abs(expected - np.eye(16)).max() > 0.1
    for world_size in (1, 2, 3):
        found = run_ranks(world_size, whitened, glyph_cache)
        for matrix, pauses in found:
            np.testing.assert_allclose(matrix, expected, atol=1e-4)
            np.testing.assert_array_equal(matrix, found[0][0])
            assert pauses == found[0][1] > 0


def test_what_ends_it_early_leaves_the_model_as_it_was(glyph_cache) -> None:
    embedder, images, rows = parts(glyph_cache)
    before = embed(embedder, images, rows[:5], 5, CPU)

    def pause() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        whiten(embedder, images, rows, 64, Replica(), CPU, pause)
    assert torch.equal(embedder.whitening, torch.diag(torch.arange(16) + 1.0))
    assert torch.equal(embed(embedder, images, rows[:5], 5, CPU), before)


def test_training_does_not_notice_and_evaluations_are_of_whitened_embeddings(glyph_cache, tmp_path) -> None:
    plain, _, expected = run_once(tiny_config(glyph_cache, *SMALL), tmp_path / "plain")
    worker, result, tracker = run_once(
        tiny_config(glyph_cache, *SMALL, "model.whitening=true"), tmp_path / "white"
    )
    assert tracker.series("train/loss") == expected.series("train/loss")
    matrix = worker.embedder.whitening
    assert not torch.allclose(matrix, torch.eye(16), atol=0.01)
    state = worker.embedder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.embedder.state_dict().items())
    labels = worker.catalog.labels[worker.test_rows]
    rows = embed(plain.embedder, worker.images, worker.test_rows, 100, CPU) @ matrix
    record = read_evaluations(str(tmp_path / "white"))[-1]
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert record["metrics"] == pytest.approx(evaluate(rows, labels).to_dict(), abs=1e-6)
    assert tracker.series("eval/map_at_r") != expected.series("eval/map_at_r")
    stored = CheckpointEmbedder(f"{tmp_path}/white/checkpoints/step_00000012").model
    assert torch.equal(stored.whitening, matrix)
    assert result.step == 12


@pytest.mark.parametrize("fail_at", [4, 10, 11])
def test_interrupted_at_any_step_equals_never_interrupted(fail_at: int, glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *SMALL, "model.whitening=true", "checkpoint.every_steps=4")
    whole, _ = final_state(config, tmp_path / "whole")
    resumed, _ = final_state(config, tmp_path / "resumed", fail_at)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_non_finite_embedding_is_told_with_its_image(glyph_cache, tmp_path) -> None:
    embedder, images, rows = parts(glyph_cache)
    embedder.head[0].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        whiten(embedder, images, rows, 64, Replica(), CPU)
