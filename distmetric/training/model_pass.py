"""The way of a batch through the model and of its gradient back: all rows of a worker at once, or in chunks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distmetric.config.chunks import chunked_norm_notice
from distmetric.config.schema import Config
from distmetric.data.augment import AugmentSpec, augment
from distmetric.distributed.gradient_cache import GradientCache
from distmetric.distributed.parallel import parallel
from distmetric.distributed.replica import Replica
from distmetric.models.compiled import compiled
from distmetric.models.embedder import Embedder
from distmetric.training.batches import Batch
from distmetric.training.chunk_size import chosen_chunk_size, rows_of_rank, trains_batch_norm


class AugmentedImages:
    """Images of a batch, augmented when a part of them is asked for; asked again, it is the same part again.

    Args:
        batch: Their batch, which holds them as bytes.
        spec: What is done to them.
        seed: Of the run.
        step: At which they are used.
        dtype: Of the images that come out.
    """

    def __init__(self, batch: Batch, spec: AugmentSpec, seed: int, step: int, dtype: torch.dtype) -> None:
        self._batch, self._dtype = batch, dtype
        self._how = (spec, seed, step)

    def __len__(self) -> int:
        return len(self._batch.ids)

    def __getitem__(self, part: slice) -> Tensor:
        """Some of the images, (n, C, H, W), or clips, (n, T, C, H, W)."""
        return augment(self._batch.images[part], *self._how, self._batch.ids[part]).to(self._dtype)


class ModelPass:
    """Takes batches through the model and gradients back.

    In chunks, the trunk sees one chunk of images after the other, without a graph; the head, whose norm is that of the
    joint batch, and the loss see all rows, as always; then the trunk sees each chunk again, with a graph, and takes its
    share of the gradient. Activations, and images as numbers with fractions, are those of one chunk at a time, whatever
    the batch. Embeddings, loss and gradients are those of all rows at once, up to the order of sums.

    Args:
        config: The whole run.
        embedder: What is trained.
        replica: Who this rank is. Ranks may have different numbers of chunks: between them nothing is exchanged.
        device: Where the model is.
        recorded: What `record` said in the checkpoint that is gone on from.

    Attributes:
        chunk_size: Most images of a chunk; None for all rows at once.
        not_averaged: Parameters of the model whose gradients `backward` leaves those of this rank.
        notice: What chunks of a set size change in this model; empty where that is nothing.

    Raises:
        ConfigError: If the trunk has norms that chunks would change and must not.
        ResourceError: With train.chunk_size=auto, if not even one image fits; with train.compile, if nothing can be
            compiled here.
    """

    def __init__(
        self,
        config: Config,
        embedder: Embedder,
        replica: Replica,
        device: torch.device,
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._embedder, self._replica, self._device = config, embedder, replica, device
        self._dtype = torch.float64 if config.train.precision == "float64" else torch.float32
        self._at_once: nn.Module | None = None
        self._cache: GradientCache | None = None
        self.not_averaged, self.notice = list[nn.Parameter](), ""
        self.chunk_size = chosen_chunk_size(
            config, embedder.before_head(), self._features, replica, device, recorded
        )
        if config.train.compile:
            embedder.use_compiled(compiled(embedder.trunk, device))
        if self.chunk_size is None:
            self._at_once = parallel(embedder, replica, device)
            return
        # Not in DistributedDataParallel, which would average the gradient of every chunk.
        self.not_averaged += embedder.parameters()
        if self.chunk_size < (rows := rows_of_rank(config, replica)) and trains_batch_norm(
            embedder.before_head()
        ):
            self.notice = chunked_norm_notice(self.chunk_size, rows)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the chunk size: it, and for how many ranks it is."""
        return {"chunk_size": self.chunk_size, "world_size": self._replica.world_size}

    def images(self, batch: Batch, step: int) -> Tensor | AugmentedImages:
        """The images of a step, augmented: at once, or each part when it is asked for."""
        config = self._config
        images = AugmentedImages(batch, config.augment, config.seed, step, self._dtype)
        return images[:] if self.chunk_size is None else images

    def forward(self, images: Tensor | AugmentedImages) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (B, D) and each attribute's logits (B, V) of this rank's images."""
        if self._at_once is not None:
            with self._autocast():
                found: tuple[Tensor, dict[str, Tensor]] = self._at_once(images, with_attributes=True)
            return found
        assert self.chunk_size is not None, "one or the other"
        self._cache = GradientCache(
            lambda part: self._features(images[part]),
            len(images),
            self.chunk_size,
            self._embedder,
            self._device,
        )
        with self._autocast():
            return self._embedder.from_features(self._cache.rows)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss to the parameters; once per `forward`."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self._cache is not None:
            self._cache.backward()
            self._cache = None

    def _features(self, images: Tensor) -> Tensor:
        # A context for each chunk: weights that autocast has converted without a graph serve no later chunk.
        with self._autocast():
            return self._embedder.features(images)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision of the trunk; embeddings, similarities and loss stay in float32."""
        if self._config.train.precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()
