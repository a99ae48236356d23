"""Embedding many images, and sharded evaluation."""

from __future__ import annotations

import pytest
import torch

import distmetric
from distmetric.config.schema import EvalConfig
from distmetric.data.decode import ImageStore
from distmetric.distributed import Replica
from distmetric.evaluation import RetrievalMetrics
from distmetric.models.build import build_embedder
from distmetric.training.embedding import embed, evaluate_sharded
from distmetric.training.run_data import open_data
from processes import run_ranks
from runs import CPU, tiny_config


def parts(cache):
    config = tiny_config(cache, "model.widths=[8, 8]")
    catalog = open_data(config.data)
    rows = catalog.rows("test")
    return build_embedder(config.model, 0), ImageStore(catalog, 28, 1, rows=rows), rows, catalog.labels[rows]


def sharded(replica: Replica, cache) -> RetrievalMetrics:
    embedder, images, rows, labels = parts(cache)
    config = EvalConfig(ks=[1, 5], batch_size=64, resamples=50)
    return evaluate_sharded(embedder, images, rows, labels, config, 7, replica, CPU).metrics


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sharded_evaluation_equals_the_whole(world_size, glyph_cache) -> None:
    embedder, images, rows, labels = parts(glyph_cache)
    embeddings = embed(embedder, images, rows, 1000, CPU)
    whole = distmetric.evaluate(embeddings, labels, ks=[1, 5], resamples=50, seed=7)
    found = run_ranks(world_size, sharded, glyph_cache)
    assert all(metrics == found[0] for metrics in found)
    assert found[0].to_dict() == pytest.approx(whole.to_dict(), abs=1e-9)
    for name, interval in whole.intervals.items():
        assert found[0].intervals[name] == pytest.approx(interval, abs=1e-9)


def test_embedding_leaves_the_mode_and_needs_no_gradient(glyph_cache) -> None:
    embedder, images, rows, _ = parts(glyph_cache)
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    found = embed(embedder, images, rows[:10], 4, CPU)
    assert found.shape == (10, 32)
    assert not found.requires_grad
    assert embedder.training
    assert all(torch.equal(value, before[name]) for name, value in embedder.state_dict().items())
    torch.testing.assert_close(found, embed(embedder, images, rows[:10], 100, CPU))
