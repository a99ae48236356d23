"""Stanford Online Products as Stanford_Online_Products.zip has it, divided by its two lists.

    Stanford_Online_Products/Ebay_train.txt  image_id class_id super_class_id path    1 1 1 bicycle_final/x_0.JPG
    Stanford_Online_Products/Ebay_test.txt   the same
    Stanford_Online_Products/bicycle_final/x_0.JPG

A class is a product, its group the kind of product (bicycle).
Source: Song et al., CVPR 2016, arXiv 1511.06452.
"""

from __future__ import annotations

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import LayoutFiles, add, listed_path, whole_number
from distmetric.data.splits import TEST, TRAIN
from distmetric.errors import InputError

_COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def read(files: LayoutFiles) -> dict[str, Labels]:
    """What the lists say about each image, by its path within the source.

    Raises:
        InputError: A list is missing, is no such list, or contradicts the other one.
    """
    found: dict[str, Labels] = {}
    split_of: dict[int, str] = {}
    for split, name in ((TRAIN, "Ebay_train.txt"), (TEST, "Ebay_test.txt")):
        annotation = files.annotation(name)
        if annotation.header(0) != list(_COLUMNS):
            raise InputError(
                f"{annotation.shown}: does not begin with {' '.join(_COLUMNS)}; get the file again"
            )
        for where, row in annotation.rows(_COLUMNS, skip=1):
            product = whole_number(row["class_id"], where, "class_id")
            if split_of.setdefault(product, split) != split:
                raise InputError(f"{where}: class_id {product} is in Ebay_train.txt too; get the files again")
            path = listed_path(row["path"], where)
            kind = path.partition("/")[0].removesuffix("_final")
            add(found, f"{annotation.folder}{path}", Labels(f"{kind}/{product}", split=split), where)
    return found
