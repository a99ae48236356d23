"""Answer a question by training runs: every arm of a study in every variant with every seed, and one table.

    python jobs/study.py study=losses
    python jobs/study.py study=losses train='{experiment: omniglot, data.path: omniglot.arrow}'
    python jobs/study.py study=custom 'study.arms={small: {model.embedding_dim: 32}, large: {model.embedding_dim: 128}}'
    python jobs/study.py resume=outputs/NAME

The last line is a JSON object: study, folder, markdown, json, figure, runs (count, finished, failed), run_id, seconds.
"""

import sys
from dataclasses import asdict
from typing import Any

from distmetric.cluster.tune_folder import read_tuning
from distmetric.config.command import run_command
from distmetric.config.compose import load, resume, resumed_folder
from distmetric.config.decode import decode
from distmetric.config.jobs import StudyJob
from distmetric.config.study_plan import plan_study


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check every run, train them, write the table."""
    interrupted = resumed_folder(overrides)
    folder = read_tuning(interrupted, "study") if interrupted else None
    if folder is None:
        job = load("study", StudyJob, overrides)
    else:
        assert folder.study is not None, "read_tuning has seen that it is one"
        job = decode(StudyJob, resume(asdict(folder.study), overrides))
    plan = plan_study(job)
    from distmetric.cluster.study import run_study  # brings Ray: what is mistyped is answered before

    return run_study(plan, folder)


if __name__ == "__main__":
    sys.exit(run_command("study", __doc__, main))
