"""A trained embedder at work outside of training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.inference.device import best_device
from distmetric.inference.images import BATCH_SIZE, BadImages, ImageRows, image_batches
from distmetric.training.checkpoint import find_checkpoint
from distmetric.training.saved_model import load_embedder


class CheckpointEmbedder:
    """The embedder of a checkpoint, in evaluation mode and float32, on the best device there is.

        embedder = CheckpointEmbedder("outputs/NAME")
        for rows, embeddings in embedder.batches("photos/", bad=[]):
            ...                                   # rows.ids, rows.paths, rows.label_names, rows.extras; (B, D) float32
        vectors = embedder.embed(images)          # (B, C, H, W) uint8 as `image_batches` gives them

    Its `checkpoint` (with `location`, `step`, `meta`), the whole `config` of the run that made it, `device` and `dim`
    are there to be read.

    Args:
        location: Folder of a checkpoint, or of a run (its best one); a path or URI.
        device: Where to compute; None for the GPU where there is one.
        allow_custom_targets: Whether its trunk may be code outside this package, which is imported and run.

    Raises:
        InputError: If there is no such checkpoint, or it is damaged.
        ConfigError: If its trunk is code outside this package, and that is not allowed.
    """

    def __init__(
        self, location: str, device: torch.device | str | None = None, *, allow_custom_targets: bool = False
    ) -> None:
        self.device = best_device() if device is None else torch.device(device)
        self.checkpoint = find_checkpoint(location)
        embedder, self.config = load_embedder(
            self.checkpoint, self.device, allow_custom_targets=allow_custom_targets
        )
        self.model = embedder.float()
        self.dim = self.model.embedding_dim

    @torch.no_grad()
    def embed(self, images: Tensor) -> NDArray[np.float32]:
        """Embed a batch.

        Args:
            images: (B, C, H, W) uint8, or floating point in [0, 1], of the model's size; on any device.

        Returns:
            (B, D) float32.
        """
        embeddings: Tensor = self.model(images.to(self.device))
        return embeddings.float().cpu().numpy()

    def batches(
        self,
        source: str,
        *,
        split: str | None = None,
        batch_size: int = BATCH_SIZE,
        bad: BadImages | None = None,
    ) -> Iterator[tuple[ImageRows, NDArray[np.float32]]]:
        """Embed all images of a source, as `image_batches` reads them.

        Yields:
            Images with their embeddings, (B, D) float32.

        Raises:
            InputError: As `image_batches`.
        """
        found = image_batches(source, self.config.model, split=split, batch_size=batch_size, bad=bad)
        return self.embedded(found)

    def embedded(self, batches: Iterator[ImageRows]) -> Iterator[tuple[ImageRows, NDArray[np.float32]]]:
        """Embed batches, the next one being decoded meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            coming: Future[ImageRows | None] = reader.submit(next, batches, None)
            while (rows := coming.result()) is not None:
                coming = reader.submit(next, batches, None)
                yield rows, self.embed(rows.images)
