"""What an ingest counts on its way, and what it reports in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.decode import BadImageError
from distmetric.data.items import Item
from distmetric.errors import InputError


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did.

    Args:
        path: The catalog.
        rows: Images in it.
        classes: Classes in it.
        splits: Images by split.
        split_classes: Classes by split.
        bad_images: (path, reason) of every image that was left out.
        bad_counts: How many were left out, by kind of reason.
        duplicates_skipped: Images that an earlier source held under the same path with the same bytes.
        files_ignored: Files that are no images by their names, or that the manifest does not name.
        fingerprint: Fingerprint of the catalog; equal input gives equal fingerprints.
        seconds: How long it took.
    """

    path: str
    rows: int
    classes: int
    splits: dict[str, int]
    split_classes: dict[str, int]
    bad_images: tuple[tuple[str, str], ...]
    bad_counts: dict[str, int]
    duplicates_skipped: int
    files_ignored: int
    fingerprint: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values that JSON can hold."""
        return asdict(self) | {"bad_images": [list(pair) for pair in self.bad_images]}


class Tally:
    """Everything an ingest counts.

    Args:
        stop_at_bad: Whether an unusable image ends it.
    """

    def __init__(self, stop_at_bad: bool) -> None:
        self._stop_at_bad = stop_at_bad
        self.read = 0
        self.bad: list[tuple[str, str]] = []
        self.bad_counts: Counter[str] = Counter()
        self.duplicates = 0
        self.ignored = 0
        self.classes: Counter[str] = Counter()
        self.groups: dict[str, set[str]] = {}
        self.given: Counter[tuple[str, str]] = Counter()

    def reject(self, origin: str, error: BadImageError) -> None:
        """Leave an image out.

        Raises:
            InputError: If that ends the ingest.
        """
        if self._stop_at_bad:
            raise InputError(
                f"{origin}: {error}; remove or mend it, or set on_bad_image=skip to leave it out"
            )
        self.bad.append((origin, str(error)))
        self.bad_counts[error.reason] += 1

    def accept(self, item: Item) -> None:
        """Count an image that goes into the catalog."""
        self.classes[item.class_name] += 1
        self.groups.setdefault(item.class_name, set()).add(item.group)
        if item.labels.split is not None:
            self.given[item.class_name, item.labels.split] += 1

    def group_of_class(self) -> dict[str, str]:
        """The group of every class.

        Raises:
            InputError: A class is in several groups.
        """
        for name, groups in self.groups.items():
            if len(groups) > 1:
                listed = ", ".join(sorted(groups)[:3])
                raise InputError(
                    f"class {name!r} is in several groups ({listed}); give it one, or use split_by=ratio"
                )
        return {name: next(iter(groups)) for name, groups in self.groups.items()}

    def result(
        self, writer: CatalogWriter, splits: Mapping[str, str] | None, fingerprint: str, seconds: float
    ) -> IngestResult:
        """What the ingest did.

        Args:
            writer: The finished catalog.
            splits: Split of every class; None if the images came with theirs.
            fingerprint: Of the catalog.
            seconds: How long it took.
        """
        rows, classes = Counter[str](), Counter[str]()
        pairs = self.given if splits is None else {(n, splits[n]): count for n, count in self.classes.items()}
        for (_, split), count in pairs.items():
            rows[split] += count
            classes[split] += 1
        return IngestResult(
            path=str(writer.path),
            rows=len(writer),
            classes=len(self.classes),
            splits=dict(sorted(rows.items())),
            split_classes=dict(sorted(classes.items())),
            bad_images=tuple(self.bad),
            bad_counts=dict(sorted(self.bad_counts.items())),
            duplicates_skipped=self.duplicates,
            files_ignored=self.ignored,
            fingerprint=fingerprint,
            seconds=seconds,
        )
