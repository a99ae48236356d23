"""Benchmarks: how long our losses take and how much memory, beside pytorch-metric-learning's on the same machine."""
