"""Ranks' slices of the planned batches, as tensors."""

from __future__ import annotations

import numpy as np
import pytest
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
        assert [len(part.ids) for part in parts] == parts[0].rows.sizes == [11, 11, 10]
        np.testing.assert_array_equal(torch.cat([part.ids for part in parts]), catalog.ids[plan])
        assert torch.equal(torch.cat([part.images for part in parts]), store.images(plan))
        names = {}
        for label, row in zip(parts[0].rows.labels.tolist(), plan, strict=True):
            assert names.setdefault(label, catalog.labels[row]) == catalog.labels[row]
            assert 0 <= label < len(np.unique(catalog.labels[rows]))
        for rank, part in enumerate(parts):  # everybody knows of everybody
            np.testing.assert_array_equal(part.rows.labels, parts[0].rows.labels)
            np.testing.assert_array_equal(part.rows.host_labels, part.rows.labels)
            np.testing.assert_array_equal(part.rows.ids, catalog.ids[plan])
            np.testing.assert_array_equal(part.rows.ids[part.rows.slice_of(rank)], part.ids)
    for loader in loaders:
        loader.close()


class Planned:
    """A sampler that has planned so many steps, and notes which it was asked for."""

    batch_size = 2

    def __init__(self, planned: int) -> None:
        self.planned, self.asked = planned, []

    def is_planned(self, step: int) -> bool:
        return step < self.planned

    def batch(self, step: int) -> np.ndarray:
        assert step < self.planned
        self.asked.append(step)
        return np.array([step, step + 1])


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_steps_are_read_ahead_as_far_as_they_are_planned_and_once(glyph_cache, prefetch) -> None:
    catalog = open_data(tiny_config(glyph_cache).data)
    sampler, store = Planned(4), ImageStore(catalog, 28, 1)
    every = np.arange(len(catalog))
    loader = BatchLoader(sampler, catalog, store, every, Replica(), CPU, prefetch=prefetch)
    for step in range(6):
        sampler.planned = max(sampler.planned, step + 1)
        assert torch.equal(loader.get(step).images, store.images(np.array([step, step + 1])))
        loader._thread.submit(lambda: None).result()  # what was begun is done
        assert sampler.asked == list(range(max(min(step + prefetch + 1, sampler.planned), step + 1)))
    loader.close()
