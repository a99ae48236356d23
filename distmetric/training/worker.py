"""The composition root of one training process: builds its parts, saves and restores them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric import __version__
from distmetric.config.attributes import attribute_names
from distmetric.config.schema import DEFAULT_CACHE, Config, DataConfig, GlyphsDataConfig
from distmetric.data.attributes import attribute_values
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore
from distmetric.data.glyphs import glyph_catalog
from distmetric.distributed.loss import DistributedLoss
from distmetric.distributed.parallel import average_buffers, parallel
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError, InputError, ResourceError, UserError
from distmetric.index.config import InlineIndexConfig
from distmetric.index.snapshot_store import SnapshotStore
from distmetric.index.source import SnapshotSource
from distmetric.losses.base import MetricLoss
from distmetric.losses.build import LossContext, build_loss
from distmetric.miners.base import Miner
from distmetric.miners.build import build_miner
from distmetric.models.build import build_embedder
from distmetric.progress import Counter, Progress
from distmetric.samplers.back_off import BackOff
from distmetric.samplers.hard_neighbors import HardNeighborSampler, HardNeighborSamplerConfig
from distmetric.samplers.pk import PKSampler
from distmetric.tracking.tracker import Tracker
from distmetric.training.batches import Batch, BatchLoader
from distmetric.training.checkpoint import Checkpoint, CheckpointStore
from distmetric.training.embedding import embed, evaluate_sharded
from distmetric.training.evaluations import Evaluation, write_evaluation
from distmetric.training.inline_index import InlineIndex
from distmetric.training.ledger import Ledger
from distmetric.training.monitor import Monitor
from distmetric.training.optimizer import build_optimizer
from distmetric.training.probe import HardnessProbe
from distmetric.training.rounds import Rounds
from distmetric.training.saved_model import config_dict, load_model


def open_data(config: DataConfig) -> Catalog:
    """The catalog of a configuration; the built-in one is drawn if this machine does not have it yet."""
    if isinstance(config, GlyphsDataConfig):
        path = glyph_catalog(
            config.cache_dir or Path(DEFAULT_CACHE).expanduser(),
            size=config.size,
            seed=config.seed,
            test_fraction=config.test_fraction,
            max_classes=config.max_classes,
        )
        return Catalog.open(path)
    return Catalog.open(config.path)


def build_sampler(config: Config, catalog: Catalog) -> PKSampler | HardNeighborSampler:
    """The sampler over the training split.

    Raises:
        ConfigError: If the classes of the split cannot fill its batches.
    """
    rows = catalog.rows(config.data.train_split)
    labels = catalog.labels[rows]
    if isinstance(config.sampler, HardNeighborSamplerConfig):
        return HardNeighborSampler(rows, labels, config.sampler, config.seed)
    return random_sampler(config, catalog)


def random_sampler(config: Config, catalog: Catalog) -> PKSampler:
    """Random batches over the training split, of the composition that the sampler's have."""
    rows, sampler = catalog.rows(config.data.train_split), config.sampler
    return PKSampler(
        rows, catalog.labels[rows], sampler.classes_per_batch, sampler.samples_per_class, seed=config.seed
    )


def training_labels(catalog: Catalog, split: str) -> NDArray[np.int64]:
    """Labels of a split's rows numbered 0..C-1, as losses and the index have them."""
    numbers: NDArray[np.int64] = np.unique(catalog.labels[catalog.rows(split)], return_inverse=True)[1]
    return numbers.astype(np.int64)


def known_attributes(config: Config, catalog: Catalog) -> dict[str, list[str]]:
    """The attributes that the run needs, each with the values that it takes in the training split.

    Raises:
        InputError: If the catalog has no such attribute, or no values of it.
    """
    return attribute_values(catalog, catalog.rows(config.data.train_split), attribute_names(config))


def best_store(config: Config, run_dir: str) -> CheckpointStore:
    """The checkpoints of the run in `run_dir`."""
    kept = config.checkpoint
    return CheckpointStore(f"{run_dir}/checkpoints", kept.keep_last, kept.best_metric)


class Worker:
    """The parts of one training process.

    Args:
        config: The whole run.
        run_dir: Folder of the run, a path or URI that all ranks reach.
        tracker: Where measurements go; asked on rank 0 only.
        replica: Who this process is.
        device: Where it computes.
        source: The index over the training set, where one was started for this run.
        progress: What is told how many steps are done; by default a line on rank 0's standard error.
    """

    def __init__(
        self,
        config: Config,
        run_dir: str,
        tracker: Tracker,
        replica: Replica,
        device: torch.device,
        source: SnapshotSource | None = None,
        progress: Counter | None = None,
    ) -> None:
        # what it works on
        self.config, self.run_dir, self.replica, self.device = config, run_dir, replica, device
        self.dtype = torch.float64 if config.train.precision == "float64" else torch.float32
        self.catalog = open_data(config.data)
        self.train_rows = self.catalog.rows(config.data.train_split)
        self.test_rows = self.catalog.rows(config.data.test_split)
        self.images = self._image_store()
        self.sampler = build_sampler(config, self.catalog)
        self.attribute_values = known_attributes(config, self.catalog)
        self.batches = BatchLoader(
            self.sampler, self.catalog, self.images, self.train_rows, replica, device, self.attribute_values
        )
        # what is learned, and how
        self.embedder = build_embedder(config.model, config.seed, replica, self.attribute_values)
        self.embedder.to(device, self.dtype)
        self.model = parallel(self.embedder, replica, device)
        miner = build_miner(config.miner, config.seed)
        self.criterion = DistributedLoss(self._loss(miner), replica, miner).to(device, self.dtype)
        self.optimizer = build_optimizer(config.optim, self.embedder, self.criterion)
        self.trained_parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # what watches and keeps
        self.tracker = tracker
        self.ledger = Ledger(device)
        self.monitor = Monitor(replica, self.sampler.batch_size)
        self.store = best_store(config, run_dir)
        self.rounds = self._rounds(run_dir, source)
        self.progress = progress or Progress("steps", config.train.steps)
        # where it stands
        self.step = 0
        self._best = -1.0
        self._latest_metrics: dict[str, float] = {}
        self._restore()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision of the trunk; embeddings, similarities and loss stay in float32."""
        if self.config.train.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def plan(self, step: int) -> None:
        """Have the batches of this step and of the one after it planned."""
        if self.rounds is not None:
            self.rounds.prepare(step)

    def share(self, step: int, batch: Batch, embeddings: Tensor) -> None:
        """Hand the embeddings of a step to the index, without waiting for it."""
        if self.rounds is not None:
            self.rounds.share(step, batch.places, embeddings)

    def after_step(self, done: int) -> None:
        """Log, evaluate and save where step number `done` asks for it; a new best evaluation is always saved.

        The order matters: what a checkpoint covers is logged before it is written.
        """
        self.step = done
        last = done == self.config.train.steps
        evaluates = last or done % self.config.eval.every_steps == 0
        saves = last or done % self.config.checkpoint.every_steps == 0
        if evaluates or saves or done % self.config.train.log_every == 0:
            self._log()
        if evaluates or saves:
            average_buffers(self.embedder, self.replica)
        evaluation = self._evaluate() if evaluates else None
        score = -1.0 if evaluation is None else evaluation.metrics.to_dict()[self.store.best_metric]
        if saves or score > self._best:
            self._best = max(score, self._best)
            self._on_main(partial(self._write_checkpoint, evaluation))

    def finish(self) -> Checkpoint:
        """Stop reading ahead and return the best checkpoint, on every rank."""
        self.batches.close()
        if self.rounds is not None:
            self.rounds.close()
        self.progress.close()
        self.replica.barrier()
        best = self.store.best()
        assert best is not None, "the last step saves"
        return best

    def _log(self) -> None:
        measured = self.monitor.flush()
        if self.rounds is not None:
            for step, metrics in measured:
                self.rounds.observe(step, metrics)
            for step, metrics in self.rounds.flush():
                self.tracker.log(step, metrics)
        if not self.replica.is_main or not measured:
            return
        for step, metrics in measured:
            self.tracker.log(step + 1, metrics)
        newest = measured[-1][1] | self._latest_metrics
        shown = {"loss": newest.get("train/loss"), "recall@1": newest.get("recall_at_1")}
        note = ", ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
        self.progress.update(len(measured), note)

    def _evaluate(self) -> Evaluation:
        config = self.config
        found = evaluate_sharded(
            self.embedder,
            self.images,
            self.test_rows,
            self.catalog.labels[self.test_rows],
            config.eval,
            config.seed,
            self.replica,
            self.device,
        )
        self._latest_metrics = found.metrics.to_dict()
        if self.replica.is_main:
            self.tracker.log(self.step, {f"eval/{name}": value for name, value in found.logged().items()})
        self._on_main(partial(write_evaluation, self.run_dir, found.record(self.step)))
        return found

    def _on_main(self, write: Callable[[], None]) -> None:
        """Have rank 0 write something; where it cannot, all ranks stop."""
        failure: UserError | None = None
        if self.replica.is_main:
            try:
                write()
            except UserError as error:
                failure = error
        if self.replica.broadcast(failure is not None, self.device):
            raise failure or ResourceError("rank 0 could not write into the run's folder")

    def _write_checkpoint(self, evaluation: Evaluation | None) -> None:
        self.tracker.flush()  # what a resumed run will not measure again has to be there before the checkpoint is
        self.store.save(
            self.step,
            {
                "model": self.embedder.state_dict(),
                "training": {
                    "optimizer": self.optimizer.state_dict(),
                    "loss": self.criterion.state_dict(),
                    "sampler": (self.rounds or self.sampler).state_dict(self.step),
                },
            },
            {
                "version": __version__,
                "metrics": None if evaluation is None else evaluation.metrics.to_dict(),
                "calibration": None if evaluation is None else evaluation.calibration(),
                "config": config_dict(self.config),
                "fingerprint": self.catalog.fingerprint,
                "attribute_values": self.embedder.attribute_values,
            },
        )
        if self.rounds is not None:
            self.rounds.prune(min(self.store.steps()[-self.store.keep_last :]))

    def _restore(self) -> None:
        """Continue from the newest intact checkpoint of the run folder, the same one on every rank."""
        newest = self.store.latest() if self.replica.is_main else None
        step = int(self.replica.broadcast(newest.step if newest else -1, self.device))
        if step < 0:
            return
        best = self.store.best() if self.replica.is_main else None
        score = -1.0 if best is None else best.metrics.get(self.store.best_metric, -1.0)
        self._best = self.replica.broadcast(score, self.device)
        checkpoint = newest or self.store.at(step)
        if checkpoint.meta["fingerprint"] != self.catalog.fingerprint:
            raise InputError(
                f"the data has changed since {checkpoint.location} was written: "
                "resume with the same catalog, or start a new run"
            )
        if checkpoint.meta.get("attribute_values", {}) != self.embedder.attribute_values:
            raise InputError(
                f"the attribute values of the data have changed since {checkpoint.location} was written: "
                "resume with the same catalog, or start a new run"
            )
        load_model(self.embedder, checkpoint)
        training = checkpoint.tensors("training")
        self.criterion.load_state_dict(training["loss"])
        self.optimizer.load_state_dict(training["optimizer"])
        (self.rounds or self.sampler).load_state_dict(training["sampler"])
        self.step = step
        self.progress.start_at(step)

    def _loss(self, miner: Miner | None) -> MetricLoss:
        config = self.config
        counts = np.unique(self.catalog.labels[self.train_rows], return_counts=True)[1]
        context = LossContext(counts.tolist(), config.model.embedding_dim, config.seed, miner)
        try:
            return build_loss(config.loss, context)
        except ValueError as error:  # settings that do not fit the number of classes or dimensions
            raise ConfigError(f"loss={config.loss.name} with this data and model: {error}") from error

    def _rounds(self, run_dir: str, source: SnapshotSource | None) -> Rounds | None:
        """What plans rounds of hard neighbors, for a sampler that wants them."""
        config, sampler = self.config, self.sampler
        if not isinstance(sampler, HardNeighborSampler):
            return None
        assert isinstance(config.sampler, HardNeighborSamplerConfig)
        labels = training_labels(self.catalog, config.data.train_split)
        store = SnapshotStore(f"{run_dir}/index")
        if isinstance(config.index, InlineIndexConfig):
            by_rows = config.sampler.mode == "sample"
            source = InlineIndex(
                config.index,
                store,
                self._embed_places,
                labels,
                by_rows,
                config.sampler.round_steps,
                self.replica,
            )
        if source is None:
            raise ConfigError(
                f"index={config.index.name} works in actors of Ray, which this run was not started with: "
                "set index=inline, or train with jobs/train.py"
            )
        return Rounds(
            sampler,
            source,
            store,
            BackOff(config.sampler.back_off, config.sampler.warmup_steps),
            random_sampler(config, self.catalog),
            HardnessProbe(self._embed_places, labels, config.sampler.margin, self.replica, self.device),
            self._embed_places,
            self.embedder.state_dict,
            self.train_rows,
            self.replica,
            self.device,
        )

    def _embed_places(self, places: NDArray[np.int64]) -> Tensor:
        rows = self.train_rows[places]
        return embed(self.embedder, self.images, rows, self.config.eval.batch_size, self.device)

    def _image_store(self) -> ImageStore:
        model, data = self.config.model, self.config.data
        return ImageStore(
            self.catalog,
            model.image_size,
            model.channels,
            memory_limit_bytes=int(data.memory_limit_gib * (1 << 30)),
            rows=held_rows(self.train_rows, self.test_rows),
        )


def held_rows(*splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows a worker will ask for, once each."""
    return np.unique(np.concatenate(splits))


__all__ = ["Worker", "best_store", "build_sampler", "held_rows", "known_attributes", "open_data"]
