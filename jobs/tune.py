"""Search for better settings with Ray Tune: every trial is a whole training run, as by jobs/train.py.

    python jobs/tune.py 'train={experiment: quickstart, train.steps: 200}' num_trials=8 scheduler=asha \
      'space={optim.lr: {low: 1e-3, high: 1e-2, log: true}, loss.margin: [0.1, 0.2]}'
    python jobs/tune.py space=space.yaml train=train.yaml num_trials=50
    python jobs/tune.py resume=outputs/NAME

The last line is a JSON object: best (overrides, metrics, run_dir, run_id, checkpoint, report), trials (count, finished,
stopped, failed), folder, table, run_id, seconds.
"""

import sys
from dataclasses import asdict
from typing import Any

from distmetric.cluster.tune_folder import read_tuning
from distmetric.config.command import run_command
from distmetric.config.compose import load, resume, resumed_folder
from distmetric.config.decode import decode
from distmetric.config.jobs import TuneJob
from distmetric.config.tune_plan import plan_trials


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check every trial, search."""
    interrupted = resumed_folder(overrides)
    folder = read_tuning(interrupted) if interrupted else None
    job = (
        decode(TuneJob, resume(asdict(folder.job), overrides)) if folder else load("tune", TuneJob, overrides)
    )
    plan = plan_trials(job, folder.drawn if folder else None)
    from distmetric.cluster.tune import tune_settings  # brings Ray: what is mistyped is answered before

    return tune_settings(plan, folder)


if __name__ == "__main__":
    sys.exit(run_command("tune", __doc__, main))
