"""Turn images and labels into one catalog file.

    python jobs/ingest.py source=FOLDER_OR_ZIP out=FILE.arrow
    python jobs/ingest.py source=[a.zip,b.zip] out=FILE.arrow split_by=group test_groups=[Sanskrit,Tagalog]
    python jobs/ingest.py source=s3://bucket/rows.parquet out=FILE.arrow split_by=given

The last line is a JSON object: path, rows, classes, splits, bad images with their reasons, fingerprint, seconds.
"""

import sys
from dataclasses import asdict
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import IngestJob
from distmetric.data.ingest import ingest


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, ingest."""
    settings = asdict(load("ingest", IngestJob, overrides))
    source, out = settings.pop("source"), settings.pop("out")
    return ingest([source] if isinstance(source, str) else source, out, **settings).to_dict()


if __name__ == "__main__":
    sys.exit(run_command("ingest", __doc__, main))
