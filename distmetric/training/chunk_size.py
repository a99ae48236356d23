"""How many images a worker takes through the trunk at a time: all, so many as was set, or what memory is free for."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distmetric.config.chunks import check_chunked_norm
from distmetric.config.schema import Config
from distmetric.distributed.batch_norm import SyncBatchNorm2d
from distmetric.distributed.gather import gather
from distmetric.distributed.gradient_cache import kept_buffers
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError, ResourceError
from distmetric.samplers.slices import slice_sizes
from distmetric.training.memory import available_memory

_ACTIVATIONS, _AUGMENTATION, _WEIGHTS = 1.5, 32, 5
"""Bytes at the peak: per byte that the graph keeps, per value of an image, and per byte of the weights."""


def chosen_chunk_size(
    config: Config,
    trunk: nn.Module,
    features: Callable[[Tensor], Tensor],
    replica: Replica,
    device: torch.device,
    recorded: Mapping[str, Any] | None = None,
) -> int | None:
    """What `train.chunk_size` means for this run, the same on all ranks, which all call it.

    Args:
        config: The whole run.
        trunk: What is taken through in chunks: trunk and pooling.
        features: Images as bytes -> what the trunk makes of them, as in training.
        replica: Who this rank is.
        device: Where the trunk is.
        recorded: What `ModelPass.record` said in the checkpoint that is gone on from. A chunk size that was chosen
            then is kept for as many ranks, so that the sums go on in their order; other ranks choose anew.

    Returns:
        Most rows of a chunk; None for all at once.

    Raises:
        ConfigError: If the trunk has norms that chunks would change and must not.
        ResourceError: If it was to be chosen and not even one image fits, or the machine does not tell what is free.
    """
    wanted = config.train.chunk_size
    if wanted is None:
        return None
    if trains_batch_norm(trunk):
        is_joint = trains_batch_norm(trunk, SyncBatchNorm2d | nn.SyncBatchNorm)
        check_chunked_norm(wanted, "sync_batch" if is_joint else "batch")
    if wanted != "auto":
        return wanted
    if recorded is not None and recorded["world_size"] == replica.world_size:
        kept: int | None = recorded["chunk_size"]
        return kept
    return _that_fits(config, trunk, features, replica, device)


def rows_of_rank(config: Config, replica: Replica) -> int:
    """Most rows of a global batch that a rank has."""
    batch = config.sampler.classes_per_batch * config.sampler.samples_per_class
    return slice_sizes(batch, replica.world_size)[0]


def trains_batch_norm(trunk: nn.Module, kind: Any = _BatchNorm) -> bool:
    """Whether a trunk has a batch norm that normalizes by what it is given, instead of by running statistics."""
    return any(isinstance(module, kind) and module.training for module in trunk.modules())


def bytes_per_image(features: Callable[[Tensor], Tensor], trunk: nn.Module, images: Tensor) -> float:
    """What one more image costs at the peak of a forward and backward pass.

    It is counted, not measured: the tensors that the graph keeps for one image and for two, weights aside, and what is
    needed beside them. The same model has the same answer everywhere.

    Args:
        features: Images -> what the trunk makes of them.
        trunk: Whose buffers stay as they are, as does the state of all random generators.
        images: (2, C, H, W) or (2, T, C, H, W) uint8.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*trunk.parameters(), *trunk.buffers())}
    devices = [images.device] if images.is_cuda else []
    with kept_buffers(trunk), torch.random.fork_rng(devices), torch.enable_grad():
        one, two = (_kept(features, images[:count], own) for count in (1, 2))
    return _ACTIVATIONS * (two - one) + _AUGMENTATION * images[0].numel()


def _kept(features: Callable[[Tensor], Tensor], images: Tensor, own: set[int]) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = features(images)  # holds the graph, and with it what is kept, until all is counted
    del found
    return sum(kept.values())


def _that_fits(
    config: Config,
    trunk: nn.Module,
    features: Callable[[Tensor], Tensor],
    replica: Replica,
    device: torch.device,
) -> int | None:
    """Half of what will be free is for activations: a loss needs blocks of pairs, libraries have buffers."""
    model, rows = config.model, rows_of_rank(config, replica)
    frames = () if model.frames_per_clip is None else (model.frames_per_clip,)
    shape = (2, *frames, model.channels, *model.image_sides)
    images = torch.zeros(shape, dtype=torch.uint8).to(device)
    cost = bytes_per_image(features, trunk, images)
    weights = sum(parameter.nbytes for parameter in trunk.parameters())
    free = _free(replica, device)
    left = -1.0 if free is None else max(0.0, free - _WEIGHTS * weights - 2 * rows * images[0].numel())
    fitting = replica.min(-1.0 if free is None else left / 2 // cost, device)
    if fitting < 0:
        raise ConfigError(
            "train.chunk_size=auto, but this machine does not tell how much memory is free: "
            "set train.chunk_size to a number of rows, or to null"
        )
    if fitting < 1:
        raise ResourceError(
            f"train.chunk_size=auto, but not even one image, of {cost / (1 << 20):,.1f} MiB with its activations, fits "
            "into half of the free memory: lower model.image_size, choose a smaller model, or add memory"
        )
    # A power of two, so that a little more or less of free memory gives the same numbers.
    return None if fitting >= rows else 1 << (int(fitting).bit_length() - 1)


def _free(replica: Replica, device: torch.device) -> float | None:
    """This rank's share of the memory that is free where its tensors are."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    host = torch.tensor([zlib.crc32(socket.gethostname().encode())])
    together = int((gather(host, replica, [1] * replica.world_size) == host).sum())
    free = available_memory()
    return None if free is None else free / together
