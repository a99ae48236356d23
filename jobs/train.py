"""Train an embedding on Ray workers: on this machine, or on the cluster whose job this is.

    python jobs/train.py experiment=quickstart
    python jobs/train.py data=catalog data.path=FILE trainer.num_workers=2 loss=lifted_structure
    python jobs/train.py resume=outputs/NAME
    ray job submit --working-dir . -- python jobs/train.py experiment=omniglot data.path=FILE trainer=cluster

The last line is a JSON object: run_id, run_dir, checkpoint (folder of the best one), step, seconds, metrics, report,
notices (what the run has to tell of itself).
"""

import sys
from typing import Any

from distmetric.cluster.run_folder import load_resumable
from distmetric.config.command import run_command
from distmetric.config.compose import compose, resume, resumed_folder
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.startup import StartUp


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, train."""
    startup = StartUp(is_whole=True)
    startup.mark("python")
    interrupted = resumed_folder(overrides)
    values = resume(load_resumable(interrupted), overrides) if interrupted else compose("config", overrides)
    config = decode(Config, values)
    startup.mark("settings")
    from distmetric.cluster.fit import (
        fit,  # brings Ray, which takes seconds: a mistyped setting is answered before
    )

    startup.mark("imports")
    result = fit(config, startup=startup)
    if result.tracking_uri:
        print(f"MLflow:  {result.where_to_look()}", file=sys.stderr)
    if result.report:
        print(f"report:  {result.report}", file=sys.stderr)
    return result.to_dict()


if __name__ == "__main__":
    sys.exit(run_command("config", __doc__, main))
