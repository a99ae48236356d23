"""The configuration of a training run as typed values: one dataclass per group of conf/, one line per field.

Every leaf of conf/*.yaml is a field here, and nothing else is accepted (`config/compose.py` checks). Built-in parts
are chosen by `name`; their settings live beside the part they describe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distmetric.data.augment import AugmentSpec
from distmetric.index.config import AnyIndexConfig
from distmetric.losses.build import LossConfig
from distmetric.miners.build import MinerConfig
from distmetric.models.spec import AnySpec
from distmetric.samplers.hard_neighbors import HardNeighborSamplerConfig
from distmetric.samplers.pk import PKSamplerConfig

DEFAULT_CACHE = "~/.cache/distmetric"

SamplerConfig = PKSamplerConfig | HardNeighborSamplerConfig


@dataclass(kw_only=True, frozen=True)
class ImagesConfig:
    """What all data have: splits, and how images come to the workers."""

    train_split: str = "train"
    """Split that is learned from."""
    test_split: str = "test"
    """Split whose classes the evaluation retrieves; never trained on."""
    memory_limit_gib: float = 2.0
    """Images are decoded once if they fit into this much, which the workers of a machine share as a file in its
    temporary folder, and at every use otherwise."""
    prefetch: int = 1
    """Batches that every worker reads ahead while it computes; each takes the memory of its share of a batch."""


@dataclass(kw_only=True, frozen=True)
class FramesConfig(ImagesConfig):
    """What data have whose images may be the frames of tracklets."""

    frame_sampling: Literal["segments", "consecutive"] = "segments"
    """How training draws a clip's frames: one of each of T equal parts of the tracklet, or T that follow each other."""
    frame_stride: int = 1
    """With frame_sampling=consecutive: frames from one of a clip to its next."""


@dataclass(kw_only=True, frozen=True)
class CatalogDataConfig(FramesConfig):
    """A catalog file, as `jobs/ingest.py` writes it."""

    name: Literal["catalog"] = "catalog"
    path: str
    """The catalog file, on a path that every worker can read."""


@dataclass(kw_only=True, frozen=True)
class MovingGlyphsDataConfig(FramesConfig):
    """The built-in data set of moving glyphs: tracklets with attributes, drawn on first use."""

    name: Literal["moving_glyphs"] = "moving_glyphs"
    cache_dir: str | None = None
    """Folder the drawn catalog is kept in; null: ~/.cache/distmetric."""
    size: int = 28
    """Side of the frames in pixels."""
    seed: int = 0
    """Key of fonts, motions and jitter, and of the split."""
    test_fraction: float = 1 / 3
    """Fraction of the classes that is held out."""
    max_classes: int | None = 300
    """Draw at most this many classes; null: all."""
    tracklets_per_class: int = 8
    """Tracklets of each class."""
    frames_per_tracklet: int = 8
    """Frames of each tracklet."""


@dataclass(kw_only=True, frozen=True)
class GlyphsDataConfig(ImagesConfig):
    """The built-in data set of Unicode glyphs, drawn on first use."""

    name: Literal["glyphs"] = "glyphs"
    cache_dir: str | None = None
    """Folder the drawn catalog is kept in; null: ~/.cache/distmetric."""
    size: int = 28
    """Side of the images in pixels."""
    seed: int = 0
    """Key of the jitter and of the split."""
    test_fraction: float = 1 / 3
    """Fraction of the classes that is held out."""
    max_classes: int | None = None
    """Draw only this many classes (for tests)."""


DataConfig = CatalogDataConfig | GlyphsDataConfig | MovingGlyphsDataConfig


@dataclass(kw_only=True, frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov, Hutter, arXiv 1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: float = 3e-3
    """Peak learning rate of the model."""
    loss_lr_multiplier: float = 10.0
    """Learning rate of the loss's own parameters (proxies, centers), as a multiple of `lr`."""
    weight_decay: float = 1e-4
    """Decay of weights; norms, biases and the loss's parameters are not decayed."""
    beta1: float = 0.9
    """Momentum of the first moment."""
    beta2: float = 0.999
    """Momentum of the second moment."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm; null leaves them."""


@dataclass(kw_only=True, frozen=True)
class SGDConfig:
    """Stochastic gradient descent with Nesterov momentum."""

    name: Literal["sgd"] = "sgd"
    lr: float = 0.1
    """Peak learning rate of the model."""
    loss_lr_multiplier: float = 10.0
    """Learning rate of the loss's own parameters (proxies, centers), as a multiple of `lr`."""
    weight_decay: float = 1e-4
    """Decay of weights; norms, biases and the loss's parameters are not decayed."""
    momentum: float = 0.9
    """Nesterov momentum; 0 for plain descent."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm; null leaves them."""


OptimConfig = AdamWConfig | SGDConfig


@dataclass(kw_only=True, frozen=True)
class ScheduleConfig:
    """Learning rate as a multiple of its peak: linear warm-up, then one of four shapes."""

    name: Literal["constant", "cosine", "exponential", "step"] = "cosine"
    warmup_steps: int = 50
    """Steps over which the rate rises from 0 to its peak."""
    decay_start: float = 0.0
    """Fraction of the steps after which decay begins; the rate stays at its peak before (constant, step: unused)."""
    final_fraction: float = 0.01
    """Where the rate ends, as a fraction of its peak (constant, step: unused)."""
    milestones: list[float] = field(default_factory=lambda: [0.6, 0.85])
    """Fractions of the steps at which the rate falls (step only)."""
    milestone_factor: float = 0.1
    """What the rate is multiplied by at each of them (step only)."""


@dataclass(kw_only=True, frozen=True)
class TrainConfig:
    """How long and in which numbers."""

    steps: int = 600
    """Optimizer steps of the whole run."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """bfloat16: autocast of the trunk, with float32 weights, similarities and loss. float64: for equality tests."""
    chunk_size: int | Literal["auto"] | None = None
    """Images that a worker takes through the trunk at a time; null: its whole share; auto: what memory is free for."""
    local_batches: int = 1
    """Into how many parts the global batch is divided that are each compared within themselves alone, as by so many
    workers that gather nothing, to see what gathering is worth; 1: everything is compared with everything."""
    log_every: int = 10
    """Steps between two transfers of the per-step measurements to the tracker (every step is logged)."""
    channels_last: bool = False
    """Keep feature maps channels last in memory, as a GPU's convolutions like them best."""
    compile: bool = False
    """Compile the trunk with torch.compile, for training: takes g++ on a CPU, Triton on a GPU, and a while to begin."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A step whose loss, gradient or embeddings are not finite is never taken: stop at it, or go on without it."""
    max_skipped: int = 20
    """With non_finite=skip: steps left out in a row at which the run stops all the same."""


@dataclass(kw_only=True, frozen=True)
class TrainerConfig:
    """The Ray workers."""

    num_workers: int | list[int] = 2
    """Training processes, which share every global batch; [min, max]: as many of them as there is room for."""
    use_gpu: bool = False
    """One GPU and NCCL per worker instead of CPUs and gloo."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for a worker; it computes with as many threads."""
    max_failures: int = 3
    """How often workers may fail and training resumes; machines lost by a [min, max] that gets on do not count."""
    address: str | None = None
    """Ray cluster to join; null: the one named by RAY_ADDRESS (as inside a job), else a private local Ray."""
    start_timeout_s: float = 60.0
    """How long to wait for the workers to be placed; on an autoscaled cluster, for machines to boot."""
    timeout_s: float = 600.0
    """How long a collective waits for a silent rank."""
    resize_check_s: float = 60.0
    """With [min, max] workers and fewer than max: seconds between two looks for room for more of them."""

    def __post_init__(self) -> None:
        """Check the number of workers, which two properties read.

        Raises:
            ValueError: If a range is none.
        """
        wanted = self.num_workers
        if isinstance(wanted, list) and not (len(wanted) == 2 and 1 <= wanted[0] <= wanted[1]):
            raise ValueError(
                f"num_workers={wanted} is wrong: give one number, or [min, max] with 1 <= min <= max"
            )

    @property
    def min_workers(self) -> int:
        """Fewest processes that train."""
        return self.num_workers[0] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Most processes that train."""
        return self.num_workers[-1] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of processes may change while the run lasts."""
        return isinstance(self.num_workers, list)

    def workers(self) -> str:
        """How many processes, as text: 2, or 1 to 4."""
        least, most = self.min_workers, self.max_workers
        return str(most) if least == most else f"{least} to {most}"


@dataclass(kw_only=True, frozen=True)
class EvalConfig:
    """Retrieval on the test split, leave-one-out, sharded over the workers."""

    every_steps: int = 200
    """Steps between two evaluations; the last step is always evaluated."""
    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """The k of recall@k."""
    batch_size: int = 512
    """Images per forward pass and worker."""
    resamples: int = 1000
    """Bootstrap resamples of the queries for the 95 % intervals of the metrics; 0: no intervals."""
    target_far: float = 1e-3
    """False accept rate at which the distance threshold for "same class" is set, which checkpoints carry with them."""


@dataclass(kw_only=True, frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    every_steps: int = 200
    """Steps between two checkpoints; the last step and every new best evaluation are always saved."""
    keep_last: int = 2
    """How many of the newest checkpoints stay; the best one always does."""
    best_metric: str = "recall_at_1"
    """Evaluation metric (higher is better) that decides which checkpoint is the best."""


@dataclass(kw_only=True, frozen=True)
class MLflowConfig:
    """MLflow tracking."""

    name: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    """Tracking server or database; null: MLFLOW_TRACKING_URI, else <output_dir>/mlflow.db (local machine only)."""
    experiment: str = "distmetric"
    """Experiment that the run is listed under."""
    register: str | None = None
    """Name to register the best checkpoint under when the run has ended, with alias best if it is; null: it is not."""
    system_metrics: bool = False
    """Log the load of rank 0's machine (CPU, memory, disk, network, GPU), every ten seconds."""

    def __post_init__(self) -> None:
        """Check the name of the registered model.

        Raises:
            ValueError: If MLflow would not take it, which would be known only after the training.
        """
        if self.register is not None and (not self.register.strip() or set("/:") & set(self.register)):
            raise ValueError(f"register={self.register!r} cannot name a model: give a text without / and :")


@dataclass(kw_only=True, frozen=True)
class NoTrackingConfig:
    """No tracking."""

    name: Literal["none"] = "none"


TrackingConfig = MLflowConfig | NoTrackingConfig


@dataclass(kw_only=True, frozen=True)
class Config:
    """A whole training run."""

    seed: int = 0
    """Key of initial weights, batches and augmentation."""
    name: str | None = None
    """Name of the run and of its folder; null makes a unique one from data, loss and time."""
    output_dir: str = "outputs"
    """Where run folders go: a local path or any URI that pyarrow understands (s3://..., gs://..., hdfs://...)."""
    resume: str | None = None
    """Folder of a run to continue; its configuration is used, with the overrides given now on top."""
    report: bool = True
    """Write report.html into the run's folder at the end."""
    allow_custom_targets: bool = False
    """Whether `model.target` and `loss.target` may name code outside this package, which is imported and run; never
    taken from a run."""
    model: AnySpec
    """Before the data, whose images are as large by default: what is wrong is told of the setting that was given."""
    data: DataConfig
    augment: AugmentSpec
    loss: LossConfig
    miner: MinerConfig
    sampler: SamplerConfig
    index: AnyIndexConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    trainer: TrainerConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
