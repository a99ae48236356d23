"""Classes made of others: two or three characters drawn into one, as many scripts make theirs."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from distmetric.data.decode import flat_mode, flatten, upright_image
from distmetric.data.items import Item, Labels
from distmetric.data.turned import TURNS
from distmetric.errors import InputError

GROUP = "joined"
"""Group of all classes that were made of others; their names are joined/0, joined/1, ..."""
_KEPT = 64  # images of a class
_SMALLEST, _LARGEST = 0.45, 0.8
_QUARTERS = (None, *TURNS.values())


class _Part(NamedTuple):
    """Where a class of parts has one of them: turned by quarters, its size and place as fractions."""

    class_name: str
    quarters: int
    width: float
    height: float
    x: float
    y: float


class Joiner:
    """Keeps images for training and makes classes of them that are there nowhere else.

    A joined class is two parts (three of every four) or three, each a class for training, turned by quarters, squeezed
    to 0.45 to 0.8 of either side and put somewhere, all of it drawn once for the class. Its k-th image joins one image
    of each part, every one at most once: lines upon lines, on the background of the first.

    Args:
        count: How many classes to make; with 0 nothing is kept.
        seed: Key of what is drawn.

    Cost: the encoded images, up to 64 of a class, are held in memory until all sources are read.

    Source: the strokes and parts of Lake et al. 2015, Human-level concept learning through probabilistic program
    induction (Science 350), without its model of them: classes are joined as they are.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self._seed = count, seed
        self._images: dict[str, list[bytes]] = {}

    def keep(self, item: Item) -> None:
        """Hold an image for training, which can be decoded."""
        if self.count and len(images := self._images.setdefault(item.class_name, [])) < _KEPT:
            images.append(item.data)

    def joined(self) -> Iterator[list[tuple[Item, tuple[int, int]]]]:
        """The images of the new classes, class by class, each with its width and height.

        Raises:
            InputError: If there are fewer than two classes to join.
        """
        names = sorted(self._images)
        if len(names) < 2:
            raise InputError(
                f"joined_classes={self.count} joins classes for training, of which there are {len(names)}: "
                "leave two or more of them for it"
            )
        for number in range(self.count):
            draw = random.Random(f"{self._seed}/{number}")
            parts = [
                _Part(
                    *(draw.choice(names), draw.randrange(4)),
                    *(draw.uniform(_SMALLEST, _LARGEST), draw.uniform(_SMALLEST, _LARGEST)),
                    *(draw.random(), draw.random()),
                )
                for _ in range(2 if draw.random() < 0.75 else 3)
            ]
            kept = [self._images[part.class_name] for part in parts]
            shuffled = [draw.sample(images, len(images)) for images in kept]
            labels = Labels(f"{GROUP}/{number}", GROUP, split="train")
            yield [
                _stored(_drawn(parts, images), f"{labels.class_name}/{place}", labels)
                for place, images in enumerate(zip(*shuffled, strict=False))
            ]


def _stored(image: Image.Image, path: str, labels: Labels) -> tuple[Item, tuple[int, int]]:
    stored = io.BytesIO()
    image.save(stored, "PNG")
    return Item(path, path, labels, stored.getvalue()), image.size


def _drawn(parts: Sequence[_Part], images: Sequence[bytes]) -> Image.Image:
    """An image of each part, as large as the first one, in one."""
    layers = [_turned(data, part.quarters) for part, data in zip(parts, images, strict=True)]
    mode = "L" if all(layer.mode == "L" for layer in layers) else "RGB"
    layers = [layer.convert(mode) for layer in layers]
    width, height = layers[0].size
    background = _background(layers[0])
    is_bright = float(np.mean(background)) > 127
    together = ImageChops.darker if is_bright else ImageChops.lighter
    canvas = Image.new(mode, (width, height), background)
    for part, layer in zip(parts, layers, strict=True):
        size = max(1, round(part.width * width)), max(1, round(part.height * height))
        corner = round(part.x * (width - size[0])), round(part.y * (height - size[1]))
        place = Image.new(mode, (width, height), background)
        place.paste(layer.resize(size, Image.Resampling.BILINEAR), corner)
        canvas = together(canvas, place)
    return canvas


def _turned(data: bytes, quarters: int) -> Image.Image:
    with upright_image(data) as upright:
        image, turn = flatten(upright, flat_mode(upright)), _QUARTERS[quarters]
        return image.copy() if turn is None else image.transpose(turn)


def _background(image: Image.Image) -> int | tuple[int, ...]:
    """The median of the border's pixels, by channel."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    median = np.median(border, axis=0).astype(int)
    return int(median) if median.ndim == 0 else tuple(int(value) for value in median)
