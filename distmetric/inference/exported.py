"""An exported embedder: weights as safetensors, and a config.json that is enough to build the model again.

Reading one needs torch, numpy, Pillow, pyarrow and safetensors, but no Ray, Hydra or MLflow. MLflow loads its models
through `_load_pyfunc`, so they can be used wherever this package is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.config.decode import decode
from distmetric.data.decode import BadImageError, decode_image
from distmetric.errors import ConfigError, InputError, ResourceError
from distmetric.inference.device import best_device
from distmetric.models.build import build_embedder
from distmetric.models.embedder import Embedder
from distmetric.models.spec import AnySpec, LibrarySpec
from distmetric.secrets import masked

FORMAT = 1
WEIGHTS, CONFIG = "embedder.safetensors", "config.json"
IMAGE_COLUMN = "image"
_BATCH_SIZE = 64
_ALLOW = "DISTMETRIC_ALLOW_CUSTOM_TARGETS"


@dataclass(frozen=True, kw_only=True)
class ExportedConfig:
    """What `config.json` says.

    Args:
        format: Of the folder; readers know one.
        version: The distmetric that wrote it.
        model: What the embedder is made of, the size and channels of its images included.
        attribute_values: Values of the attributes that it predicts, in the order of their logits.
        step: Optimizer steps done.
        metrics: Of the evaluation at that step; empty where there was none.
        fingerprint: Of the data it was trained on.
        calibration: The distance up to which two images are taken for the same class, and its error rates; None where
            it was never measured.
    """

    format: int = FORMAT
    version: str
    model: AnySpec
    attribute_values: dict[str, list[str]]
    step: int
    metrics: dict[str, float]
    fingerprint: str
    calibration: dict[str, Any] | None = None


def write_exported(folder: Path, embedder: Embedder, config: ExportedConfig) -> str:
    """Write an embedder into an existing folder.

    Returns:
        SHA-256 of the weights file: equal for equal weights.

    Raises:
        ResourceError: If safetensors is not installed.
    """
    save = _safetensors().save
    # Copies, because no two may share memory, and contiguous, whatever the layout on the device.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in embedder.state_dict().items()
    }
    data: bytes = save(tensors)
    finite = {name: value for name, value in config.metrics.items() if math.isfinite(value)}
    (folder / WEIGHTS).write_bytes(data)
    text = json.dumps(masked(asdict(replace(config, metrics=finite))), indent=1)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    return hashlib.sha256(data).hexdigest()


def read_exported_config(folder: str | Path) -> ExportedConfig:
    """What an exported folder says of its embedder.

    Raises:
        InputError: If there is no config.json, or none that this version reads.
    """
    path = Path(folder).expanduser() / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise InputError(
                f"{path} has format {values['format']} (written by distmetric {values.get('version')}), this "
                f"version reads {FORMAT}: use the version that wrote it"
            )
        return decode(ExportedConfig, values)
    except OSError:
        raise InputError(f"{folder} is not an exported embedder: it has no {CONFIG}") from None
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}): export again") from None


def load_exported(
    folder: str | Path, device: torch.device | str = "cpu", *, allow_custom_targets: bool = False
) -> Embedder:
    """The embedder in a folder that `jobs/export.py` wrote, in evaluation mode, bit for bit the one of the checkpoint.

        embedder = load_exported("exported")
        embeddings = embedder(images)    # (B, C, H, W) uint8 -> (B, D)

    Args:
        folder: Has `embedder.safetensors` and `config.json`.
        device: Where it is to compute.
        allow_custom_targets: Whether its trunk may be code outside this package, which is imported and run.

    Raises:
        InputError: If the folder is incomplete, or its files do not belong together.
        ConfigError: If a trunk of one's own or of another library cannot be built here.
        ResourceError: If safetensors, or the library of the trunk, is not installed.

    Corner cases: weights of other libraries' models are not downloaded, only, unless it is cached, their description.
    """
    config = read_exported_config(folder)
    spec = config.model
    if isinstance(spec, LibrarySpec):
        spec = replace(spec, pretrained=False)
    embedder = build_embedder(
        spec, seed=0, attribute_values=config.attribute_values, allow_custom_targets=allow_custom_targets
    )
    path = Path(folder).expanduser() / WEIGHTS
    load = _safetensors().load
    try:
        tensors = load(path.read_bytes())
        if any(tensor.dtype == torch.float64 for tensor in tensors.values()):
            embedder.double()
        embedder.load_state_dict(tensors)
    except OSError:
        raise InputError(f"{folder} is not an exported embedder: it has no {WEIGHTS}") from None
    except (
        Exception
    ) as error:  # of safetensors, whose errors have no common type, and of another architecture
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not fit {CONFIG} ({reason}): export again") from None
    return embedder.eval().to(device)


class ServedEmbedder:
    """Encoded images in, embeddings out: what MLflow's pyfunc models call.

    Args:
        folder: As `load_exported` takes it.
        allow_custom_targets: Likewise.
    """

    def __init__(self, folder: str | Path, *, allow_custom_targets: bool = False) -> None:
        spec = read_exported_config(folder).model
        self._size, self._channels = spec.image_sides, spec.channels
        self._device = best_device()
        self._embedder = load_exported(
            folder, self._device, allow_custom_targets=allow_custom_targets
        ).float()

    def predict(
        self,
        model_input: Mapping[str, Iterable[bytes]],
        params: Mapping[str, Any] | None = None,  # noqa: ARG002 - MLflow's protocol
    ) -> NDArray[np.float32]:
        """Embed images.

        Args:
            model_input: A table with the column "image": the content of N files (JPEG, PNG, ...), decoded and scaled
                as in training.
            params: Not used.

        Returns:
            (N, D) float32.

        Raises:
            InputError: If an image cannot be decoded, naming its row.
        """
        images = list(model_input[IMAGE_COLUMN])
        parts = [np.empty((0, self._embedder.embedding_dim), np.float32)]
        for start in range(0, len(images), _BATCH_SIZE):
            pixels = [
                self._decoded(start + i, data) for i, data in enumerate(images[start : start + _BATCH_SIZE])
            ]
            with torch.no_grad():
                embeddings = self._embedder(torch.from_numpy(np.stack(pixels)).to(self._device))
            parts.append(embeddings.cpu().numpy())
        return np.concatenate(parts)

    def _decoded(self, row: int, data: bytes) -> NDArray[np.uint8]:
        try:
            return decode_image(bytes(data), self._size, self._channels)
        except BadImageError as error:
            raise InputError(f"the image in row {row} cannot be used: {error}") from None


def _load_pyfunc(data_path: str) -> ServedEmbedder:
    """What MLflow calls to load a model that names this module as its loader.

    Who loads a model whose trunk is code outside this package says so in the environment.
    """
    return ServedEmbedder(data_path, allow_custom_targets=os.environ.get(_ALLOW, "").lower() == "true")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ResourceError(
            "exports of weights need the package safetensors: pip install 'distmetric[export]'"
        ) from None
    return safetensors.torch
