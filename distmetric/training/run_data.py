"""What a run trains and is measured on: its catalog, the labels and attributes in it, and its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distmetric.config.attributes import attribute_names
from distmetric.config.schema import (
    DEFAULT_CACHE,
    CatalogDataConfig,
    Config,
    DataConfig,
    GlyphsDataConfig,
)
from distmetric.data.attributes import attribute_values
from distmetric.data.catalog import Catalog
from distmetric.data.clips import ClipStore, SampleStore, check_has_tracklets, held_frames, sample_rows
from distmetric.data.decode import ImageStore
from distmetric.data.glyphs import glyph_catalog
from distmetric.data.moving_glyphs import moving_glyph_catalog
from distmetric.data.tracklets import FrameSampling
from distmetric.samplers.hard_neighbors import HardNeighborSampler, HardNeighborSamplerConfig
from distmetric.samplers.pk import PKSampler


def open_data(config: DataConfig) -> Catalog:
    """The catalog of a configuration; the built-in one is drawn if this machine does not have it yet."""
    if isinstance(config, CatalogDataConfig):
        return Catalog.open(config.path)
    folder = config.cache_dir or Path(DEFAULT_CACHE).expanduser()
    common = (config.size, config.seed, config.test_fraction, config.max_classes)
    if isinstance(config, GlyphsDataConfig):
        return Catalog.open(glyph_catalog(folder, *common))
    return Catalog.open(
        moving_glyph_catalog(folder, *common, config.tracklets_per_class, config.frames_per_tracklet)
    )


def split_rows(config: Config, catalog: Catalog, split: str) -> NDArray[np.int64]:
    """The rows of a split that its samples are known by: images, or the first frames of tracklets; ascending.

    Raises:
        InputError: If the catalog has no such split, or clips are wanted and it has no tracklets.
    """
    check_has_tracklets(catalog, config.model.frames_per_clip)
    return sample_rows(catalog, split, config.model.frames_per_clip)


def both_splits(config: Config, catalog: Catalog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`split_rows` of the training split and of the test split."""
    data = config.data
    return split_rows(config, catalog, data.train_split), split_rows(config, catalog, data.test_split)


def sample_store(
    config: Config,
    catalog: Catalog,
    rows: NDArray[np.int64],
    *,
    threads: int | None = None,
    shared: bool = False,
) -> SampleStore:
    """What reads the samples of a run, as its model takes them.

    Args:
        config: The whole run.
        catalog: Its data.
        rows: Rows of samples to hold in memory, if there is room.
        threads: That decode; by default as many as pay.
        shared: Whether the processes of this machine hold them together.
    """
    model, data = config.model, config.data
    images = ImageStore(
        catalog,
        model.image_sides,
        model.channels,
        memory_limit_bytes=int(data.memory_limit_gib * (1 << 30)),
        threads=threads,
        rows=held_frames(catalog, rows, model.frames_per_clip),
        shared=shared,
    )
    if model.frames_per_clip is None:
        return images
    assert not isinstance(data, GlyphsDataConfig), "validation lets no clips of them pass"
    sampling = FrameSampling(data.frame_sampling, data.frame_stride)
    return ClipStore(images, model.frames_per_clip, sampling, config.seed)


def build_sampler(config: Config, catalog: Catalog) -> PKSampler | HardNeighborSampler:
    """The sampler over the training split.

    Raises:
        ConfigError: If the classes of the split cannot fill its batches.
    """
    if not isinstance(config.sampler, HardNeighborSamplerConfig):
        return random_sampler(config, catalog)
    rows = split_rows(config, catalog, config.data.train_split)
    return HardNeighborSampler(rows, catalog.labels[rows], config.sampler, config.seed)


def random_sampler(config: Config, catalog: Catalog) -> PKSampler:
    """Random batches over the training split, of the composition that the sampler's have."""
    rows, sampler = split_rows(config, catalog, config.data.train_split), config.sampler
    return PKSampler(
        rows, catalog.labels[rows], sampler.classes_per_batch, sampler.samples_per_class, seed=config.seed
    )


def training_labels(catalog: Catalog, split: str, frames: int | None = None) -> NDArray[np.int64]:
    """Labels of a split's samples, images or clips of frames, numbered 0..C-1, as losses and the index have them."""
    labels = catalog.labels[sample_rows(catalog, split, frames)]
    numbers: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1]
    return numbers.astype(np.int64)


def known_attributes(config: Config, catalog: Catalog) -> dict[str, list[str]]:
    """The attributes that the run needs, each with the values that it takes in the training split.

    Raises:
        InputError: If the catalog has no such attribute, or no values of it, or the frames of a tracklet differ in it.
    """
    names = attribute_names(config)
    found = attribute_values(catalog, split_rows(config, catalog, config.data.train_split), names)
    if config.model.frames_per_clip is not None:
        for name in names:
            catalog.tracklets.check_agree(f"attribute {name}", catalog.attribute(name))
    return found


def held_rows(*splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows a worker will ask for, once each."""
    return np.unique(np.concatenate(splits))
