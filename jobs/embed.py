"""Write embeddings as Parquet or Arrow: id, path, label_name, group, camera and attributes if known, embedding.

    python jobs/embed.py checkpoint=outputs/NAME source=FOLDER_OR_ZIP_OR_CATALOG out=FILE.parquet
    python jobs/embed.py checkpoint=outputs/NAME source=CATALOG out=FILE.arrow workers=8 worker_gpus=1

Finished parts are kept beside the file until it is complete: a job that was killed, started again, does the rest. The
last line is a JSON object: out, rows, dim, checkpoint, parts, resumed_parts, bad images with their reasons, seconds.
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import EmbedJob
from distmetric.inference.embed import embed_source


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, embed."""
    job = load("embed", EmbedJob, overrides)
    if job.workers == 0:
        return embed_source(job)
    from distmetric.cluster.embed import embed_on_workers  # Ray takes seconds to import

    return embed_on_workers(job)


if __name__ == "__main__":
    sys.exit(run_command("embed", __doc__, main))
