"""What a run has to tell of itself before its results: its notices, and the batches of steps that were not finite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from distmetric.reports.page import Cell, Section, table
from distmetric.reports.thumbnails import Pixels, check_images, shot

SHOWN_BATCHES = 4
"""Batches that are shown, the first ones."""
SHOWN_IMAGES = 6
"""Images of each of them that are shown."""


@dataclass(frozen=True)
class BadBatch:
    """The batch of a step that was not taken.

    Attributes:
        what: which of its numbers was not finite, and at which step, any text.
        num_rows: images in the batch.
        num_bad: those of them whose embeddings were not finite.
        names: of the classes of the images that are shown, any texts.
        paths: where these came from, any texts.
        images: (n, C, H, W) uint8, or None where they cannot be had.
    """

    what: str
    num_rows: int
    num_bad: int
    names: Sequence[str] = ()
    paths: Sequence[str] = ()
    images: Pixels | None = None


def notices_section(
    notices: Sequence[Mapping[str, object]], skipped: int, batches: Sequence[BadBatch], num_batches: int
) -> Section:
    """The section of what happened.

    Args:
        notices: each with kind, step and message, any text; in the order in which they came.
        skipped: steps that the run went on without.
        batches: of steps that were not taken, the first ones.
        num_batches: how many of them are known.

    Returns:
        The section; without parts where a run has nothing to tell.
    """
    parts = []
    if notices:
        rows = [
            (Cell(f"{int(str(one['step'])):,}", kind="number"), Cell(str(one["message"]))) for one in notices
        ]
        parts.append(table(("Step", "What happened"), rows, "notices"))
    if skipped:
        steps = "1 step was" if skipped == 1 else f"{skipped:,} steps were"
        parts.append(f"<p>{steps} left out, since a number of theirs was not finite.</p>")
    if batches:
        parts.append("<h3>Batches that were not finite</h3>")
        if num_batches > len(batches):
            parts.append(f"<p>The first {len(batches)} of {num_batches:,}.</p>")
        parts += [_batch(each) for each in batches]
    return Section("Notices", "", parts)


def _batch(batch: BadBatch) -> str:
    shots = []
    if batch.images is not None:
        check_images(batch.images)
        shots = [
            shot(image, f"image of {name}", name)
            for image, name in zip(batch.images, batch.names, strict=True)
        ]
    whose = "with embeddings that were not finite" if batch.num_bad else "of the batch"
    total = batch.num_bad or batch.num_rows
    shown = f"{len(batch.paths)} of {total:,} images {whose}:" if batch.paths else ""
    paths = "".join(f"<small><code>{escape(path)}</code></small>" for path in batch.paths)
    pictures = f'<div class="found few">{"".join(shots)}</div>' if shots else ""
    told = f"<p><strong>{escape(batch.what)}</strong><small>{shown}</small>{paths}</p>"
    return f'<div class="finding batch">{told}{pictures}</div>'
