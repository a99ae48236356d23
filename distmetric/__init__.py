"""distmetric: Ray-distributed, large-batch deep metric learning."""

__version__ = "0.1.0"
