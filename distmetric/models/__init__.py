"""Models: trunk, pooling and head as one embedder, from a description of it."""

from distmetric.models.build import build_embedder
from distmetric.models.conv import ConvTrunk
from distmetric.models.embedder import Embedder
from distmetric.models.pooling import GeMPool
from distmetric.models.resnet import SmallResNet
from distmetric.models.spec import AnySpec, ConvSpec, CustomSpec, ResNetSpec, TimmSpec, TransformersSpec

__all__ = [
    "AnySpec",
    "ConvSpec",
    "ConvTrunk",
    "CustomSpec",
    "Embedder",
    "GeMPool",
    "ResNetSpec",
    "SmallResNet",
    "TimmSpec",
    "TransformersSpec",
    "build_embedder",
]
