"""Who goes into the next global batch: plans of catalog rows, the same on every rank."""

from distmetric.samplers.pk import PKSampler, PKSamplerConfig
from distmetric.samplers.slices import rank_slice, slice_sizes

__all__ = ["PKSampler", "PKSamplerConfig", "rank_slice", "slice_sizes"]
