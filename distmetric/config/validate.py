"""Settings that are each fine and impossible together."""

from __future__ import annotations

import math

from distmetric.config.attributes import check_attributes
from distmetric.config.chunks import check_chunks
from distmetric.config.schema import Config, SamplerConfig, ScheduleConfig, TrainerConfig
from distmetric.custom_targets import check_target
from distmetric.errors import ConfigError
from distmetric.evaluation.retrieval import measure_names
from distmetric.functional.dial import ends
from distmetric.losses.build import CrossBatchMemoryConfig, nested_losses
from distmetric.losses.class_loss import ClassLossConfig
from distmetric.losses.whole_batch import CustomLossConfig
from distmetric.models.spec import CustomSpec
from distmetric.samplers.hard_neighbors import HardNeighborSamplerConfig


def validate(config: Config) -> None:
    """Check what can be checked without data and without a cluster.

    Raises:
        ConfigError: For the first contradiction, naming the keys, their values and the fix.
    """
    trainer, sampler, train = config.trainer, config.sampler, config.train
    if isinstance(config.model, CustomSpec):
        check_target("model", config.model.target, config.allow_custom_targets)
    _at_least("trainer.num_workers", trainer.min_workers, 1)
    _at_least("train.steps", train.steps, 1)
    _at_least("train.log_every", train.log_every, 1)
    _at_least("train.max_skipped", train.max_skipped, 1)
    _at_least("checkpoint.every_steps", config.checkpoint.every_steps, 1)
    _at_least("checkpoint.keep_last", config.checkpoint.keep_last, 1)
    _at_least("seed", config.seed, 0)
    if config.seed >= 2**63:
        raise ConfigError(f"seed={config.seed} is too large: set it below 2**63")
    _at_least("model.embedding_dim", config.model.embedding_dim, 1)
    _at_least("sampler.samples_per_class", sampler.samples_per_class, 2)
    _at_least("sampler.classes_per_batch", sampler.classes_per_batch, 2)
    _at_least("schedule.warmup_steps", config.schedule.warmup_steps, 0)
    _above_zero("trainer.cpus_per_worker", trainer.cpus_per_worker)
    _above_zero("optim.lr", config.optim.lr)
    _above_zero("trainer.timeout_s", trainer.timeout_s)
    _above_zero("trainer.start_timeout_s", trainer.start_timeout_s)
    _above_zero("trainer.resize_check_s", trainer.resize_check_s)
    _check_evaluation(config)
    if config.optim.clip_norm is not None:
        _above_zero("optim.clip_norm", config.optim.clip_norm)
    for key in ("beta1", "beta2", "momentum"):
        if not 0 <= (value := getattr(config.optim, key, 0.0)) < 1:
            raise ConfigError(f"optim.{key}={value} is wrong: 0 <= {key} < 1")
    _not_negative("optim.weight_decay", config.optim.weight_decay)
    _not_negative("optim.loss_lr_multiplier", config.optim.loss_lr_multiplier)
    _not_negative("data.memory_limit_gib", config.data.memory_limit_gib)
    _at_least("data.prefetch", config.data.prefetch, 1)
    if not 0 <= config.schedule.decay_start < 1:
        raise ConfigError(
            f"schedule.decay_start={config.schedule.decay_start} is wrong: 0 <= decay_start < 1"
        )
    if not 0 < config.schedule.final_fraction <= 1:
        raise ConfigError(
            f"schedule.final_fraction={config.schedule.final_fraction} is wrong: 0 < fraction <= 1"
        )
    _check_milestones(config.schedule)
    _check_slices(sampler, trainer)
    _check_local_batches(config)
    _check_losses(config, sampler.classes_per_batch * sampler.samples_per_class)
    _check_neighbors(config)
    check_attributes(config)
    check_chunks(config)
    _check_clips(config)
    if config.data.name != "catalog" and config.model.channels != 1:
        raise ConfigError(f"model.channels={config.model.channels} but glyphs are gray: set model.channels=1")


def _check_milestones(schedule: ScheduleConfig) -> None:
    marks = schedule.milestones
    if marks != sorted(set(marks)) or not all(0 < mark < 1 for mark in marks):
        raise ConfigError(
            f"schedule.milestones={marks} is wrong: give ascending fractions of the steps, between 0 and 1"
        )
    if not 0 < schedule.milestone_factor <= 1:
        raise ConfigError(
            f"schedule.milestone_factor={schedule.milestone_factor} is wrong: 0 < milestone_factor <= 1"
        )


def _check_clips(config: Config) -> None:
    model, data = config.model, config.data
    attends = model.temporal == "attribute_attention"
    if model.frames_per_clip is None:
        if model.temporal != "mean":
            raise ConfigError(
                f"model.temporal={model.temporal} pools the frames of clips, and model.frames_per_clip=null takes "
                "images: set model.frames_per_clip=4, for example"
            )
    else:
        _at_least("model.frames_per_clip", model.frames_per_clip, 1)
        if model.framing:
            raise ConfigError(
                f"model.framing={model.framing} brings what moves in a clip to one place in every frame: set "
                "model.framing=0.0"
            )
        if config.tracking.name == "mlflow" and config.tracking.register is not None:
            raise ConfigError(
                f"tracking.register={config.tracking.register} makes a model that takes single images, and "
                f"model.frames_per_clip={model.frames_per_clip} takes clips: set tracking.register=null"
            )
        if data.name == "glyphs":
            raise ConfigError(
                f"model.frames_per_clip={model.frames_per_clip} but glyphs do not move: set data=moving_glyphs, or "
                "model.frames_per_clip=null"
            )
    if data.name != "glyphs":
        _at_least("data.frame_stride", data.frame_stride, 1)
    if attends and not model.attributes:
        raise ConfigError(
            "model.temporal=attribute_attention attends to model.attributes, which is empty: name some there"
        )
    if model.attribute_groups is not None and not attends:
        raise ConfigError(
            f"model.attribute_groups={model.attribute_groups} is for model.temporal=attribute_attention: set that, or "
            "model.attribute_groups=null"
        )


def _check_slices(sampler: SamplerConfig, trainer: TrainerConfig) -> None:
    """Every worker needs rows: equally many where their number is fixed, two or more where it may change."""
    classes, samples = sampler.classes_per_batch, sampler.samples_per_class
    batch, workers = classes * samples, trainer.max_workers
    given = (
        f"sampler.classes_per_batch={classes} x sampler.samples_per_class={samples} = {batch} rows cannot be divided "
        f"among trainer.num_workers={trainer.num_workers}"
    )
    if trainer.is_elastic:
        if batch < 2 * workers:
            fix = f"[{min(trainer.min_workers, batch // 2)}, {batch // 2}]"
            raise ConfigError(f"{given} with two or more for each: set trainer.num_workers={fix}")
    elif batch % workers:
        nearest = _nearest_divisible(classes, samples, workers)
        raise ConfigError(f"{given}: set sampler.classes_per_batch={nearest}")


def _check_local_batches(config: Config) -> None:
    parts, classes, trainer = config.train.local_batches, config.sampler.classes_per_batch, config.trainer
    _at_least("train.local_batches", parts, 1)
    if parts == 1:
        return
    given = f"train.local_batches={parts}"
    if classes % parts or classes < 2 * parts:
        raise ConfigError(
            f"{given} cannot share out sampler.classes_per_batch={classes} with two or more for each: set "
            f"sampler.classes_per_batch={max(2, classes // parts) * parts}"
        )
    if trainer.is_elastic or parts % trainer.max_workers:
        raise ConfigError(
            f"{given} cannot be divided among trainer.num_workers={trainer.num_workers}: set trainer.num_workers=1, or "
            f"train.local_batches={trainer.max_workers}"
        )
    for key, loss in nested_losses(config.loss, "loss"):
        if isinstance(loss, CrossBatchMemoryConfig):
            raise ConfigError(
                f"{given} with {key}.name=cross_batch_memory, which remembers the global batch: set one"
            )
        if getattr(loss, "sharded", False):
            raise ConfigError(
                f"{given} with {key}.sharded=true, which needs the global batch: set one of them"
            )


def _check_evaluation(config: Config) -> None:
    evaluation = config.eval
    _at_least("eval.every_steps", evaluation.every_steps, 1)
    _at_least("eval.batch_size", evaluation.batch_size, 1)
    _at_least("eval.resamples", evaluation.resamples, 0)
    if not evaluation.ks or min(evaluation.ks) < 1:
        raise ConfigError(f"eval.ks={evaluation.ks} is wrong: give one or more numbers from 1 on")
    if not 0 < evaluation.target_far < 1:
        raise ConfigError(f"eval.target_far={evaluation.target_far} is wrong: 0 < target_far < 1")
    known = measure_names(evaluation.ks)
    if config.checkpoint.best_metric not in known:
        raise ConfigError(
            f"checkpoint.best_metric={config.checkpoint.best_metric} is not measured: "
            f"choose one of {', '.join(sorted(known))}"
        )


def _check_losses(config: Config, batch: int) -> None:
    for key, loss in nested_losses(config.loss):
        if isinstance(loss, CustomLossConfig):
            if key != "loss":
                raise ConfigError(
                    f"{key}.name=custom is a loss of others, which only looks at the whole batch on its own: "
                    "set loss=custom, or take another loss here"
                )
            check_target(key, loss.target, config.allow_custom_targets)
        if loss.name == "centroid_bound" and config.miner.name != "none":
            raise ConfigError(
                f"miner={config.miner.name} chooses pairs, and {key}.name={loss.name} looks at none: set miner=none"
            )
        if isinstance(loss, ClassLossConfig) and loss.negatives == "hard":
            _check_hard_negatives(config, key, loss.negative_sample_rate)
        if isinstance(loss, CrossBatchMemoryConfig) and loss.memory_size < batch:
            raise ConfigError(
                f"{key}.memory_size={loss.memory_size} is too small for a batch of {batch} rows: "
                f"set {key}.memory_size={batch} or more"
            )


def _check_hard_negatives(config: Config, key: str, rate: float) -> None:
    if rate == 1:
        raise ConfigError(
            f"{key}.negatives=hard chooses classes to compare with, and {key}.negative_sample_rate=1.0 takes all: "
            f"set {key}.negative_sample_rate=0.1, or {key}.negatives=random"
        )
    if not isinstance(config.sampler, HardNeighborSamplerConfig):
        raise ConfigError(
            f"{key}.negatives=hard needs the neighbors of classes, which sampler={config.sampler.name} does without: "
            f"set sampler=hard_neighbors, or {key}.negatives=random"
        )


def _check_neighbors(config: Config) -> None:
    sampler, index = config.sampler, config.index
    if not isinstance(sampler, HardNeighborSamplerConfig):
        return
    window = max(ends(sampler.skip)) + max(ends(sampler.width))
    if index.neighbors < window < math.inf:  # an infinite window is all there are
        raise ConfigError(
            f"sampler.skip and sampler.width reach to neighbor {window:g}, but index.neighbors={index.neighbors} are "
            f"listed: set index.neighbors={math.ceil(window)} or a smaller window"
        )
    wanted = sampler.samples_per_class - 1
    if sampler.mode == "sample" and wanted > index.positives:
        raise ConfigError(
            f"sampler.mode=sample with sampler.samples_per_class={sampler.samples_per_class} asks for the {wanted} "
            f"farthest positives, but index.positives={index.positives} are listed: set index.positives={wanted}"
        )
    if index.refresh_steps < sampler.round_steps:
        raise ConfigError(
            f"index.refresh_steps={index.refresh_steps} is less than sampler.round_steps={sampler.round_steps}, and "
            f"only one snapshot a round is used: set index.refresh_steps={sampler.round_steps} or more"
        )


def _nearest_divisible(classes: int, samples: int, workers: int) -> int:
    down = next((p for p in range(classes, 1, -1) if p * samples % workers == 0), None)
    return down or next(p for p in range(classes, classes * workers + 1) if p * samples % workers == 0)


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key}={value} is too small: set it to {least} or more")


def _above_zero(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{key}={value} is wrong: it must be above 0 and finite")


def _not_negative(key: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{key}={value} is wrong: it must be 0 or more and finite")
