"""Images turned by quarters, as classes of their own: a turned character is another character."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from distmetric.data.decode import flat_mode, flatten, upright_image
from distmetric.data.items import Item

TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
# What PNG files can hold; everything else becomes what it is trained on as, 8 bits of gray or colors.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def turned(item: Item) -> Iterator[tuple[Item, tuple[int, int]]]:
    """An image turned by 90, 180 and 270 degrees against the clock, losslessly as PNG, in the classes NAME@90 ...

    Each comes with its width and height. Groups, splits, cameras and attributes stay; a tracklet is another one, of the
    turned class.

    Source: Santoro et al. 2016, One-shot Learning with Memory-Augmented Neural Networks (arXiv 1605.06065).
    """
    with upright_image(item.data) as upright:
        image = upright if upright.mode in _MODES else flatten(upright, flat_mode(upright))
        for degrees, turn in TURNS.items():
            stored, name, copy = io.BytesIO(), item.labels.tracklet, image.transpose(turn)
            copy.save(stored, "PNG")
            labels = replace(
                item.labels,
                class_name=f"{item.class_name}@{degrees}",
                group=item.group,
                tracklet=None if name is None else f"{name}@{degrees}",
            )
            path, origin = f"{item.path}@{degrees}", f"{item.origin}@{degrees}"
            yield replace(item, path=path, origin=origin, labels=labels, data=stored.getvalue()), copy.size
