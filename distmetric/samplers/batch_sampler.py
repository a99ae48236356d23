"""What training asks of a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distmetric.errors import ConfigError

Rows = NDArray[np.int64]


class BatchSampler(Protocol):
    """Plans global batches, the same ones on every rank and for any number of ranks."""

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""

    def batch(self, step: int) -> Rows:
        """Catalog rows of the global batch of a step, (batch_size,), grouped by class."""

    def is_planned(self, step: int) -> bool:
        """Whether the batch of a step that is to come can be asked for already."""

    def state_dict(self, step: int) -> dict[str, Any]:
        """All that it takes, beside data and settings, to go on with that step: plain containers and tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another sampler was.

        Raises:
            ConfigError: If that one's plan had other settings.
        """


def check_same_settings(own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse to go on with a plan that was made with other settings.

    Args:
        own: Settings that the plan depends on, by name; `name` is the sampler's, and `order` the number of the way in
            which this version of the package orders rows.
        state: The other sampler's state, which holds its settings beside other things.

    Raises:
        ConfigError: For the first that differs, with the value to set.
    """
    if state.get("order") != own["order"]:
        raise ConfigError(
            f"sampler={own['name']} orders rows in another way than the version of distmetric that wrote the "
            "checkpoint: resume the run with that version, or start a new one"
        )
    name, before = own["name"], state["name"]
    if name != before:
        raise ConfigError(
            f"sampler={name} differs from the checkpoint's {before}: set sampler={before} or start a new run"
        )
    for key, value in own.items():
        if key not in ("name", "order") and (before := state.get(key)) != value:
            raise ConfigError(
                f"sampler.{key}={value} differs from the checkpoint's {before}: "
                f"set sampler.{key}={before} or start a new run"
            )
