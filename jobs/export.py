"""Export an embedder: ONNX and safetensors as files, a model in MLflow, and a version in its model registry.

    python jobs/export.py checkpoint=outputs/NAME out=FOLDER
    python jobs/export.py checkpoint=outputs/NAME 'formats=[onnx]' out=FOLDER images=FILE.arrow
    python jobs/export.py checkpoint=outputs/NAME 'formats=[mlflow]' register=MODEL alias=best

Every export is compared with the checkpoint before anything is kept. The last line is a JSON object: checkpoint, step,
files, parity (largest differences), model (MLflow's URI), registered (name, version, alias), seconds.
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import ExportJob
from distmetric.inference.export import export_checkpoint


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, export."""
    return export_checkpoint(load("export", ExportJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("export", __doc__, main))
