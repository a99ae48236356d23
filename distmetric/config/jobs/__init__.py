"""The configurations of the jobs beside training: one file, and one dataclass, for each of conf/."""

from distmetric.config.jobs.benchmark import BenchmarkJob
from distmetric.config.jobs.embed import EmbedJob
from distmetric.config.jobs.evaluate import EvaluateData, EvaluateJob
from distmetric.config.jobs.export import ExportJob
from distmetric.config.jobs.ingest import IngestJob
from distmetric.config.jobs.mine import MineJob
from distmetric.config.jobs.report import ReportJob
from distmetric.config.jobs.search import SearchJob
from distmetric.config.jobs.study import StudyConfig, StudyJob
from distmetric.config.jobs.tune import TuneJob

__all__ = [
    "BenchmarkJob",
    "EmbedJob",
    "EvaluateData",
    "EvaluateJob",
    "ExportJob",
    "IngestJob",
    "MineJob",
    "ReportJob",
    "SearchJob",
    "StudyConfig",
    "StudyJob",
    "TuneJob",
]
