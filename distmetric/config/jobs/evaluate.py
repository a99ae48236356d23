"""The configuration of jobs/evaluate.py: what is measured, and by which protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from distmetric.config.jobs.reranking import RerankSettings
from distmetric.functional.checks import check_at_least


def _counts(key: str, values: Sequence[int]) -> None:
    if not values or min(values) < 1:
        raise ValueError(f"{key}={list(values)} is wrong: give one or more numbers, each at least 1")


def _rates(key: str, values: Sequence[float]) -> None:
    if not values or len(set(values)) < len(values) or not all(0 < value < 1 for value in values):
        raise ValueError(f"{key}={list(values)} is wrong: give different rates between 0 and 1")


@dataclass(kw_only=True, frozen=True)
class RankingSettings(RerankSettings):
    """What protocols over rankings of a gallery have in common."""

    resamples: int = 1000
    """Bootstrap resamples of the queries for the 95 % intervals; 0 for none."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        check_at_least(0, resamples=self.resamples)


@dataclass(kw_only=True, frozen=True)
class RetrievalProtocolConfig(RankingSettings):
    """How many of the nearest neighbors share the class: recall@k, MAP@R, R-precision."""

    name: Literal["retrieval"] = "retrieval"
    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """The k of recall@k."""
    whole_ranking: bool = False
    """Rank the whole gallery too, for mean average precision and mean reciprocal rank."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        _counts("ks", self.ks)


@dataclass(kw_only=True, frozen=True)
class ReidProtocolConfig(RankingSettings):
    """Re-identification: CMC, mAP and mINP, where the query's own camera does not count."""

    name: Literal["reid"] = "reid"
    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 20])
    """The ranks of the cumulative matching characteristic."""
    average_precision: Literal["step", "trapezoid"] = "step"
    """Area below precision over recall: by steps, as is usual, or by trapezoids, as in the code of Market-1501."""
    junk: str | None = None
    """Class whose gallery images count neither as right nor as wrong; null: none."""
    camera_pattern: str | None = None
    """Regular expression whose one group is the camera's number in an image's path, such as `_c(\\d+)`; null: the
    cameras of the catalog or of the embedding file."""

    def __post_init__(self) -> None:
        """Check numbers and pattern.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        _counts("ks", self.ks)
        if self.camera_pattern is not None:
            try:
                groups = re.compile(self.camera_pattern).groups
            except re.error as error:
                raise ValueError(
                    f"camera_pattern={self.camera_pattern} is no regular expression: {error}"
                ) from None
            if groups != 1:
                raise ValueError(
                    f"camera_pattern={self.camera_pattern} has {groups} groups: put the camera's number, and "
                    r"only that, in parentheses, as in _c(\d+)"
                )


@dataclass(kw_only=True, frozen=True)
class VerificationProtocolConfig:
    """Same or not, by distance, of all pairs or of a list: TAR at FAR, equal error rate, ROC, accuracy over folds."""

    name: Literal["verification"] = "verification"
    fars: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    """False accept rates at which the true accept rate is given; those finer than the pairs can show are left out."""
    folds: int = 10
    """Parts that the accuracy is a mean over: each judged by the threshold that is best on the others; 0: none."""
    pairs: str | None = None
    """CSV file of pairs: path_1,path_2,same or id_1,id_2,same (1 or 0) and, if wanted, fold; or pairs.txt as Labeled
    Faces in the Wild has it; null: all pairs."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        _rates("fars", self.fars)
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds={self.folds} is wrong: set it to 2 or more, or to 0 for no accuracy")


@dataclass(kw_only=True, frozen=True)
class IdentificationProtocolConfig:
    """1:N search with strangers (open set): detection and identification rate at false alarm rates."""

    name: Literal["identification"] = "identification"
    fars: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3])
    """Fractions of strangers that raise an alarm, at which the rate is given."""
    ranks: list[int] = field(default_factory=lambda: [1, 5, 10])
    """Ranks up to which an identification counts."""
    templates: Literal["nearest", "mean"] = "nearest"
    """What an enrolled class is compared by: the nearest of its images, or their mean."""
    shots: int = 1
    """Without query and gallery: images of a class that are enrolled, drawn by seed; the others are probes."""
    strangers: float = 0.5
    """Without query and gallery: fraction of the classes of which none is enrolled, drawn by seed."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        _rates("fars", self.fars)
        _counts("ranks", self.ranks)
        check_at_least(1, shots=self.shots)
        if not 0 < self.strangers < 1:
            raise ValueError(f"strangers={self.strangers} is wrong: give a fraction between 0 and 1")


@dataclass(kw_only=True, frozen=True)
class ClusteringProtocolConfig:
    """k-means, and how well its clusters are the classes: NMI, AMI, F1."""

    name: Literal["clustering"] = "clustering"
    num_clusters: int | None = None
    """Clusters; null: as many as there are classes."""
    iterations: int = 100
    """Rounds of k-means at most."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(1, num_clusters=self.num_clusters, iterations=self.iterations)


@dataclass(kw_only=True, frozen=True)
class EpisodesProtocolConfig:
    """N-way few-shot episodes: are queries put to their class by a few examples of each?"""

    name: Literal["episodes"] = "episodes"
    ways: int = 20
    """Classes of an episode."""
    shots: int = 1
    """Examples of a class."""
    queries: int = 1
    """Queries of a class."""
    episodes: int = 1000
    """Episodes that are drawn by seed."""
    method: Literal["nearest", "prototype"] = "nearest"
    """A query is put to the class of the nearest example, or of the nearest mean of a class's examples."""
    within_groups: bool = False
    """Draw the classes of an episode from one group (Omniglot: from one alphabet)."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(2, ways=self.ways)
        check_at_least(1, shots=self.shots, queries=self.queries, episodes=self.episodes)


ProtocolConfig = (
    RetrievalProtocolConfig
    | ReidProtocolConfig
    | VerificationProtocolConfig
    | IdentificationProtocolConfig
    | ClusteringProtocolConfig
    | EpisodesProtocolConfig
)


@dataclass(kw_only=True, frozen=True)
class EvaluateData:
    """One catalog to evaluate on."""

    path: str | None = None
    """Catalog; null: the data of the checkpoint's run."""
    split: str | None = None
    """Split of it; null: the test split of the checkpoint's run."""


@dataclass(kw_only=True, frozen=True)
class EvaluateJob:
    """jobs/evaluate.py: any checkpoint or file of embeddings, on any images, by any protocol."""

    checkpoint: str | list[str] | None = None
    """Folder of a checkpoint, or of a run (its best one), or several; null: what is given are embeddings."""
    data: EvaluateData = field(default_factory=EvaluateData)
    """One catalog to evaluate on."""
    query: str | None = None
    """Instead of `data`: image folder (class = sub-folder), archive, catalog or file of embeddings; without `gallery`
    it is evaluated leave-one-out."""
    gallery: str | None = None
    """What `query` is searched in; classes are matched by name."""
    query_split: str | None = None
    """Split of a query that is a catalog; null: all of it."""
    gallery_split: str | None = None
    """Split of a gallery that is a catalog; null: all of it."""
    embeddings: str | None = None
    """File of embeddings (jobs/embed.py) to evaluate as one set, instead of a checkpoint and images."""
    protocol: ProtocolConfig = field(default_factory=RetrievalProtocolConfig)
    """What is measured."""
    seed: int = 0
    """Key of what is drawn: bootstrap resamples, folds, first cluster centers, enrolled classes, episodes."""
    batch_size: int = 512
    """Images per forward pass."""
    out: str | None = None
    """JSON file to write the result to as well; null: none."""
    allow_custom_targets: bool = False
    """Whether `model.target` of a checkpoint may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check what contradicts itself whatever the files hold.

        Raises:
            ValueError: Naming key, value and what to do.
        """
        check_at_least(1, batch_size=self.batch_size)
        check_at_least(0, seed=self.seed)
        if self.checkpoint == []:
            raise ValueError("checkpoint=[] names none: give the folder of a run or of a checkpoint")
        self._check_sources()
        protocol = self.protocol
        if self.gallery is not None and protocol.name in ("verification", "clustering", "episodes"):
            raise ValueError(
                f"gallery={self.gallery} is of no use to protocol={protocol.name}, which takes one set: "
                "leave gallery out"
            )

    def _check_sources(self) -> None:
        for key in ("query", "gallery"):
            split = getattr(self, f"{key}_split")
            if split is not None and getattr(self, key) is None:
                raise ValueError(f"{key}_split={split} but {key}=null: name the catalog as {key}=FILE")
        if self.gallery is not None and self.query is None:
            raise ValueError(f"gallery={self.gallery} but query=null: give what is searched as query=...")
        one_set = {"data.path": self.data.path, "data.split": self.data.split}
        if self.embeddings is not None:
            for key, value in {"checkpoint": self.checkpoint, "query": self.query, **one_set}.items():
                if value is not None:
                    raise ValueError(
                        f"embeddings={self.embeddings} is evaluated as it is: leave {key}={_shown(value)} out"
                    )
            return
        if self.query is not None:
            for key, value in one_set.items():
                if value is not None:
                    raise ValueError(
                        f"{key}={value} and query={self.query} are two sets of images: leave one of them out"
                        + (" (query_split=... names a split)" if key == "data.split" else "")
                    )
        elif self.checkpoint is None:
            raise ValueError(
                "checkpoint=null and there are no embeddings: give checkpoint=FOLDER, embeddings=FILE, or "
                "query=FILE.parquet"
            )


def _shown(value: str | list[str]) -> str:
    return value if isinstance(value, str) else f"[{','.join(value)}]"
