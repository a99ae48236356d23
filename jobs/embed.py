"""Write embeddings as Parquet: id, path, label_name, embedding.

    python jobs/embed.py checkpoint=outputs/NAME source=FOLDER_OR_ZIP_OR_CATALOG out=FILE.parquet

The last line is a JSON object: out, rows, dim, bad images with their reasons.
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import EmbedJob
from distmetric.inference.embed import embed_source


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, embed."""
    return embed_source(load("embed", EmbedJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("embed", __doc__, main))
