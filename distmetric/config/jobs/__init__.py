"""The configurations of the jobs beside training: one file, and one dataclass, for each of conf/."""

from distmetric.config.jobs.benchmark import BenchmarkJob
from distmetric.config.jobs.embed import EmbedJob
from distmetric.config.jobs.evaluate import EvaluateData, EvaluateJob
from distmetric.config.jobs.ingest import IngestJob
from distmetric.config.jobs.mine import MineJob

__all__ = ["BenchmarkJob", "EmbedJob", "EvaluateData", "EvaluateJob", "IngestJob", "MineJob"]
