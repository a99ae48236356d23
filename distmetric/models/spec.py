"""What a model is made of, as data: one small dataclass per kind of trunk, told apart by `name`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

Pooling = Literal["avg", "max", "gem", "flatten"]
Temporal = Literal["mean", "attention", "attribute_attention"]
Head = Literal["linear_bn", "linear", "mlp", "none"]
MAX_VIEWS: Final = 9
"""Most views of an image that `models/views.py` knows."""


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec:
    """What every model has in common: the images it takes and what happens to the features of its trunk."""

    name: str
    """Which kind of trunk this describes."""
    image_size: int | list[int] = 28
    """Side of the square input images in pixels, or [height, width]."""
    channels: int = 1
    """Channels of the input images: 1 for gray, 3 for RGB."""
    frames_per_clip: int | None = None
    """Frames of a clip, drawn from a tracklet, that are embedded as one sample; null: samples are single images."""
    temporal: Temporal = "mean"
    """How the frames of a clip become one vector; attribute_attention also looks where attributes are seen."""
    embedding_dim: int = 128
    """Length of an embedding; with head none it must be what the pooled trunk gives."""
    pooling: Pooling = "avg"
    """How a feature map becomes a vector; trunks that give vectors already are not pooled."""
    head: Head = "linear_bn"
    """What maps the pooled features to the embedding; linear_bn standardizes each dimension over the joint batch."""
    normalize: bool = True
    """Whether embeddings are scaled to length one."""
    views: int = 1
    """In how many slightly turned, shifted and scaled ways a trained model sees an image, to average: 1 to 9."""
    framing: float = 0.0
    """Fraction of the image that the longer side of what is drawn on it is brought to, in the middle; 0.0: as it is."""
    whitening: bool = False
    """Whether a trained model counts directions less in which classes scatter, as evaluations in training find them."""
    image_mean: list[float] | None = None
    """Mean per channel to subtract from images in [0, 1]; null takes the trunk's own, else 0.5."""
    image_std: list[float] | None = None
    """Standard deviation per channel to divide by; null takes the trunk's own, else 0.5."""
    attributes: list[str] = field(default_factory=list)
    """Attributes of the catalog that the model predicts beside the embedding, for losses that look at them."""
    attributes_detached: bool = True
    """Whether attributes are read off the pooled features without training the trunk."""
    attribute_groups: list[list[str]] | None = None
    """Groups of model.attributes that share an attention map with temporal=attribute_attention; null: one group."""

    def __post_init__(self) -> None:
        """Check the size of the images, which a property reads, and the views.

        Raises:
            ValueError: If it is none, or there are too many or none.
        """
        if not 0 <= self.framing <= 1:
            raise ValueError(
                f"framing={self.framing} is wrong: give a fraction of the image, such as 0.8, or 0.0"
            )
        if not 1 <= self.views <= MAX_VIEWS:
            raise ValueError(f"views={self.views} is wrong: 1 to {MAX_VIEWS} are known")
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(
                f"image_size={self.image_size} is wrong: give one number from 1 on, or [height, width]"
            )

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of the input images in pixels."""
        size = self.image_size
        return (size[0], size[1]) if isinstance(size, list) else (size, size)


@dataclass(frozen=True, kw_only=True)
class ConvSpec(EmbedderSpec):
    """A plain stack of convolutions, for small images."""

    name: Literal["conv"] = "conv"
    """Which kind of trunk this describes."""
    pooling: Pooling = "flatten"
    """How a feature map becomes a vector; flatten keeps where in a small image a stroke was."""
    widths: list[int] = field(default_factory=lambda: [32, 64, 64])
    """Channels of each block; every block halves the image."""
    pool_last: bool = True
    """Whether the last block halves the image too."""
    norm: Literal["batch", "sync_batch", "group"] = "batch"
    """Normalization: over this rank's batch, over the batches of all ranks, or per image."""


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(EmbedderSpec):
    """A small residual network."""

    name: Literal["resnet"] = "resnet"
    """Which kind of trunk this describes."""
    widths: list[int] = field(default_factory=lambda: [64, 128, 256])
    """Channels of each stage; every stage after the first halves the image."""
    blocks_per_stage: list[int] = field(default_factory=lambda: [2, 2, 2])
    """Residual blocks of each stage."""
    stem_stride: int = 1
    """Stride of the first convolution; 2 saves three quarters of the work on large images."""
    norm: Literal["batch", "sync_batch", "group"] = "batch"
    """Normalization: over this rank's batch, over the batches of all ranks, or per image."""


@dataclass(frozen=True, kw_only=True)
class LibrarySpec(EmbedderSpec):
    """What models of other libraries have in common."""

    pretrained: bool = True
    """Whether to load the weights; false takes the architecture with fresh ones."""
    token: Literal["cls", "mean"] = "cls"
    """Which tokens of a vision transformer make the feature vector: the class token or the mean of the
    patches."""
    resize_to: int | None = None
    """Side that images are resized to before the trunk; null takes the model's own, 0 keeps them as they
    are."""
    norm: Literal["batch", "sync_batch"] = "batch"
    """Whether the trunk's batch norms, if any, see this rank's batch or those of all ranks."""
    image_size: int | list[int] = 224
    """Side of the square input images in pixels, or [height, width]."""
    channels: int = 3
    """Channels of the input images: 1 for gray, 3 for RGB."""


@dataclass(frozen=True, kw_only=True)
class TransformersSpec(LibrarySpec):
    """A vision model of the transformers library."""

    name: Literal["transformers"] = "transformers"
    """Which kind of trunk this describes."""
    model: str = "facebook/dinov2-small"
    """Name on the Hugging Face Hub, or path of a local folder that has a config.json."""
    local_files_only: bool = False
    """Whether to look only at local files, without a network."""


@dataclass(frozen=True, kw_only=True)
class TimmSpec(LibrarySpec):
    """A model of the timm library, which needs torchvision beside it."""

    name: Literal["timm"] = "timm"
    """Which kind of trunk this describes."""
    model: str = "resnet50"
    """Name that timm.create_model takes."""


@dataclass(frozen=True, kw_only=True)
class CustomSpec(EmbedderSpec):
    """A trunk of your own: any importable nn.Module that gives (B, F, h, w) or (B, F)."""

    name: Literal["custom"] = "custom"
    """Which kind of trunk this describes."""
    target: str
    """Dotted path of the class, as in my_package.trunks.MyTrunk."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    norm: Literal["batch", "sync_batch"] = "batch"
    """Whether the trunk's batch norms, if any, see this rank's batch or those of all ranks."""


AnySpec = ConvSpec | ResNetSpec | TransformersSpec | TimmSpec | CustomSpec
