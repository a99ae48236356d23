"""CASIA-WebFace and others with one folder per identity: all of it for training.

    CASIA-WebFace/0000045/001.jpg

RecordIO (train.rec, as MS1M and others are handed on) is not read.
Source: Yi et al., Learning Face Representation from Scratch, arXiv 1411.7923.
"""

from __future__ import annotations

import posixpath

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import LayoutFiles
from distmetric.data.splits import TRAIN
from distmetric.data.trees import is_image
from distmetric.errors import InputError


def read(files: LayoutFiles) -> dict[str, Labels]:
    """Who is on each image, by its path within the source.

    Raises:
        InputError: There are no folders of images, or two of one name.
    """
    found: dict[str, Labels] = {}
    folder_of: dict[str, str] = {}
    for name in filter(is_image, files.names):
        folder = posixpath.dirname(name)
        identity = posixpath.basename(folder)
        if not identity:
            raise InputError(
                f"{files.shown}/{name}: is in no folder; put each identity in a folder of its own"
            )
        if folder_of.setdefault(identity, folder) != folder:
            raise InputError(
                f"{files.shown}: {folder_of[identity]} and {folder} would be one identity; rename one of them"
            )
        found[name] = Labels(identity, group=identity, split=TRAIN)
    if not found and any(name.endswith(".rec") for name in files.names):
        raise InputError(
            f"{files.shown}: holds RecordIO, which is not read; unpack it to one folder per identity first"
        )
    if not found:
        raise InputError(
            f"{files.shown}: has no image; name the folder or archive with one folder per identity"
        )
    return found
