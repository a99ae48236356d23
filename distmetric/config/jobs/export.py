"""The configuration of jobs/export.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ExportFormat = Literal["onnx", "safetensors", "mlflow"]


@dataclass(kw_only=True, frozen=True)
class ExportJob:
    """An embedder for use elsewhere."""

    checkpoint: str
    """Folder of a checkpoint, or of a run, whose best checkpoint is taken."""
    formats: list[ExportFormat] = field(default_factory=lambda: ["onnx", "safetensors"])
    """What to make: onnx (model.onnx), safetensors (embedder.safetensors and config.json), mlflow (a logged model)."""
    out: str | None = None
    """Folder for the files; mlflow alone needs none."""
    images: str | None = None
    """Images to compare the exports on: catalog, image folder, archive or single image; null: random ones."""
    tolerance: float = 1e-4
    """Largest difference that a component may have, times the largest component or 1; more is an error."""
    tracking_uri: str | None = None
    """MLflow server or database for mlflow; null: the one that the run was tracked in."""
    register: str | None = None
    """Name to register the logged model under, as its next version; null: it is not registered."""
    alias: str | None = None
    """Alias for that version; best moves only to a better one of the same protocol and data, others always."""
    allow_custom_targets: bool = False
    """Whether `model.target` of a checkpoint may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check what goes together.

        Raises:
            ValueError: Naming the first setting that is wrong.
        """
        files = [name for name in self.formats if name != "mlflow"]
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError(
                f"formats={self.formats} is wrong: name onnx, safetensors and mlflow at most once"
            )
        if files and not self.out:
            raise ValueError(f"out=null is wrong with formats={self.formats}: give the folder for the files")
        for key in ("tracking_uri", "register"):
            if getattr(self, key) is not None and "mlflow" not in self.formats:
                raise ValueError(f"{key}={getattr(self, key)} is for MLflow: add mlflow to formats")
        if self.alias is not None and self.register is None:
            raise ValueError(f"alias={self.alias} is for a registered model: give register=NAME, too")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance} is wrong: give a number above 0")
