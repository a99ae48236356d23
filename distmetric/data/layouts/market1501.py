"""Market-1501 as Market-1501-v15.09.15.zip has it, with the 27 attributes of market_attribute.mat where that is there.

    bounding_box_train/0002_c1s1_000451_03.jpg   person 0002, camera 1, sequence 1, frame 451, detection 03
    query/0001_c1s1_001051_00.jpg
    bounding_box_test/0001_c1s1_001051_03.jpg    the gallery; person 0000 is a distractor, -1 is junk
    market_attribute.mat                         of Lin et al., one value for each person, for train and test

Folders gt_bbox and gt_query belong to search with several queries at once, and are not read.
Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.
"""

from __future__ import annotations

import posixpath
import re

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import LayoutFiles
from distmetric.data.layouts.market1501_attributes import ANNOTATION, read_attributes
from distmetric.data.splits import GALLERY, QUERY, TRAIN
from distmetric.errors import InputError

JUNK, DISTRACTOR = "-1", "0000"
_FOLDERS = {"bounding_box_train": TRAIN, "query": QUERY, "bounding_box_test": GALLERY}
_NAME = re.compile(r"(-1|\d{4})_c(\d)s\d+_\d+_\d+\.jpg(?:\.jpg)?")


def read(files: LayoutFiles) -> dict[str, Labels]:
    """What folders, names and attributes say about each image, by its path within the source.

    Raises:
        InputError: A folder is missing, an image is named in another way, or a person has no attributes.
    """
    annotation = files.annotation_if_any(ANNOTATION)
    attributes = None if annotation is None else read_attributes(annotation)
    found: dict[str, Labels] = {}
    for name in files.names:
        split = _FOLDERS.get(posixpath.basename(posixpath.dirname(name)))
        if split is None or not name.endswith(".jpg"):
            continue
        match = _NAME.fullmatch(posixpath.basename(name))
        if match is None:
            raise InputError(
                f"{files.shown}/{name}: is not named like 0002_c1s1_000451_03.jpg; rename or remove it"
            )
        person, camera = match.groups()
        if split != GALLERY and person in (JUNK, DISTRACTOR):
            raise InputError(
                f"{files.shown}/{name}: is no person, and only the gallery may have such; remove it"
            )
        known = {} if attributes is None else attributes.get(person)
        if known is None and person not in (JUNK, DISTRACTOR):
            raise InputError(
                f"{files.shown}/{name}: person {person} is not in {ANNOTATION}; get the file again"
            )
        found[name] = Labels(person, split=split, camera=int(camera), attributes=known or {})
    for folder, split in _FOLDERS.items():
        if all(labels.split != split for labels in found.values()):
            raise InputError(f"{files.shown}: has no images in a folder {folder}; get the archive again")
    return found
