"""Labeled Faces in the Wild as lfw.tgz (or an aligned copy of it) has it: all of it for testing.

    lfw/Aaron_Eckhart/Aaron_Eckhart_0001.jpg

Its ten folds of pairs are in pairs.txt, which jobs/evaluate.py reads (protocol=lfw).
Source: Huang et al., Labeled Faces in the Wild, Technical Report 07-49, 2007.
"""

from __future__ import annotations

import posixpath
import re

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import LayoutFiles
from distmetric.data.splits import TEST
from distmetric.data.trees import is_image
from distmetric.errors import InputError


def read(files: LayoutFiles) -> dict[str, Labels]:
    """Who is on each image, by its path within the source.

    Raises:
        InputError: There is no image, or one is named in another way than its folder.
    """
    found: dict[str, Labels] = {}
    for name in filter(is_image, files.names):
        person = posixpath.basename(posixpath.dirname(name))
        stem = posixpath.splitext(posixpath.basename(name))[0]
        if not person or re.fullmatch(re.escape(person) + r"_\d{4}", stem) is None:
            raise InputError(
                f"{files.shown}/{name}: is not named like Aaron_Eckhart/Aaron_Eckhart_0001.jpg; rename or remove it"
            )
        found[name] = Labels(person, group=person, split=TEST)
    if not found:
        raise InputError(f"{files.shown}: has no image; name the folder lfw or lfw.tgz")
    return found
