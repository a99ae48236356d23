"""Who goes into the next global batch: plans of catalog rows, the same on every rank."""

from distmetric.samplers.back_off import BackOff, BackOffConfig
from distmetric.samplers.batch_sampler import BatchSampler
from distmetric.samplers.hard_neighbors import HardNeighborSampler, HardNeighborSamplerConfig
from distmetric.samplers.pk import PKSampler, PKSamplerConfig
from distmetric.samplers.slices import rank_slice, slice_sizes

__all__ = [
    "BackOff",
    "BackOffConfig",
    "BatchSampler",
    "HardNeighborSampler",
    "HardNeighborSamplerConfig",
    "PKSampler",
    "PKSamplerConfig",
    "rank_slice",
    "slice_sizes",
]
