"""Benchmarks: time and memory of what is said to be fast, beside its peers and a bare matmul on the same machine."""
