"""What a run trains and is measured on: its catalog, the labels and attributes in it, and its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distmetric.config.attributes import attribute_names
from distmetric.config.schema import DEFAULT_CACHE, Config, DataConfig, GlyphsDataConfig
from distmetric.data.attributes import attribute_values
from distmetric.data.catalog import Catalog
from distmetric.data.glyphs import glyph_catalog
from distmetric.samplers.hard_neighbors import HardNeighborSampler, HardNeighborSamplerConfig
from distmetric.samplers.pk import PKSampler


def open_data(config: DataConfig) -> Catalog:
    """The catalog of a configuration; the built-in one is drawn if this machine does not have it yet."""
    if isinstance(config, GlyphsDataConfig):
        path = glyph_catalog(
            config.cache_dir or Path(DEFAULT_CACHE).expanduser(),
            size=config.size,
            seed=config.seed,
            test_fraction=config.test_fraction,
            max_classes=config.max_classes,
        )
        return Catalog.open(path)
    return Catalog.open(config.path)


def build_sampler(config: Config, catalog: Catalog) -> PKSampler | HardNeighborSampler:
    """The sampler over the training split.

    Raises:
        ConfigError: If the classes of the split cannot fill its batches.
    """
    rows = catalog.rows(config.data.train_split)
    labels = catalog.labels[rows]
    if isinstance(config.sampler, HardNeighborSamplerConfig):
        return HardNeighborSampler(rows, labels, config.sampler, config.seed)
    return random_sampler(config, catalog)


def random_sampler(config: Config, catalog: Catalog) -> PKSampler:
    """Random batches over the training split, of the composition that the sampler's have."""
    rows, sampler = catalog.rows(config.data.train_split), config.sampler
    return PKSampler(
        rows, catalog.labels[rows], sampler.classes_per_batch, sampler.samples_per_class, seed=config.seed
    )


def training_labels(catalog: Catalog, split: str) -> NDArray[np.int64]:
    """Labels of a split's rows numbered 0..C-1, as losses and the index have them."""
    numbers: NDArray[np.int64] = np.unique(catalog.labels[catalog.rows(split)], return_inverse=True)[1]
    return numbers.astype(np.int64)


def known_attributes(config: Config, catalog: Catalog) -> dict[str, list[str]]:
    """The attributes that the run needs, each with the values that it takes in the training split.

    Raises:
        InputError: If the catalog has no such attribute, or no values of it.
    """
    return attribute_values(catalog, catalog.rows(config.data.train_split), attribute_names(config))


def held_rows(*splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows a worker will ask for, once each."""
    return np.unique(np.concatenate(splits))
