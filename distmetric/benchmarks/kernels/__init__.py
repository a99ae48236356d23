"""Rows of distances on a GPU: by kernels and by blocks, beside a bare matmul."""
