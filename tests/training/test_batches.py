"""Ranks' slices of the planned batches, as tensors."""

from __future__ import annotations

import numpy as np
import torch

from distmetric.data.decode import ImageStore
from distmetric.distributed import Replica
from distmetric.training.batches import BatchLoader
from distmetric.training.run_data import build_sampler, open_data
from runs import CPU, tiny_config


def test_the_ranks_slices_are_the_planned_batch_with_training_labels(glyph_cache) -> None:
    config = tiny_config(glyph_cache)
    catalog = open_data(config.data)
    rows = catalog.rows("train")
    sampler, store = build_sampler(config, catalog), ImageStore(catalog, 28, 1, rows=rows)
    loaders = [BatchLoader(sampler, catalog, store, rows, Replica(rank, 3), CPU) for rank in range(3)]
    for step in (0, 1, 5):  # the next, and one that was not read ahead
        parts = [loader.get(step) for loader in loaders]
        plan = sampler.batch(step)
        assert [len(part.labels) for part in parts] == parts[0].sizes == [11, 11, 10]
        np.testing.assert_array_equal(torch.cat([part.ids for part in parts]), catalog.ids[plan])
        assert torch.equal(torch.cat([part.images for part in parts]), store.images(plan))
        names = {}
        for label, row in zip(torch.cat([part.labels for part in parts]).tolist(), plan, strict=True):
            assert names.setdefault(label, catalog.labels[row]) == catalog.labels[row]
            assert 0 <= label < len(np.unique(catalog.labels[rows]))
    for loader in loaders:
        loader.close()
