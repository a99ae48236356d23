"""Hard batches on real Ray: nobody waits, and neither a killed index nor a killed worker stops or bends the run."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from drivers import descendants, kill, start, steps_saved, wait_for
from runs import FEW_GLYPHS

# So many steps that the index is back, which takes seconds, well before the last one.
STEPS, ROUND = 1200, 5
SETTINGS = (
    *("debug=two_ranks", *FEW_GLYPHS, "model.widths=[8, 8]", "model.embedding_dim=16"),
    *(f"train.steps={STEPS}", "eval.every_steps=600", "checkpoint.every_steps=10", "report=false"),
    *(
        "sampler=hard_neighbors",
        f"sampler.round_steps={ROUND}",
        "sampler.warmup_steps=10",
        "index.refresh_steps=15",
    ),
    *("sampler.classes_per_batch=8", "sampler.samples_per_class=4", "sampler.max_lead=6"),
)


def planned(run_dir: Path) -> dict[int, int]:
    """Round -> version of the snapshot that it was planned from, as far as it is still noted."""
    notes = (json.loads(path.read_text()) for path in (run_dir / "index").glob("round_*.json"))
    return {note["round"]: note["version"] for note in notes}


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_killing_the_index_and_a_worker_right_after_a_swap_leaves_the_run_as_planned(
    glyph_cache, tmp_path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    overrides = (*SETTINGS, f"output_dir={tmp_path}", "name=run", f"data.cache_dir={glyph_cache}")
    driver = start(*overrides, log=log)
    try:
        wait_for(lambda: max(planned(run_dir).values(), default=0) > 0, driver, log)
        noted = planned(run_dir)
        kill(descendants(driver, "RayTrainWorker")[:1])
        wait_for(lambda: steps_saved(run_dir) >= max(noted) * ROUND + 20, driver, log)
        kill(descendants(driver, "NeighborIndexActor"))
        output, _ = driver.communicate(timeout=600)
    finally:
        if driver.poll() is None:
            kill([*descendants(driver)])
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, log.read_text()[-3000:]
    result = json.loads(output.strip().splitlines()[-1])
    assert result["step"] == STEPS

    run = json.loads((run_dir / "run.json").read_text())
    client = mlflow.MlflowClient(run["tracking_uri"])

    def series(name: str) -> dict[int, float]:
        history = client.get_metric_history(run["run_id"], name)
        assert len({point.step for point in history}) == len(history), "a step was logged twice"
        return {point.step: point.value for point in history}

    assert list(series("train/loss")) == list(range(1, STEPS + 1))
    versions = series("index/version")
    assert {number: versions[number * ROUND] for number in noted} == noted
    assert list(versions.values()) == sorted(versions.values())
    assert series("index/restarts")[max(versions)] >= 1
    # After the index was lost it was filled and built again, and its versions went on.
    assert versions[max(versions)] > max(noted.values()) + 1
    assert set(series("index/wait_seconds").values()) == {0.0}
    hard, random = series("hard/violating_fraction"), series("hard/violating_fraction_random")
    assert set(hard) == set(random) == {step for step in range(0, STEPS + 1, ROUND) if step in versions}
    assert "the index actor was lost" in log.read_text()
