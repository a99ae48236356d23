"""What `jobs/benchmark.py suite=scaling` takes for granted of GPUs that are not here."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(kw_only=True, frozen=True)
class AssumedCluster:
    """suite=scaling: assumptions of the predictions, nothing of which is measured; about an H100 and a ResNet-50."""

    batch_per_gpu: int = 512
    """Images of each GPU in a step."""
    dim: int = 128
    """D, length of the embeddings."""
    parameters: float = 25.6e6
    """P, weights of the model: a ResNet-50 has 25.6 million."""
    image_gflop: float = 24.6
    """Operations of an image, forward and backward, in 10^9: a ResNet-50 at 224 x 224, three times 8.2."""
    activation_mb: float = 50.0
    """Activations kept of an image for the backward pass, in 10^6 bytes, with bfloat16."""
    trunk_tflops: float = 60.0
    """What the trunk reaches in bfloat16, in 10^12 operations per second."""
    pair_tflops: float = 40.0
    """What large float32 matrix products reach, in 10^12 operations per second: distances are float32."""
    memory_gb_per_s: float = 2000.0
    """What the GPU's memory reaches when it is read and written, in 10^9 bytes per second."""
    node_gb_per_s: float = 300.0
    """What each GPU sends to others of its machine (NVLink), in 10^9 bytes per second."""
    network_gb_per_s: float = 40.0
    """What each GPU sends to other machines (400 Gbit/s each), in 10^9 bytes per second."""
    gpus_per_node: int = 8
    """GPUs of a machine."""
    latency_us: float = 20.0
    """What a collective of two ranks takes for nothing, in 10^-6 seconds; each doubling of the ranks adds as much."""
    host_gflops: float = 1000.0
    """float32 matrix products of the host of an index shard, in 10^9 operations per second."""
    host_gb_per_s: float = 50.0
    """What that host copies, in 10^9 bytes per second."""
    images_per_class: int = 100
    """Of the data sets that are predicted."""
    rows_per_shard: float = 4e6
    """Images for each shard of the index."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is not above 0.
        """
        for each in fields(self):
            if not 0 < getattr(self, each.name) < float("inf"):
                raise ValueError(f"{each.name}={getattr(self, each.name)} is wrong: give a number above 0")
