"""Search a gallery of images for those that look like a query, as the trained model sees it.

    python jobs/search.py checkpoint=outputs/RUN gallery=PHOTOS queries=PHOTO.jpg out=FOLDER
    python jobs/search.py checkpoint=outputs/RUN gallery=PHOTOS queries=OTHER_PHOTOS out=FOLDER saved_index=PHOTOS.index
    python jobs/search.py checkpoint=outputs/RUN gallery=PHOTOS.index queries=PHOTO.jpg out=FOLDER
    python jobs/search.py gallery=EMBEDDINGS.parquet queries=EMBEDDINGS.parquet out=FOLDER rerank=k_reciprocal

Gallery and queries are image folders, archives, catalogs or files of jobs/embed.py. Written are results.parquet,
results.csv and results.json, and search.html and grid.png with pictures. The last line is a JSON object: out and its
files, queries, gallery and its size, index (who searched, and whether exactly), threshold, bad images, seconds, and for
a single query its neighbors.
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import SearchJob
from distmetric.inference.search import search


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, search."""
    return search(load("search", SearchJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("search", __doc__, main))
