"""The report of a real, tiny run, from what it left in its folder; and several of them side by side."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from catalogs import flip
from distmetric.config.compose import compose, load
from distmetric.config.jobs import ReportJob
from distmetric.errors import ConfigError, InputError
from distmetric.inference import run_report
from distmetric.inference.compare import make_report
from distmetric.inference.origin import command_line, environment
from distmetric.inference.run_report import collect, write_report
from distmetric.reports.run_report import RunReport
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.checkpoint import find_checkpoint
from distmetric.training.run_folder import RunFolder, read_run
from distmetric.training.saved_model import config_dict
from fake_server import FakeServer
from html_page import Page, check_offline
from poison import poisoned_run
from runs import ListTracker, run_once, tiny_config

HARD = (
    *(
        "sampler=hard_neighbors",
        "sampler.classes_per_batch=8",
        "sampler.samples_per_class=4",
        "sampler.mates=3",
    ),
    *(
        "sampler.round_steps=5",
        "sampler.warmup_steps=0",
        "sampler.guard=5",
        "index=inline",
        "index.refresh_steps=5",
    ),
)


class KeptRun(TrackedRun):
    """A tracked run with a given history that keeps names and contents of what is attached."""

    def __init__(self, history) -> None:
        super().__init__()
        self._server = FakeServer()
        self._history = history
        self.artifacts: dict[str, bytes] = {}

    def history(self):
        return self._history

    def log_artifact(self, path: str) -> None:
        self.artifacts[Path(path).name] = Path(path).read_bytes()

    def log_artifacts(self, folder: str, name: str) -> None:
        self.artifacts |= {f"{name}/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


def history_of(tracker: ListTracker) -> dict[str, list[tuple[int, float]]]:
    names = {name for _, metrics in tracker.logged for name in metrics}
    return {name: sorted(tracker.series(name).items()) for name in names}


@pytest.fixture(scope="module")
def trained(glyph_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of a run with hard batches, its configuration and its history."""
    location = tmp_path_factory.mktemp("runs") / "hard"
    config = tiny_config(glyph_cache, *HARD)
    worker, _, tracker = run_once(config, location)
    folder = RunFolder(
        *(str(location), "hard", config_dict(config), worker.catalog.fingerprint, "0.1.0"),
        command="python jobs/train.py debug=tiny",
        environment={"torch": "9.9"},
    )
    folder.write()
    best = find_checkpoint(str(location))
    return SimpleNamespace(
        folder=folder, config=config, history=history_of(tracker), catalog=worker.catalog, best=best
    )


@pytest.fixture
def copy(trained: SimpleNamespace, tmp_path: Path) -> RunFolder:
    """The run in a folder that a test may change."""
    shutil.copytree(trained.folder.location, tmp_path / "copy")
    return replace(trained.folder, location=str(tmp_path / "copy"))


@pytest.fixture(scope="module")
def report(trained: SimpleNamespace) -> RunReport:
    return collect(trained.folder, KeptRun(trained.history), trained.best)


def test_it_gathers_what_the_run_left(trained, report) -> None:
    rows = trained.catalog.rows("test")
    assert report.title == "hard"
    assert report.step == trained.best.step
    assert report.metrics == trained.best.metrics
    assert [record["step"] for record in report.evaluations] == [10, 20]
    assert report.command == "python jobs/train.py debug=tiny"
    assert report.environment == {"torch": "9.9"}
    assert report.config["sampler"]["name"] == "hard_neighbors"
    assert report.embeddings.shape == (len(rows), trained.config.model.embedding_dim)
    assert np.array_equal(report.labels, trained.catalog.labels[rows])
    assert report.paths[3] == trained.catalog.source_path(int(rows[3]))
    assert report.attributes["serif"] == trained.catalog.attribute("serif")[rows].tolist()
    assert report.attributes["group"] == trained.catalog.groups[rows].tolist()
    assert report.images[np.array([0, 5])].shape == (2, 1, 28, 28)


def test_metrics_of_the_embeddings_are_those_of_the_run(trained, report) -> None:
    """What the page shows is of the checkpoint whose numbers it has."""
    squares = np.square(report.embeddings[:, None] - report.embeddings).sum(axis=-1)
    np.fill_diagonal(squares, np.inf)
    right = report.labels[squares.argmin(axis=1)] == report.labels
    counts = np.bincount(report.labels)[report.labels]
    assert right[counts > 1].mean() == pytest.approx(report.metrics["recall_at_1"], abs=0.01)


def test_classes_that_the_index_takes_for_the_same_are_shown_with_images_of_them(trained, report) -> None:
    assert 0 < len(report.coincidences) <= report.num_coincidences
    first = report.coincidences[0]
    train = trained.catalog.rows("train")
    names = {trained.catalog.label_names[label] for label in trained.catalog.labels[train]}
    assert set(first.names) <= names
    assert first.names[0] != first.names[1]
    assert first.images.shape == (2, 1, 28, 28)
    assert first.of_classes
    assert [each.ratio for each in report.coincidences] == sorted(each.ratio for each in report.coincidences)


def test_the_report_lands_in_the_folder_and_in_the_tracked_run(trained, copy) -> None:
    tracked = KeptRun(trained.history)
    location = write_report(trained.config, copy.location, trained.best.location, tracked)
    assert location == f"{copy.location}/report.html"
    page = Page(Path(location).read_text(encoding="utf-8"))
    check_offline(page)
    assert tracked.artifacts["report.html"] == Path(location).read_bytes()
    assert len(tracked.artifacts["report.html"]) < 5_000_000
    assert {"figures/loss.svg", "figures/tsne.png", "figures/distances.svg"} <= tracked.artifacts.keys()
    assert {
        *("Results", "Learning curves", "Distances", "Retrieval examples", "Map of the embeddings"),
        *("Hard batches and the index", "Suspected duplicates in the training set", "Where the time goes"),
    } <= set(page.texts("h2"))


def test_a_report_that_lacks_a_section_is_kept_all_the_same(trained, copy, monkeypatch) -> None:
    def written_but_failed(path: Path, *_: object) -> None:
        path.write_text("a page with a note")
        raise ZeroDivisionError

    monkeypatch.setattr(run_report, "write_run_report", written_but_failed)
    tracked = KeptRun({})
    with pytest.raises(ZeroDivisionError):
        write_report(trained.config, copy.location, trained.best.location, tracked)
    assert Path(copy.location, "report.html").read_text() == "a page with a note"
    assert tracked.artifacts == {"report.html": b"a page with a note"}


@pytest.mark.parametrize(("limit", "expected"), [(50, 50), (35, 30), (10, 10), (7, 7)])
def test_large_splits_are_shown_in_whole_classes(limit, expected, monkeypatch) -> None:
    monkeypatch.setattr(run_report, "_MAX_IMAGES", limit)
    labels = np.arange(100) % 10
    rows = np.arange(0, 100)[labels < 5]
    chosen = run_report._whole_classes(rows, labels, seed=0)
    assert len(chosen) == expected
    assert np.isin(chosen, rows).all()
    assert (np.diff(chosen) > 0).all()
    if expected >= 10:
        assert set(np.bincount(labels[chosen], minlength=10)) <= {0, 10}


def job(*overrides: str) -> ReportJob:
    return load("report", ReportJob, list(overrides))


def told(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


def test_an_untracked_run_has_a_report_from_its_folder_alone(copy) -> None:
    result = make_report(job(f"runs=[{copy.location}]"))
    assert result["out"] == f"{copy.location}/report.html"
    (one,) = result["runs"]
    assert (one["name"], one["status"], one["step"]) == (
        "hard",
        "finished",
        find_checkpoint(copy.location).step,
    )
    assert json.loads(json.dumps(result)) == result
    page = told(Path(result["out"]))
    assert "Retrieval quality" in " ".join(image["alt"] for image in page.all("img"))
    assert 'class="note"' not in page.html


def test_a_run_whose_data_have_gone_says_so_and_shows_the_rest(copy, tmp_path) -> None:
    replace(copy, fingerprint="of other data").write()
    page = told(Path(make_report(job(f"runs=[{copy.location}]", f"out={tmp_path / 'r.html'}"))["out"]))
    assert "have changed since the run was started" in page.words
    assert {"Results", "Learning curves", "Distances"} <= set(page.texts("h2"))
    assert "Retrieval examples" not in page.texts("h2")
    assert not Path(copy.location, "report.html").exists()


def test_a_run_one_of_whose_images_is_damaged_says_so_and_shows_the_rest(copy, trained, tmp_path) -> None:
    catalog = tmp_path / "c.arrow"
    shutil.copy(trained.catalog.path, catalog)
    row = int(trained.catalog.rows("test")[0])
    image = bytes(trained.catalog.image_bytes(row))
    flip(catalog, catalog.read_bytes().index(image) + len(image) // 2)
    data = compose("config", ["debug=tiny", "data=catalog", f"data.path={catalog}"])["data"]
    damaged = replace(copy, config={**copy.config, "data": data})
    report = collect(damaged, KeptRun(trained.history), trained.best)
    (note,) = report.notes
    assert note.startswith(
        f"Without pictures, maps and confused classes: {catalog}: the image of row {row}, id"
    )
    assert report.history == trained.history
    assert report.images is None


def test_a_run_that_failed_before_it_saved_anything_is_told_truthfully_without_its_server(
    trained, tmp_path, caplog
) -> None:
    of = {"tracking_uri": "http://127.0.0.1:9", "run_id": "y"}
    folder = replace(trained.folder, location=str(tmp_path / "failed"), name="failed", **of)
    folder.write()
    tracked = TrackedRun.create(folder.location, None, "failed", {}, {})
    tracker = tracked.tracker()
    tracker.log(1, {"train/loss": 2.0})
    tracker.log(3, {"train/loss": 9.0})
    tracker.close()
    tracked.end("FAILED", "the loss became nan at step 3")
    result = make_report(job(f"runs=[{folder.location}]"))
    assert result["runs"][0]["status"] == "failed at step 3 of 20: the loss became nan at step 3"
    assert result["runs"][0]["metrics"] == {}
    page = told(Path(result["out"]))
    assert "This run failed at step 3 of 20: the loss became nan at step 3." in page.words
    assert page.texts("h2") == ["Learning curves", "What ran"]
    assert "the report is not attached to the run in MLflow at http://127.0.0.1:9 (" in caplog.text


def test_several_runs_stand_side_by_side(trained, copy, tmp_path) -> None:
    other = RunFolder(
        str(tmp_path / "never"), "never-begun", config_dict(trained.config) | {"seed": 7}, "x", "0.1.0"
    )
    other.write()
    Path(copy.location, "report.html").write_text("its own")
    out = tmp_path / "pages" / "side by side.html"
    result = make_report(job(f"runs=[{copy.location},{other.location}]", f"out='{out}'"))
    assert [one["status"] for one in result["runs"]] == ["finished", "stopped at step 0 of 20"]
    page = told(out)
    check_offline(page)
    links = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert links == ["../copy/report.html"]
    assert (out.parent / links[0]).resolve() == Path(copy.location, "report.html")
    assert "stopped at step 0 of 20" in page.texts("td")
    assert "seed" in page.texts("th")
    assert Path(copy.location, "report.html").read_text() == "its own"


def test_a_missing_database_is_not_made_anew(copy, tmp_path, caplog) -> None:
    missing = tmp_path / "gone" / "mlflow.db"
    replace(copy, tracking_uri=f"sqlite:///{missing}", run_id="y").write()
    result = make_report(job(f"runs=[{copy.location}]"))
    assert not missing.parent.exists()
    assert (
        f"not attached to the run in MLflow at sqlite:///{missing} (its database is not there)" in caplog.text
    )
    assert Path(result["out"]).is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runs=[]"], "runs has 0 folders"),
        (["runs=[a,b]"], "out=FILE.html"),
        ([f"runs=[{','.join('abcdefghijk')}]", "out=x"], "runs has 11 folders"),
    ],
)
def test_settings_that_cannot_be_are_one_line(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        job(*overrides)


def test_a_folder_that_is_no_run_or_named_twice_is_one_line(copy, tmp_path) -> None:
    with pytest.raises(InputError, match=r"runs=.* is not the folder of a run: it has no run.json"):
        make_report(job(f"runs=[{tmp_path}]"))
    with pytest.raises(InputError, match="names a folder twice"):
        make_report(job(f"runs=[{copy.location},{copy.location}/]", f"out={tmp_path / 'x.html'}"))


def test_where_a_run_comes_from_is_kept_with_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/train.py", "name=a b"])
    folder = RunFolder(
        *(str(tmp_path), "a", {}, "f", "0.1.0"), command=command_line(), environment=environment()
    )
    folder.write()
    found = read_run(str(tmp_path))
    assert found.command == "python jobs/train.py 'name=a b'"
    assert {"torch", "python", "machine", "revision"} <= found.environment.keys()
    assert "CPUs" in found.environment["machine"]


def test_folders_of_older_versions_can_be_read(tmp_path) -> None:
    old = {"location": "x", "name": "a", "config": {}, "fingerprint": "f", "version": "0.1.0"}
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert read_run(str(tmp_path)).environment == {}
    assert isinstance(read_run(str(tmp_path)), RunFolder)


def test_a_report_begins_with_what_happened_to_the_run(glyph_cache: Path, tmp_path: Path) -> None:
    location = tmp_path / "skips"
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "train.non_finite=skip", "train.log_every=4")
    poisoned, _, tracker = poisoned_run(config, location, {2: "embedding", 11: "gradient"})
    catalog = poisoned.worker.catalog
    RunFolder(str(location), "skips", config_dict(config), catalog.fingerprint, "0.1.0").write()
    report = collect(read_run(str(location)), KeptRun(history_of(tracker)), find_checkpoint(str(location)))
    first, second = report.bad_batches
    batch = poisoned.worker.sampler.batch(2)
    assert (first.num_rows, first.num_bad, first.paths) == (32, 1, [catalog.source_path(int(batch[1]))])
    assert first.images is not None
    stored = poisoned.worker.images.images(batch[1:2]).numpy()
    assert (np.asarray(first.images) == stored).all()
    assert (second.num_bad, len(second.paths)) == (0, 6)
    out = tmp_path / "alone.html"
    make_report(load("report", ReportJob, [f"runs=[{location}]", f"out={out}"]))
    page = Page(out.read_text())
    assert page.texts("h2")[0] == "Notices"
    assert "the embeddings of 1 of 32 images were not finite at step 3 (loss nan," in page.words
    assert first.paths[0] in page.words
    # Where the pictures cannot be had, and in the company of others, the rest is said all the same.
    broken = collect(read_run(str(location)), KeptRun({}), None)
    assert [one.images for one in broken.bad_batches] == [None, None]
    other = tmp_path / "other"
    shutil.copytree(location, other)
    make_report(load("report", ReportJob, [f"runs=[{location},{other}]", f"out={tmp_path / 'both.html'}"]))
    both = Page((tmp_path / "both.html").read_text())
    assert both.words.count("step 3: the embeddings of 1 of 32 images were not finite") == 2
