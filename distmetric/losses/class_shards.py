"""Tensors with rows for every class, of which a rank may hold the rows of its share of the classes only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class ShardedParameter(nn.Parameter):
    """A parameter whose rows are of this rank's classes: other ranks have others, so that no mean over ranks is due."""


class ClassSharded(nn.Module):
    """A loss with rows for every class, which can be divided among ranks by class.

    Attributes:
        num_classes: C.
        own_classes: The classes whose rows are here; all of them unless others are on other ranks.
        is_sharded: Whether it is to be divided, however many ranks there are.
        row_names: Its tensors that have rows for every class, equally many for each, in the order of classes.
    """

    row_names: ClassVar[tuple[str, ...]]
    num_classes: int
    own_classes: range
    is_sharded: bool = False

    @property
    def has_all_classes(self) -> bool:
        """Whether no class's rows are on another rank."""
        return len(self.own_classes) == self.num_classes

    def shard(self, rank: int, world_size: int) -> None:
        """Keep the rows of this rank's share of the classes, and drop the others."""
        raise NotImplementedError

    def _take_share(self, rank: int, world_size: int) -> None:
        """Set `own_classes`; raises ValueError if there are fewer classes than ranks."""
        assert not self.is_sharded, "it is sharded already"
        if world_size > self.num_classes:
            raise ValueError(
                f"{self.num_classes} classes cannot be divided among {world_size} ranks: shard no classes"
            )
        self.own_classes, self.is_sharded = class_shard(self.num_classes, rank, world_size), True


class ClassRows(NamedTuple):
    """A tensor with rows for every class.

    Attributes:
        tensor: (c k, ...), of the c classes that are here.
        classes: These.
        num_classes: How many there are in all.
        is_sharded: Whether it is to be divided among ranks.
    """

    tensor: Tensor
    classes: range
    num_classes: int
    is_sharded: bool

    def places(self, classes: range, held: range) -> slice:
        """Where the rows of some classes are in a tensor like this one that holds those of `held`."""
        k = len(self.tensor) // len(self.classes)
        return slice((classes.start - held.start) * k, (classes.stop - held.start) * k)


def class_rows(module: nn.Module) -> Iterator[tuple[str, ClassRows]]:
    """All tensors with rows for every class in a loss, by their names in its state dict."""
    for prefix, part in module.named_modules():
        if isinstance(part, ClassSharded):
            for name in part.row_names:
                rows = ClassRows(getattr(part, name), part.own_classes, part.num_classes, part.is_sharded)
                yield f"{prefix}.{name}" if prefix else name, rows


def class_shard(num_classes: int, rank: int, world_size: int) -> range:
    """The classes that one rank looks after: as many as the others do, or one more or less."""
    return range(num_classes * rank // world_size, num_classes * (rank + 1) // world_size)
