"""Actors that embed the training set with a copy of the weights, while training goes on with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from distmetric.cluster.index_messages import Ack, ActorHandle, Rows, by_holder
from distmetric.cluster.index_shard import log_in_one_line, make_way
from distmetric.cluster.weights import Packed, unpack_weights
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.index.config import SweepIndexConfig
from distmetric.models.build import build_embedder
from distmetric.samplers.slices import rank_slice
from distmetric.training.embedding import embed
from distmetric.training.run_data import (
    known_attributes,
    open_data,
    sample_store,
    split_rows,
    training_labels,
)


class SweepWorker:
    """Embeds its share of the training split, without augmentation and in evaluation mode.

    Args:
        config: The whole run, as `config_dict` gives it.
        place: Which share this is.
        shares: Number of shares.
    """

    def __init__(self, config: dict[str, Any], place: int, shares: int) -> None:
        log_in_one_line()
        run = decode(Config, config)
        assert isinstance(run.index, SweepIndexConfig)
        torch.set_num_threads(max(1, int(run.index.worker_cpus)))
        if run.index.worker_cpus == 0:
            make_way()
        on_gpu = run.index.worker_gpus > 0 and torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._batch_size = run.index.batch_size
        catalog = open_data(run.data)
        rows = split_rows(run, catalog, run.data.train_split)
        frames = run.model.frames_per_clip
        self._labels = training_labels(catalog, run.data.train_split, frames).astype(np.int32)
        self._places = rank_slice(np.arange(len(rows)), place, shares)
        self._rows = rows[self._places]
        self._images = sample_store(run, catalog, self._rows)
        attributes = known_attributes(run, catalog)
        self._embedder = build_embedder(
            run.model, run.seed, Replica(), attributes, allow_custom_targets=run.allow_custom_targets
        ).to(self._device)

    def embed(self, step: int, weights: Packed, holders: Sequence[ActorHandle]) -> bool:
        """Embed the share and push it to the index.

        Args:
            step: Steps that the weights had done.
            weights: What `pack_weights` gave.
            holders: Actors that hold embeddings, class c at `holders[c % len(holders)]`.

        Returns:
            Whether the index took all of them; False if it wanted no more of this step.
        """
        self._embedder.load_state_dict(unpack_weights(weights))
        sent: list[Any] = []
        for start in range(0, len(self._rows), self._batch_size):
            part = slice(start, start + self._batch_size)
            found = embed(self._embedder, self._images, self._rows[part], self._batch_size, self._device)
            # One batch is on its way while the next is embedded; a slower index slows the sweep down.
            if not _wanted(sent):
                return False
            sent = self._push(step, self._places[part], found.float().cpu().numpy(), holders)
        return _wanted(sent)

    def _push(
        self, step: int, places: Rows, embeddings: np.ndarray[Any, Any], holders: Sequence[ActorHandle]
    ) -> list[Any]:
        parts = by_holder(places, self._labels, len(holders))
        return [holders[holder].push.remote(step, places[part], embeddings[part]) for holder, part in parts]


def _wanted(sent: list[Any]) -> bool:
    acks: list[Ack] = ray.get(sent)
    return all(ack.wanted for ack in acks)
