"""The composition root of one training process: builds its parts, saves and restores them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric import __version__
from distmetric.config.schema import Config
from distmetric.data.clips import SampleStore
from distmetric.distributed.loss import DistributedLoss
from distmetric.distributed.parallel import average_buffers, averaged_buffers, restore_buffers
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError, InputError
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
from distmetric.secrets import masked
from distmetric.startup import StartUp
from distmetric.tracking.tracker import Tracker
from distmetric.training.batches import Batch, BatchLoader
from distmetric.training.checkpoint import Checkpoint, CheckpointStore
from distmetric.training.checkpoint_folder import StoredFile
from distmetric.training.claim import RunWriter
from distmetric.training.class_parts import training_state, write_parts
from distmetric.training.embedding import embed, evaluate_sharded
from distmetric.training.evaluations import Evaluation, write_evaluation
from distmetric.training.finite_steps import FiniteSteps
from distmetric.training.health import Health
from distmetric.training.inline_index import InlineIndex
from distmetric.training.ledger import Ledger
from distmetric.training.model_pass import ModelPass
from distmetric.training.monitor import Monitor
from distmetric.training.optimizer import build_optimizer
from distmetric.training.probe import HardnessProbe
from distmetric.training.resumption import check_same_run, load_state, newest_of
from distmetric.training.rounds import Rounds
from distmetric.training.run_data import (
    both_splits,
    build_sampler,
    held_rows,
    known_attributes,
    open_data,
    random_sampler,
    sample_store,
    training_labels,
)
from distmetric.training.saved_model import config_dict
from distmetric.training.stop import EvaluationAbandonedError, StopRequest, Wishes
from distmetric.training.whitening import whiten, whitening_rows


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
        owner: Token of the driver that has claimed the run's folder; None: this process claims it for itself.
        stop: Asked before every step whether to save or to stop; given on all ranks or on none.

    Attributes:
        startup: What is logged with the first step, of how long it took to get there; None for nothing.
    """

    startup: StartUp | None = None

    def __init__(
        self,
        config: Config,
        run_dir: str,
        tracker: Tracker,
        replica: Replica,
        device: torch.device,
        source: SnapshotSource | None = None,
        progress: Counter | None = None,
        owner: str | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        # what it works on
        self.config, self.run_dir, self.replica, self.device = config, run_dir, replica, device
        self._on_main = RunWriter(run_dir, replica, device, owner)
        self.dtype = torch.float64 if config.train.precision == "float64" else torch.float32
        self.catalog = open_data(config.data)
        self.train_rows, self.test_rows = both_splits(config, self.catalog)
        self.images = self._sample_store()
        self.sampler = build_sampler(config, self.catalog)
        self.attribute_values = known_attributes(config, self.catalog)
        self.batches = BatchLoader(
            *(self.sampler, self.catalog, self.images, self.train_rows, replica, device),
            *(self.attribute_values, config.data.prefetch),
        )
        # what is learned, and how
        self.embedder = build_embedder(
            *(config.model, config.seed, replica, self.attribute_values),
            allow_custom_targets=config.allow_custom_targets,
        )
        self.embedder.to(device, self.dtype)
        self.embedder.lay_out(channels_last=config.train.channels_last)
        miner = build_miner(config.miner, config.seed)
        parts = config.train.local_batches
        self.criterion = DistributedLoss(self._loss(miner), replica, miner, parts).to(device, self.dtype)
        self.optimizer = build_optimizer(config.optim, self.embedder, self.criterion)
        self.steps = FiniteSteps(
            *(self.optimizer, self.embedder, self.criterion),
            keep_buffers=config.train.non_finite == "skip",
            replica=replica,
        )
        self.trained_parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # what watches and keeps
        self.tracker = tracker
        self.ledger = Ledger(device)
        self.store = best_store(config, run_dir)
        self.health = Health(config, run_dir, self.catalog, self.store, self.steps)
        self.rounds = self._rounds(run_dir, source)
        self.progress = progress or Progress("steps", config.train.steps)
        # where it stands
        newest, best = newest_of(self.store, replica, device)
        recorded = None if newest is None else newest.meta.get("chunks")
        self.model = ModelPass(config, self.embedder, replica, device, recorded)
        self.monitor = Monitor(replica, self.sampler.batch_size, self.model.chunk_size)
        self.step = 0
        self.wishes = Wishes(stop, replica)
        self._saved_step, self._evaluation_due = -1, False
        self._best = -1.0
        self._latest_metrics: dict[str, float] = {}
        self._restore(newest, best)

    @property
    def is_evaluating(self) -> bool:
        """Whether this step's evaluation is under way, or was cut short and is still to be made."""
        return self._evaluation_due

    def plan(self, step: int) -> None:
        """Have the batches of this step and of the one after it planned."""
        if self.rounds is not None:
            self.rounds.prepare(step)

    def share(self, step: int, batch: Batch, embeddings: Tensor) -> None:
        """Hand the embeddings of a step to the index, without waiting for it."""
        if self.rounds is not None:
            self.rounds.share(step, batch.places, embeddings)

    def heed(self) -> bool:
        """Do what was asked for since the last time, on all ranks, which all call it before a step.

        Returns:
            Whether the training ends here; a checkpoint of this step is there then.
        """
        wish = self.wishes.agree()
        if wish and self._saved_step != self.step:
            self._log(is_due=False)
            with averaged_buffers(self.embedder, self.replica) as own:
                self._save(None, own)
        return wish == "stop"

    def catch_up(self) -> None:
        """Make the evaluation that a stop has cut short, as if it never had."""
        if self._evaluation_due:
            self._evaluate_and_save(evaluates=True, saves=True)

    def after_step(self, done: int) -> None:
        """Log, evaluate and save where step number `done` asks for it; a new best evaluation is always saved.

        The order matters: what a checkpoint covers is logged before it is written.
        """
        self.step = done
        if self.startup is not None:
            self.startup.mark("first_step")
            if self.replica.is_main:
                self.tracker.log(done, self.startup.metrics())
            self.startup = None
        last = done == self.config.train.steps
        evaluates = last or done % self.config.eval.every_steps == 0
        saves = last or done % self.config.checkpoint.every_steps == 0
        if evaluates or saves or done % self.config.train.log_every == 0:
            self._log()
        if evaluates or saves:
            average_buffers(self.embedder, self.replica)
        self._evaluate_and_save(evaluates, saves)

    def finish(self) -> Checkpoint:
        """Stop reading ahead and return the best checkpoint, on every rank."""
        self.batches.close()
        self.images.close()
        if self.rounds is not None:
            self.rounds.close()
        self.progress.close()
        self.replica.barrier()
        best = self.store.best()
        assert best is not None, "the last step saves, and so does a stop"
        return best

    def _evaluate_and_save(self, evaluates: bool, saves: bool) -> None:
        self._evaluation_due = evaluates
        try:
            evaluation = self._evaluate() if evaluates else None
        except EvaluationAbandonedError:
            return
        self._evaluation_due = False
        score = -1.0 if evaluation is None else evaluation.metrics.to_dict()[self.store.best_metric]
        if saves or score > self._best:
            self._best = max(score, self._best)
            self._save(evaluation)

    def _heed_in_evaluation(self) -> None:
        if self.heed():
            raise EvaluationAbandonedError

    def _log(self, is_due: bool = True) -> None:
        """Log what was measured; where that was not its turn, what is decided by it is decided when it is."""
        measured = self.health.judged(self.monitor.flush())
        planned: list[tuple[int, dict[str, float]]] = []
        if self.rounds is not None:
            for step, metrics in measured:
                (self.rounds.observe if is_due else self.rounds.hold)(step, metrics)
            planned = self.rounds.flush()
        self._on_main(partial(self._track, [*planned, *((step + 1, metrics) for step, metrics in measured)]))
        self.health.check()
        if not self.replica.is_main or not measured:
            return
        newest = measured[-1][1] | self._latest_metrics
        shown = {"loss": newest.get("train/loss"), "recall@1": newest.get("recall_at_1")}
        note = ", ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
        self.progress.update(len(measured), note)

    def _track(self, measured: list[tuple[int, dict[str, float]]]) -> None:
        for step, metrics in measured:
            self.tracker.log(step, metrics)
        self.health.write()

    @cached_property
    def _whitening_rows(self) -> NDArray[np.int64]:
        return whitening_rows(self.train_rows, self.catalog.labels[self.train_rows], self.config.seed)

    def _evaluate(self) -> Evaluation:
        config, where = self.config, (self.replica, self.device, self._heed_in_evaluation)
        if config.model.whitening:
            whiten(self.embedder, self.images, self._whitening_rows, config.eval.batch_size, *where)
        found = evaluate_sharded(
            self.embedder,
            self.images,
            self.test_rows,
            self.catalog.labels[self.test_rows],
            config.eval,
            config.seed,
            *where,
        )
        self._latest_metrics = found.metrics.to_dict()
        if self.replica.is_main:
            self.tracker.log(self.step, {f"eval/{name}": value for name, value in found.logged().items()})
        self._on_main(partial(write_evaluation, self.run_dir, found.record(self.step)))
        return found

    def _save(self, evaluation: Evaluation | None, own_buffers: Tensor | None = None) -> None:
        writer, parts_of = self._on_main, (self.criterion, self.optimizer)
        parts = write_parts(self.store, self.step, *parts_of, writer, self.replica, self.device)
        self._on_main(partial(self._write_checkpoint, evaluation, own_buffers, parts))
        self._saved_step = self.step

    def _write_checkpoint(
        self, evaluation: Evaluation | None, own_buffers: Tensor | None, parts: Mapping[str, StoredFile]
    ) -> None:
        self.tracker.flush()  # what a resumed run will not measure again has to be there before the checkpoint is
        self.store.save(
            self.step,
            {
                "model": self.embedder.state_dict(),
                "training": {
                    **training_state(self.criterion, self.optimizer),
                    "sampler": (self.rounds or self.sampler).state_dict(self.step),
                    "health": self.health.state_dict(),
                },
                **({} if own_buffers is None else {"buffers": own_buffers}),
            },
            {
                "version": __version__,
                "metrics": None if evaluation is None else evaluation.metrics.to_dict(),
                "calibration": None if evaluation is None else evaluation.calibration(),
                "evaluation_due": self._evaluation_due,
                "config": masked(config_dict(self.config)),
                "fingerprint": self.catalog.fingerprint,
                "attribute_values": self.embedder.attribute_values,
                "chunks": self.model.record(),
            },
            parts,
        )
        if self.rounds is not None:
            self.rounds.prune(min(self.store.steps()[-self.store.keep_last :]))

    def _restore(self, newest: Checkpoint | None, best: float) -> None:
        """Continue from the newest intact checkpoint of the run folder, the same one on every rank."""
        if newest is not None:
            check_same_run(self.config, newest, self.catalog.fingerprint)
            if newest.meta.get("attribute_values", {}) != self.embedder.attribute_values:
                raise InputError(
                    f"the attribute values of the data have changed since {newest.location} was written: "
                    "resume with the same catalog, or start a new run"
                )
            batches = self.rounds or self.sampler
            load_state(newest, self.embedder, self.criterion, self.optimizer, batches, self.health)
            if "buffers.pt" in newest.files:
                restore_buffers(self.embedder, newest.tensors("buffers"), self.replica)
            self._best, self.step = best, newest.step
            self._saved_step, self._evaluation_due = self.step, newest.meta.get("evaluation_due", False)
            self.progress.start_at(self.step)
        if self.model.notice:
            self.health.tell("chunks", 0, self.model.notice)
        if self.step < self.config.train.steps:
            self._on_main(self.store.open)

    def _loss(self, miner: Miner | None) -> MetricLoss:
        config = self.config
        counts = np.unique(self.catalog.labels[self.train_rows], return_counts=True)[1]
        context = LossContext(
            counts.tolist(),
            config.model.embedding_dim,
            config.seed,
            miner,
            nearest_classes=lambda: None if self.rounds is None else self.rounds.nearest_classes,
            rank=self.replica.rank,
            world_size=self.replica.world_size,
            allow_custom_targets=config.allow_custom_targets,
        )
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
        labels = training_labels(self.catalog, config.data.train_split, config.model.frames_per_clip)
        store = SnapshotStore(f"{run_dir}/index", self._on_main.check)
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

    def _sample_store(self) -> SampleStore:
        rows = held_rows(self.train_rows, self.test_rows)
        threads = torch.get_num_threads()  # that the machine has for this worker
        return sample_store(self.config, self.catalog, rows, threads=threads, shared=True)
