"""A checkpoint as ONNX, as safetensors, and as a model in MLflow, each compared with it before anything is kept."""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from distmetric import __version__
from distmetric.config.jobs import ExportJob
from distmetric.config.schema import Config, MLflowConfig
from distmetric.data.decode import Pixels
from distmetric.errors import InputError, ResourceError
from distmetric.inference.exported import (
    CONFIG,
    IMAGE_COLUMN,
    WEIGHTS,
    ExportedConfig,
    load_exported,
    write_exported,
)
from distmetric.inference.images import image_batches
from distmetric.inference.onnx_export import check_packages, export_onnx, onnx_difference
from distmetric.locations import absolute, writing
from distmetric.models.embedder import Embedder
from distmetric.models.spec import EmbedderSpec
from distmetric.tracking.address import tracking_uri, without_credentials
from distmetric.tracking.delivery import read_delivered
from distmetric.tracking.model_card import ModelCard
from distmetric.training.checkpoint import Checkpoint, find_checkpoint
from distmetric.training.run_folder import read_run
from distmetric.training.saved_model import calibration_of, load_embedder

ONNX_FILE = "model.onnx"
# One image, as when serving; the two that the graph is traced with; an odd number; and more than a vector register.
_BATCH_SIZES = (1, 2, 7, 32)
_IMAGES = 39  # so that every size leaves a smaller batch at the end, too
_LOADER = "distmetric.inference.exported"


def export_checkpoint(job: ExportJob) -> dict[str, Any]:
    """Export a checkpoint in the formats that the job names.

    All files are made and compared with the checkpoint first, in a temporary folder; a failure leaves nothing behind.

    Returns:
        What jobs/export.py prints.

    Raises:
        InputError: If the checkpoint is not there, the exporter cannot express the model, or an export's embeddings
            differ from the checkpoint's.
        ResourceError: If a package or the tracking server is missing.
    """
    started = time.monotonic()
    if "onnx" in job.formats:
        check_packages()
    checkpoint = find_checkpoint(absolute(job.checkpoint))
    embedder, config = load_embedder(checkpoint, allow_custom_targets=job.allow_custom_targets)
    embedder = embedder.float()
    if "mlflow" in job.formats and config.model.frames_per_clip is not None:
        raise InputError(
            "formats=[mlflow] serves single images, and the model takes clips "
            f"(model.frames_per_clip={config.model.frames_per_clip}): choose among onnx and safetensors"
        )
    images = _images(job, config.model)
    result: dict[str, Any] = {"checkpoint": checkpoint.location, "step": checkpoint.step}
    place = "the folder for temporary files" if job.out is None else f"out={job.out}"
    with _staging(job.out) as staging:
        files, differences = [], {}
        card = _card(checkpoint, config, "")
        if "onnx" in job.formats:
            with writing(place):
                export_onnx(embedder, images.shape[1:], staging / ONNX_FILE, card.tags())
            differences["onnx"] = onnx_difference(staging / ONNX_FILE, embedder, images, _BATCH_SIZES)
            files += sorted(staging.glob(f"{ONNX_FILE}*"))
        if {"safetensors", "mlflow"} & set(job.formats):
            packed = staging / "embedder"
            with writing(place):
                packed.mkdir()
                card = _card(checkpoint, config, _pack(packed, embedder, checkpoint, config))
            loaded = load_exported(packed, allow_custom_targets=job.allow_custom_targets)
            differences["safetensors"] = _difference(loaded, embedder, images)
        result["parity"] = _checked(differences, embedder, images, job.tolerance)
        if "mlflow" in job.formats:
            result |= _log_model(job, checkpoint, config, packed, card)
        if "safetensors" in job.formats:
            files += [packed / WEIGHTS, packed / CONFIG]
        result["files"] = [_publish(file, job.out) for file in files]
    return result | {"seconds": time.monotonic() - started}


def _images(job: ExportJob, spec: EmbedderSpec) -> Tensor:
    """A few images or clips to compare embeddings of: those of the job, or random ones from coarse to fine."""
    if job.images is not None:
        found: list[Tensor] = []
        for rows in image_batches(job.images, spec, batch_size=_IMAGES, bad=[]):
            found.append(_as_clips(rows.images, spec.frames_per_clip))
            if sum(map(len, found)) >= _IMAGES:
                break
        if not found:
            raise InputError(f"images={job.images}: no image in it can be read")
        return torch.cat(found)[:_IMAGES]
    generator = torch.Generator().manual_seed(0)
    sides, images = spec.image_sides, []
    for i in range(_IMAGES):
        cells = max(1, min(*sides, 2 ** (i % 8)))
        coarse = torch.rand((1, spec.channels, cells, cells), generator=generator)
        fine = torch.nn.functional.interpolate(coarse, sides, mode="bilinear")
        images.append((fine * 255).round().to(torch.uint8))
    every = torch.cat(images)
    frames = [every.roll(-place, 0) for place in range(spec.frames_per_clip or 0)]
    return torch.stack(frames, 1) if frames else every


def _as_clips(images: Tensor, frames: int | None) -> Tensor:
    """Still images repeated, since a graph takes as many frames as the model was trained with."""
    if frames is None or images.dim() == 5:
        return images
    return images[:, None].expand(-1, frames, -1, -1, -1)


def _pack(folder: Path, embedder: Embedder, checkpoint: Checkpoint, config: Config) -> str:
    calibration = calibration_of(checkpoint)
    described = ExportedConfig(
        version=__version__,
        model=config.model,
        attribute_values=embedder.attribute_values,
        step=checkpoint.step,
        metrics=dict(checkpoint.metrics),
        fingerprint=checkpoint.meta["fingerprint"],
        calibration=None if calibration is None else calibration.to_dict(),
    )
    return write_exported(folder, embedder, described)


@torch.no_grad()
def _difference(loaded: Embedder, embedder: Embedder, images: Tensor) -> float:
    return float((loaded(images) - embedder(images)).abs().max())


@torch.no_grad()
def _checked(
    differences: dict[str, float], embedder: Embedder, images: Tensor, tolerance: float
) -> dict[str, Any]:
    """Refuse what differs by more than is tolerated, and say by how much the rest does."""
    largest = float(embedder(images).abs().max())
    allowed = {"onnx": tolerance * max(1.0, largest), "safetensors": 0.0}
    for name, difference in differences.items():
        if not difference <= allowed[name]:
            raise InputError(
                f"formats=[{name}]: its embeddings differ from the checkpoint's by up to {difference:.3g}, more than "
                f"{allowed[name]:.3g} (tolerance={tolerance:g}, largest component {largest:.3g}); nothing was exported"
            )
    return {
        "images": len(images),
        **({"batch_sizes": list(_BATCH_SIZES)} if "onnx" in differences else {}),
        "max_abs_difference": differences,
        "allowed": {name: allowed[name] for name in differences},
    }


def _card(checkpoint: Checkpoint, config: Config, weights: str) -> ModelCard:
    calibration = calibration_of(checkpoint)
    return ModelCard(
        run_name=_run_folder(checkpoint).rpartition("/")[2] or "checkpoint",
        step=checkpoint.step,
        metrics={name: value for name, value in checkpoint.metrics.items() if math.isfinite(value)},
        headline=config.checkpoint.best_metric,
        protocol=f"retrieval, leave-one-out, split {config.data.test_split}",
        fingerprint=checkpoint.meta["fingerprint"],
        calibration={} if calibration is None else calibration.to_dict(),
        weights=weights,
        checkpoint=checkpoint.location,
        version=__version__,
        embedding_dim=config.model.embedding_dim,
        image=" x ".join(map(str, (config.model.channels, *config.model.image_sides))),
        loss=config.loss.name,
        model=config.model.name,
    )


def _log_model(
    job: ExportJob, checkpoint: Checkpoint, config: Config, packed: Path, card: ModelCard
) -> dict[str, Any]:
    from distmetric.tracking.registry import ModelRegistry, PackedModel

    run_uri, run_id = _tracked_run(checkpoint)
    known = None if job.tracking_uri or run_uri is None else _existing(run_uri)
    if not (job.tracking_uri or known or os.environ.get("MLFLOW_TRACKING_URI")):
        raise InputError(
            f"{checkpoint.location} comes from a run that was not tracked: give tracking_uri=... for formats=[mlflow]"
        )
    uri = tracking_uri(job.tracking_uri, ".", known, "tracking_uri")
    tracking = config.tracking if isinstance(config.tracking, MLflowConfig) else MLflowConfig()
    model = PackedModel(
        folder=packed,
        loader_module=_LOADER,
        column=IMAGE_COLUMN,
        example=pa.table({IMAGE_COLUMN: [_example(config.model)]}).to_pandas(),
        requirements=_requirements(config.model),
    )
    registry = ModelRegistry(uri, tracking.experiment)
    run_id = run_id if registry.knows(run_id) else None
    result: dict[str, Any] = {"tracking_uri": without_credentials(uri), "run_id": run_id}
    if job.register is None:
        return result | {"model": registry.log(model, card, run_id)}
    registered = registry.register(job.register, model, card, run_id, job.alias)
    print(f"model:   {registered}", file=sys.stderr)
    return result | {"model": registered.uri, "registered": asdict(registered)}


def _run_folder(checkpoint: Checkpoint) -> str:
    """The run's folder around that of a checkpoint; "" for a checkpoint that was copied elsewhere."""
    return checkpoint.location.rstrip("/").rpartition("/checkpoints/")[0]


def _tracked_run(checkpoint: Checkpoint) -> tuple[str | None, str | None]:
    """URI and identity of the checkpoint's run in its tracker; None where it was not tracked, or lies elsewhere now."""
    if not (folder := _run_folder(checkpoint)):
        return None, None
    try:
        run = read_run(folder)
    except InputError:
        return None, None
    found = read_delivered(folder)
    return found.get("uri", run.tracking_uri), found.get("run_id", run.run_id)


def _existing(uri: str) -> str:
    """Refuse a database that has moved: by opening it, it would be made anew, and empty."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(
            f"{uri}, where this run was tracked, is not there: give tracking_uri=... for formats=[mlflow]"
        )
    return uri


def _example(spec: EmbedderSpec) -> bytes:
    """A small PNG, so that MLflow can show what a request looks like."""
    shape = spec.image_sides if spec.channels == 1 else (*spec.image_sides, 3)
    flat: Pixels = torch.full(shape, 128, dtype=torch.uint8).numpy()
    stream = io.BytesIO()
    Image.fromarray(flat).save(stream, "PNG")
    return stream.getvalue()


def _requirements(spec: EmbedderSpec) -> list[str]:
    """What loads and runs the model, in the versions that did so here."""
    names = ["distmetric", "torch", "numpy", "pyarrow", "pillow", "safetensors", "pandas"]
    names += [spec.name] if spec.name in ("transformers", "timm") else []
    # Without a local part ("+cpu"), which no index has.
    return [f"{name}=={installed_version(name).partition('+')[0]}" for name in names]


@contextmanager
def _staging(out: str | None) -> Iterator[Path]:
    """A folder that is gone afterwards, on the file system of `out`, so that files can be moved there at once."""
    parent = None if out is None else Path(out).expanduser().absolute().parent
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".export-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(f"out={out} cannot be written: {' '.join(str(error).split())}") from None
    with folder as name:
        yield Path(name)


def _publish(file: Path, out: str | None) -> str:
    assert out is not None, "the job's configuration refuses files without a folder"
    target = Path(out).expanduser().absolute() / file.name
    try:
        target.parent.mkdir(exist_ok=True)
        return str(file.replace(target))
    except OSError as error:
        raise ResourceError(f"out={out} cannot be written: {' '.join(str(error).split())}") from None
