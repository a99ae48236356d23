"""distmetric: Ray-distributed, large-batch deep metric learning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmetric import index, losses, miners, samplers
    from distmetric.cluster.fit import fit
    from distmetric.config.training import load_config
    from distmetric.data.catalog import Catalog
    from distmetric.distributed.loss import DistributedLoss
    from distmetric.distributed.replica import Replica
    from distmetric.evaluation.retrieval import evaluate
    from distmetric.models.embedder import Embedder

__version__ = "0.1.0"

__all__ = [
    "Catalog",
    "DistributedLoss",
    "Embedder",
    "Replica",
    "__version__",
    "evaluate",
    "fit",
    "index",
    "load_config",
    "losses",
    "miners",
    "samplers",
]

# Looked up at first use (PEP 562): importing the package must not start what only some of its parts need.
_SUBMODULES = ("index", "losses", "miners", "samplers")
_HOMES = {
    "Catalog": "distmetric.data.catalog",
    "DistributedLoss": "distmetric.distributed.loss",
    "Embedder": "distmetric.models.embedder",
    "Replica": "distmetric.distributed.replica",
    "evaluate": "distmetric.evaluation.retrieval",
    "fit": "distmetric.cluster.fit",
    "load_config": "distmetric.config.training",
}


if not TYPE_CHECKING:  # which would take any name to be here

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"distmetric.{name}")
        if name in _HOMES:
            value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
            return value
        raise AttributeError(f"module 'distmetric' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
