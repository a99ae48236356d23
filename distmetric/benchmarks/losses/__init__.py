"""Our losses beside pytorch-metric-learning's."""
