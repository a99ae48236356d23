"""Training with attributes of the catalog: they are learned, kept in checkpoints, and exact on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.jobs import EmbedJob, EvaluateJob
from distmetric.config.schema import Config
from distmetric.data.attributes import attribute_targets
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.decode import ImageStore
from distmetric.distributed import Replica
from distmetric.errors import InputError
from distmetric.inference.embed import embed_source
from distmetric.inference.evaluate import run_evaluation
from distmetric.training import worker as worker_module
from distmetric.training.batches import BatchLoader
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.run_data import build_sampler, known_attributes, open_data
from distmetric.training.saved_model import load_embedder
from processes import run_ranks
from runs import CPU, ListTracker, run_once, tiny_config

AITL = ("loss=aitl", "model.widths=[8, 8]", "model.embedding_dim=16")
ACCURACY = "train/attributes/attribute_accuracy"


LEARNING = ("optim.lr=0.01", "schedule.warmup_steps=5", "model.attributes_detached=false")


@pytest.fixture(scope="module")
def trained(glyph_cache, tmp_path_factory):
    config = tiny_config(glyph_cache, "loss=aitl", "train.steps=100", "eval.every_steps=50", *LEARNING)
    folder = tmp_path_factory.mktemp("aitl")
    worker, result, tracker = run_once(config, folder)
    return folder, worker, result, tracker


def mean_of(series: dict[int, float], steps: range) -> float:
    return float(np.mean([series[step] for step in steps]))


def accuracy(embedder, catalog: Catalog, rows: np.ndarray) -> tuple[float, float]:
    """Mean over attributes of the right predictions of some rows, and of always guessing the most frequent value."""
    images = ImageStore(catalog, 28, 1, rows=rows).images(rows)
    with torch.no_grad():
        _, logits = embedder.eval()(images, with_attributes=True)
    targets = attribute_targets(catalog, embedder.attribute_values)
    right = [np.mean(part.argmax(1).numpy() == targets[name][rows]) for name, part in logits.items()]
    guessed = [np.bincount(targets[name][rows]).max() / len(rows) for name in logits]
    return float(np.mean(right)), float(np.mean(guessed))


def test_the_recipe_learns_identities_and_attributes(trained) -> None:
    _, worker, _, tracker = trained
    losses, accuracies = tracker.series("train/loss"), tracker.series(ACCURACY)
    assert mean_of(losses, range(91, 101)) < 0.8 * mean_of(losses, range(1, 11))
    assert mean_of(accuracies, range(91, 101)) > 0.1 + mean_of(accuracies, range(1, 11))
    assert tracker.series("eval/recall_at_1")[100] > 0.6
    found, guessed = accuracy(worker.embedder, worker.catalog, worker.test_rows)
    assert found > guessed + 0.08


def test_a_checkpoint_predicts_what_the_trained_model_did(trained) -> None:
    folder, worker, _, _ = trained
    last = read_checkpoint(f"{folder}/checkpoints/step_00000100")
    embedder, config = load_embedder(last)
    assert embedder.attribute_values == {name: ["no", "yes"] for name in ("serif", "mono", "bold", "italic")}
    assert config.model.attributes == list(embedder.attribute_values)
    images = torch.rand(4, 1, 28, 28)
    expected, expected_logits = worker.embedder.eval()(images, with_attributes=True)
    embeddings, logits = embedder(images, with_attributes=True)
    assert torch.equal(embeddings, expected)
    assert all(torch.equal(logits[name], expected_logits[name]) for name in expected_logits)


def test_jobs_take_checkpoints_of_models_with_attributes(trained, tmp_path) -> None:
    folder, worker, result, _ = trained
    found = run_evaluation(EvaluateJob(checkpoint=str(folder)))
    assert found["metrics"] == pytest.approx(result.metrics, abs=1e-9)
    out = tmp_path / "e.parquet"
    job = EmbedJob(checkpoint=result.checkpoint, source=str(worker.catalog.path), out=str(out), split="test")
    assert embed_source(job)["rows"] == len(worker.test_rows)


def final_state(cache, run_dir, fail_at: int | None) -> tuple[list[np.ndarray], dict[int, float]]:
    config = tiny_config(cache, "train.log_every=3", *AITL)
    if fail_at is not None:
        with pytest.raises(InterruptedError):
            run_once(config, run_dir, ListTracker(fail_at))
    worker, _, tracker = run_once(config, run_dir)
    return [tensor.numpy().copy() for tensor in worker.embedder.state_dict().values()], tracker.series(
        "train/loss"
    )


def test_interrupted_and_resumed_equals_never_interrupted(glyph_cache, tmp_path) -> None:
    whole, losses = final_state(glyph_cache, tmp_path / "whole", None)
    resumed, replayed = final_state(glyph_cache, tmp_path / "resumed", 14)
    assert min(replayed) == 11
    assert replayed == {step: loss for step, loss in losses.items() if step >= 11}
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)


def five_steps(
    replica: Replica, cache, run_dir
) -> tuple[dict[int, float], dict[int, float], list[np.ndarray]]:
    exact = (
        "train.steps=5",
        "train.precision=float64",
        "model.norm=sync_batch",
        "sampler.classes_per_batch=7",
    )
    config = tiny_config(cache, *AITL, *exact, "model.attributes_detached=false")
    worker, _, tracker = run_once(config, run_dir, replica=replica)
    weights = [parameter.detach().numpy() for parameter in worker.embedder.parameters()]
    return tracker.series("train/loss"), tracker.series(ACCURACY), weights


@pytest.mark.parametrize("world_size", [2, 3])
def test_world_size_invariance_of_training_with_attributes(world_size, glyph_cache, tmp_path) -> None:
    losses, accuracies, weights = five_steps(Replica(), glyph_cache, tmp_path / "one")
    many = run_ranks(world_size, five_steps, glyph_cache, tmp_path / "many")
    assert many[0][0] == pytest.approx(losses, abs=1e-9)
    assert many[0][1] == pytest.approx(accuracies, abs=1e-12)
    for rank in many:
        for ours, single in zip(rank[2], weights, strict=True):
            np.testing.assert_allclose(ours, single, rtol=0, atol=1e-8)


def test_ranks_get_the_values_of_their_rows(glyph_cache) -> None:
    config = tiny_config(glyph_cache, *AITL)
    catalog = open_data(config.data)
    rows = catalog.rows("train")
    sampler, store = build_sampler(config, catalog), ImageStore(catalog, 28, 1, rows=rows)
    values = known_attributes(config, catalog)
    assert list(values) == ["serif", "mono", "bold", "italic"]
    loaders = [BatchLoader(sampler, catalog, store, rows, Replica(rank, 2), CPU, values) for rank in range(2)]
    parts = [loader.get(3) for loader in loaders]
    for name, known in values.items():
        for part in parts:
            numbers = part.rows.attributes[name]
            assert numbers.dtype == torch.int64
            assert [known[number] for number in numbers] == catalog.attribute(name)[sampler.batch(3)].tolist()
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="module")
def sparse(glyph_cache, tmp_path_factory) -> Catalog:
    """Glyphs of which every third image has the attribute bold, and ten of the training split a hand."""
    glyphs = open_data(tiny_config(glyph_cache).data)
    path = tmp_path_factory.mktemp("sparse") / "sparse.arrow"
    train, bold = glyphs.rows("train").tolist(), glyphs.attribute("bold")
    handed = set(train[:10])
    with CatalogWriter(path) as writer:
        for row in range(len(glyphs)):
            known = {"bold": bold[row] if row % 3 == 0 else None, "hand": "left" if row in handed else None}
            split = "train" if row in train else "test"
            name, image = glyphs.label_names[glyphs.labels[row]], glyphs.image_bytes(row)
            size = {"width": 28, "height": 28}
            writer.add(image, name, group="all", path=str(row), split=split, attributes=known, **size)
    return Catalog.open(path)


def sparse_config(catalog: Catalog, irrelevant: str, relevant: str, *more: str) -> Config:
    overrides = (
        *("debug=tiny", "tracking=none", "data=catalog", f"data.path={catalog.path}", *AITL),
        f"model.attributes=[{irrelevant},{relevant}]",
        f"loss.parts.irrelevant.loss.attributes=[{irrelevant}]",
        f"loss.parts.relevant.loss.attributes=[{relevant}]",
        *more,
    )
    return decode(Config, compose("config", overrides))


def test_rows_without_a_value_train_the_rest(sparse, tmp_path) -> None:
    worker, _, tracker = run_once(
        sparse_config(sparse, "bold", "hand", "train.steps=40", *LEARNING), tmp_path
    )
    assert worker.embedder.attribute_values == {"bold": ["no", "yes"], "hand": ["left"]}
    unknown = attribute_targets(sparse, worker.attribute_values)["bold"][worker.train_rows] < 0
    assert 0.6 < unknown.mean() < 0.72
    losses, accuracies = tracker.series("train/loss"), tracker.series(ACCURACY)
    assert mean_of(losses, range(31, 41)) < 0.9 * mean_of(losses, range(1, 11))
    assert len(accuracies) == 40  # of the few that are known; where there is none it would not be logged


def test_true_values_are_compared_without_a_head_for_them(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, "loss=attribute_identity_hard", "train.steps=120", "optim.lr=0.01")
    untrained = worker_module.Worker(config, str(tmp_path / "untrained"), ListTracker(), Replica(), CPU)
    before = untrained._evaluate().metrics.recall_at[1]
    worker, result, _ = run_once(config, tmp_path / "trained")
    assert worker.embedder.attribute_values == {}
    # Not the loss, which is that of ever other pairs: the hardest ones.
    assert result.metrics["recall_at_1"] > before + 0.02


def test_an_attribute_that_the_catalog_has_not_is_one_line(sparse, tmp_path) -> None:
    with pytest.raises(InputError, match=r"no attribute is called 'hat'; choose one of: bold, hand$"):
        run_once(sparse_config(sparse, "bold", "hat"), tmp_path)


def test_a_run_is_not_resumed_with_other_attribute_values(sparse, tmp_path, monkeypatch) -> None:
    config = sparse_config(sparse, "bold", "hand")
    run_once(config, tmp_path)
    others = {"bold": ["never", "yes"], "hand": ["left"]}
    monkeypatch.setattr(worker_module, "known_attributes", lambda *_: others)
    with pytest.raises(InputError, match="attribute values of the data have changed since"):
        run_once(config, tmp_path)
