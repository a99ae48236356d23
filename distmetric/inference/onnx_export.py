"""An embedder as an ONNX graph: pixels in, embeddings out, for any batch size, and a comparison with the original."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from distmetric.errors import InputError, ResourceError
from distmetric.models.adapters import one_line
from distmetric.models.embedder import Embedder

INPUT, OUTPUT = "images", "embeddings"
# A graph of more bytes than protobuf takes keeps its weights in a second file beside it.
_ONE_FILE_BYTES = 1_900_000_000
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """See that everything needed is installed.

    Raises:
        ResourceError: Naming the packages that are not.
    """
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ResourceError(f"formats=[onnx] needs {', '.join(missing)}: pip install 'distmetric[export]'")


def export_onnx(embedder: Embedder, shape: Sequence[int], path: Path, facts: Mapping[str, str]) -> None:
    """Write an embedder as an ONNX file with a dynamic batch.

    The graph takes what comes out of a decoder and nothing else: `images`, uint8 (batch, C, H, W). Scaling to [0, 1],
    mean and deviation are part of it, so that no user can get them wrong; resizing is not. Of a model of clips they are
    (batch, T, C, H, W), with its own number of frames T. It gives `embeddings`,
    float32 (batch, D), of length one where the embedder's are.

    Args:
        embedder: In evaluation mode and float32, on the CPU.
        shape: (C, H, W) of the images, (T, C, H, W) of clips.
        path: Where to write; weights beyond 1.9 GB go into a second file beside it.
        facts: Kept as properties of the model.

    Raises:
        InputError: If the exporter cannot express the model.
        ResourceError: If a package is missing.
    """
    check_packages()
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                embedder,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
            assert program is not None, "with dynamo=True there is always a program"
            program.model.metadata_props.update(facts)
            weight_bytes = sum(tensor.nbytes for tensor in embedder.state_dict().values())
            program.save(path, external_data=weight_bytes > _ONE_FILE_BYTES)
    except (
        Exception
    ) as error:  # the exporter's own errors, and whatever a model of another library raises in it
        raise InputError(
            f"this model cannot be exported to ONNX ({one_line(_root(error))}): formats=[safetensors,mlflow] take it"
        ) from error


def onnx_difference(path: Path, embedder: Embedder, images: Tensor, batch_sizes: Sequence[int]) -> float:
    """How far the embeddings of an ONNX file, computed by onnxruntime, are from those of the embedder.

    Args:
        path: The file; the whole of it is checked first.
        embedder: What it was made from, on the CPU.
        images: (N, C, H, W) or (N, T, C, H, W) uint8 to embed.
        batch_sizes: Sizes to split them into, one after the other; the rest of the last round is a smaller batch.

    Returns:
        The largest difference of two components.

    Raises:
        InputError: If the file is no valid ONNX, or onnxruntime cannot run it.
        ResourceError: If a package is missing.
    """
    check_packages()
    import onnx
    import onnxruntime

    with torch.no_grad():
        expected = embedder(images)
    try:
        onnx.checker.check_model(str(path), full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        largest = 0.0
        for size in batch_sizes:
            for start in range(0, len(images), size):
                batch = slice(start, start + size)
                found = session.run([OUTPUT], {INPUT: images[batch].numpy()})[0]
                difference = (torch.from_numpy(found) - expected[batch]).abs().max().item()
                largest = max(largest, difference if difference == difference else float("inf"))
    except Exception as error:  # neither package has one type for what can go wrong
        raise InputError(f"the ONNX file cannot be run ({one_line(error)}): nothing was exported") from error
    return largest


def _root(error: BaseException) -> BaseException:
    """What went wrong first: the exporter's own errors say in which of its steps, and to file an issue."""
    return error if error.__cause__ is None else _root(error.__cause__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: it misses torchvision, and uses what torch deprecates."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
