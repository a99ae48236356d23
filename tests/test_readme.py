"""The README tells the truth: every command in it is run here, or checked by what is named here."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

import published
import readme_table
from distmetric import __version__
from distmetric.cluster.run_folder import load_resumable
from distmetric.config.compose import compose, load, resume
from distmetric.config.decode import decode
from distmetric.config.jobs import EvaluateJob
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.data.catalog import Catalog
from distmetric.distributed.replica import Replica
from distmetric.tracking.tracker import NullTracker
from distmetric.training.loop import TrainResult, train
from distmetric.training.run_folder import RunFolder
from distmetric.training.worker import Worker
from image_sources import make_folder, make_zip
from runs import CPU

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent

Check = Callable[[Path, str], None]

# Appended to what is run here: the same code on a few tiny images.
TINY = ("train.steps=4", "eval.every_steps=2", "checkpoint.every_steps=2", "sampler.classes_per_batch=4")
TINY += ("sampler.samples_per_class=2", "model.embedding_dim=8")


def run(workspace: Path, command: str, *extra: str, home: bool = False) -> str:
    """Run a command as a shell would in a checkout, and return its standard output."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}
    environment["DISTMETRIC_CACHE"] = str(workspace / "cache")
    if home:
        environment = {name: environment[name] for name in environment if not name.startswith("RAY_")}
        environment["HOME"] = str(workspace)
    done = subprocess.run(
        ["bash", "-c", " ".join([command, *map(shlex.quote, extra)])],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def runs(*extra: str) -> Check:
    """Run it, with further settings."""
    return lambda workspace, command: print(run(workspace, command, *extra))


def gives(check: Callable[[Path, dict], object], *extra: str) -> Check:
    """Run it, and check the JSON object in its last line."""

    def run_and_check(workspace: Path, command: str) -> None:
        result = json.loads(run(workspace, command, *extra).strip().splitlines()[-1])
        assert check(workspace, result)

    return run_and_check


def checked_by(test: str) -> Check:
    """Checked by another test, which has to be there."""

    def look(workspace: Path, command: str) -> None:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(encoding="utf-8")
        if "jobs/train.py" in command:
            overrides = shlex.split(os.path.expandvars(command.partition("jobs/train.py")[2]))
            validate(decode(Config, compose("config", overrides)))

    return look


def makes(recipe: str) -> Check:
    """A target of the Makefile, whose last line is `recipe`."""

    def look(workspace: Path, command: str) -> None:
        listed = subprocess.run(
            shlex.split(command.replace("make", "make -n --no-print-directory", 1)),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert listed.stdout.strip().splitlines()[-1] == recipe, listed.stderr

    return look


def train_here(values: dict, run_dir: Path) -> TrainResult:
    """Train in this process, without Ray."""
    config = decode(Config, values)
    validate(config)
    return train(Worker(config, str(run_dir), NullTracker(), Replica(), CPU))


def trains(workspace: Path, command: str) -> None:
    overrides = [*shlex.split(command)[2:], *TINY, "model.widths=[8,8]", "model.blocks_per_stage=[1,1]"]
    values = compose("config", overrides)
    folder = workspace / "outputs" / values["name"]
    # As `fit` leaves it, for the jobs that read runs.
    RunFolder(str(folder), values["name"], values, "of photos", __version__).write()
    assert train_here(values, folder).step == 4


def resumes(workspace: Path, command: str, steps: int = 4) -> None:
    overrides = [
        f"train.steps={steps}" if "train.steps" in each else each for each in shlex.split(command)[2:]
    ]
    folder = workspace / overrides[0].removeprefix("resume=")
    assert train_here(resume(load_resumable(str(folder)), overrides), folder).step == steps


def made_token(workspace: Path, command: str) -> None:
    run(workspace, command, home=True)
    assert (workspace / ".ray" / "auth_token").read_text(encoding="utf-8").strip()


def protects_token(workspace: Path, command: str) -> None:
    run(workspace, command, home=True)
    assert stat.S_IMODE((workspace / ".ray" / "auth_token").stat().st_mode) == 0o600


def activates(workspace: Path, command: str) -> None:
    assert "\nVENV := .venv\n" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def left_what_the_readme_lists(workspace: Path, result: dict) -> bool:
    """All but the report, which takes its time and is looked at by test_job_submit.py."""
    listed = README.partition("```text\noutputs/\n")[2].partition("```")[0]
    run_dir, checkpoint = workspace / "outputs" / "omniglot", Path(result["checkpoint"])
    assert (workspace / "outputs" / "mlflow.db").is_file()
    artifacts = (workspace / "outputs" / "artifacts" / result["run_id"]).rglob("*")
    assert "config.json" in {path.name for path in artifacts}
    in_run = set(re.findall(r"^    ([\w.]+)", listed, re.MULTILINE))
    assert in_run == {"report.html", "index", *(path.name for path in run_dir.iterdir())}
    in_checkpoint = set(re.findall(r"\w+\.(?:pt|json)", listed.partition("checkpoints/")[2].splitlines()[0]))
    assert in_checkpoint == {path.name for path in checkpoint.iterdir()}
    return result["step"] == 4


CLUSTER = checked_by("tests/cluster/test_cluster_yaml.py::test_the_launcher_accepts_it")
SUBMIT = checked_by("tests/end_to_end/test_job_submit.py::test_a_submitted_job_trains_and_its_run_is_tracked")

STUDY = checked_by("tests/end_to_end/test_study.py::test_a_study_compares_its_arms_and_repeats_nothing")
STUDIES = checked_by("tests/config/test_study_plan.py::test_the_studies_that_come_along_are_possible")
TUNE = checked_by("tests/end_to_end/test_tune.py::test_a_search_stops_what_is_behind_and_repeats_nothing")


def measured_by(test: str) -> Check:
    """Evaluated with these settings by a test of published protocols, which has to be there."""
    look = checked_by(f"tests/inference/test_published.py::{test}")

    def look_and_load(workspace: Path, command: str) -> None:
        look(workspace, command)
        load("evaluate", EvaluateJob, shlex.split(command.partition("jobs/evaluate.py")[2]))

    return look_and_load


PRESET = checked_by("tests/inference/test_published.py::test_a_preset_trains_on_a_copy_of_its_data_set")

CHECKS: dict[str, Check] = {
    "make quickstart": makes(".venv/bin/python jobs/train.py experiment=quickstart"),
    "make test": makes(".venv/bin/python -m pytest"),
    "source .venv/bin/activate": activates,
    "python jobs/ingest.py 'source=[images_background_small1.zip,images_background_small2.zip]' out=omniglot.arrow "
    "split_by=group 'test_groups=[Sanskrit,Tagalog]'": gives(
        lambda _, result: (
            result["split_classes"] == {"train": 9, "test": 6} and result["duplicates_skipped"] == 12
        )
    ),
    "python jobs/train.py experiment=omniglot data.path=omniglot.arrow name=omniglot": gives(
        left_what_the_readme_lists, *TINY, "model.widths=[8,8]", "trainer.num_workers=1", "report=false"
    ),
    "python jobs/evaluate.py checkpoint=outputs/omniglot": gives(
        lambda _, result: 0 <= result["metrics"]["recall_at_1"] <= 1 and result["split"] == "test"
    ),
    "python jobs/embed.py checkpoint=outputs/omniglot source=omniglot.arrow split=test out=embeddings.parquet": gives(
        lambda workspace, result: (
            pq.read_table(workspace / "embeddings.parquet").column_names
            == ["id", "path", "label_name", "group", "embedding"]
        )
    ),
    "python jobs/train.py resume=outputs/omniglot": resumes,
    "python jobs/train.py resume=outputs/omniglot train.steps=2400": partial(resumes, steps=6),
    "python jobs/ingest.py source=photos out=photos.arrow test_fraction=0.3": gives(
        lambda workspace, result: (
            Catalog.open(workspace / "photos.arrow").num_classes == result["classes"] == 20
        )
    ),
    "python jobs/train.py data=catalog data.path=photos.arrow model=resnet model.channels=3 model.image_size=64 "
    "model.stem_stride=2 augment=photo sampler.classes_per_batch=16 loss=lifted_structure name=photos": trains,
    "python jobs/search.py checkpoint=outputs/photos gallery=photos queries=photo.png out=found": gives(
        lambda workspace, result: (
            len(result["neighbors"]) == 10 and (workspace / "found" / "search.html").is_file()
        )
    ),
    "python jobs/search.py checkpoint=outputs/photos gallery=photos queries=photo.png out=found "
    "saved_index=photos.index": gives(lambda workspace, _: (workspace / "photos.index").is_dir()),
    "python jobs/search.py checkpoint=outputs/photos gallery=photos.index queries=photos/kind1 out=found k=20 "
    "backend=torch": gives(lambda _, result: result["queries"] == 4),
    "python jobs/search.py gallery=embeddings.parquet queries=embeddings.parquet out=found "
    "rerank=k_reciprocal": gives(lambda _, result: result["queries"] == 24),
    "python jobs/report.py 'runs=[outputs/omniglot]'": gives(
        lambda workspace, _: (workspace / "outputs" / "omniglot" / "report.html").is_file()
    ),
    "python jobs/report.py 'runs=[outputs/omniglot,outputs/photos]' out=comparison.html": gives(
        lambda workspace, _: (workspace / "comparison.html").is_file()
    ),
    "python jobs/evaluate.py 'checkpoint=[outputs/a,outputs/b]' data.path=omniglot.arrow data.split=test "
    "out=comparison.json": checked_by(
        "tests/inference/test_evaluate.py::test_several_checkpoints_stand_side_by_side"
    ),
    "python jobs/evaluate.py checkpoint=outputs/omniglot query=photos gallery=photos.arrow "
    "'protocol.ks=[1,10,100]'": gives(lambda _, result: "recall_at_100" in result["metrics"]),
    "python jobs/evaluate.py embeddings=embeddings.parquet protocol.rerank=k_reciprocal": gives(
        lambda _, result: 0 <= result["metrics"]["recall_at_1"] <= 1
    ),
    "python jobs/evaluate.py embeddings=embeddings.parquet protocol.whole_ranking=true": gives(
        lambda _, result: 0 <= result["metrics"]["mean_average_precision"] <= 1
    ),
    "python jobs/evaluate.py checkpoint=outputs/omniglot protocol=verification": gives(
        lambda _, result: 0 <= result["metrics"]["equal_error_rate"] <= 1
    ),
    "python jobs/evaluate.py checkpoint=outputs/omniglot protocol=episodes protocol.ways=20 "
    "protocol.within_groups=true": gives(
        lambda _, result: 0 <= result["metrics"]["accuracy"] <= 1, "protocol.ways=3"
    ),
    "python jobs/ingest.py 'source=[images_background_small1.zip,images_background_small2.zip]' "
    "out=omniglot_best.arrow split_by=group 'test_groups=[Sanskrit,Tagalog]' turned_classes=true "
    "joined_classes=2000": gives(
        lambda _, result: result["split_classes"] == {"train": 4 * 9 + 5, "test": 6}, "joined_classes=5"
    ),
    "python jobs/train.py experiment=omniglot_best data.path=omniglot_best.arrow name=omniglot_best": gives(
        lambda _, result: result["step"] == 4,
        *(*TINY, "model.widths=[8,8]", "trainer.num_workers=1", "report=false", "train.precision=float32"),
    ),
    "python jobs/evaluate.py checkpoint=outputs/omniglot_best protocol=episodes protocol.ways=20": gives(
        lambda _, result: 0 <= result["metrics"]["accuracy"] <= 1, "protocol.ways=3"
    ),
    "python jobs/evaluate.py checkpoint=outputs/omniglot_best protocol=episodes protocol.ways=20 "
    "protocol.within_groups=true": gives(
        lambda _, result: 0 <= result["metrics"]["accuracy"] <= 1, "protocol.ways=3"
    ),
    "python jobs/ingest.py layout=cub200 source=CUB_200_2011.tgz out=cub200.arrow": gives(
        lambda _, result: result["split_classes"] == {"train": 100, "test": 100}
    ),
    "python jobs/ingest.py layout=cars196 source=car_ims.tgz manifest=cars_annos.mat out=cars196.arrow": gives(
        lambda _, result: result["split_classes"] == {"train": 98, "test": 98}
    ),
    "python jobs/ingest.py layout=sop source=Stanford_Online_Products.zip out=sop.arrow": gives(
        lambda _, result: result["split_classes"] == {"train": 6, "test": 6}
    ),
    "python jobs/ingest.py layout=inshop source=img.zip manifest=list_eval_partition.txt out=inshop.arrow": gives(
        lambda _, result: result["split_classes"] == {"train": 6, "query": 6, "gallery": 6}
    ),
    "python jobs/ingest.py layout=market1501 source=Market-1501-v15.09.15.zip manifest=market_attribute.mat "
    "out=market1501.arrow": gives(
        lambda _, result: result["split_classes"] == {"train": 6, "query": 6, "gallery": 8}
    ),
    "python jobs/ingest.py 'layout=[webface,lfw]' 'source=[CASIA-WebFace,lfw.tgz]' out=webface.arrow": gives(
        lambda _, result: result["split_classes"] == {"train": 8, "test": 20}
    ),
    **{
        f"python jobs/train.py experiment={name} data.path={name.partition('_')[0]}.arrow name={name}": PRESET
        for name in ("cub200", "cars196", "sop", "inshop", "market1501", "market1501_attributes", "webface")
    },
    **dict.fromkeys(
        (f"python jobs/evaluate.py checkpoint=outputs/{name}" for name in ("cub200", "cars196")),
        measured_by("test_birds_and_cars_are_retrieved_as_the_run_itself_has_measured"),
    ),
    "python jobs/evaluate.py checkpoint=outputs/sop protocol=sop": measured_by(
        "test_products_are_retrieved_among_up_to_a_thousand"
    ),
    "python jobs/evaluate.py checkpoint=outputs/inshop protocol=inshop query=inshop.arrow query_split=query "
    "gallery=inshop.arrow gallery_split=gallery": measured_by("test_clothes_are_found_in_the_gallery"),
    "python jobs/evaluate.py checkpoint=outputs/market1501 protocol=market1501 query=market1501.arrow "
    "query_split=query gallery=market1501.arrow gallery_split=gallery": measured_by(
        "test_persons_are_found_by_other_cameras_among_distractors_and_without_junk"
    ),
    "python jobs/evaluate.py checkpoint=outputs/webface protocol=lfw protocol.pairs=pairs.txt": measured_by(
        "test_faces_are_verified_over_the_ten_folds_of_pairs_txt"
    ),
    "python jobs/embed.py checkpoint=outputs/omniglot source=omniglot.arrow out=all.arrow workers=2 "
    "part_rows=1000": checked_by(
        "tests/cluster/test_embed.py::test_two_workers_of_which_one_is_killed_write_what_one_process_writes"
    ),
    "python jobs/tune.py 'train={experiment: quickstart, train.steps: 200}' num_trials=8 "
    "'space={optim.lr: {low: 1e-3, high: 1e-2, log: true}, loss.margin: [0.1, 0.2]}'": TUNE,
    "python jobs/tune.py space=space.yaml train=train.yaml num_trials=50 scheduler=asha name=margins": TUNE,
    "python jobs/tune.py resume=outputs/margins": TUNE,
    "python jobs/study.py study=losses": STUDIES,
    "python jobs/study.py study=losses train='{experiment: omniglot, data.path: omniglot.arrow}'": STUDIES,
    "python jobs/study.py 'study.arms={small: {model.embedding_dim: 32}, large: {model.embedding_dim: 128}}' "
    "'study.train={experiment: quickstart}' study.baseline=small name=dimensions": STUDY,
    "python jobs/study.py resume=outputs/dimensions": STUDY,
    "python jobs/export.py checkpoint=outputs/omniglot out=exported": gives(
        lambda workspace, _: (workspace / "exported" / "model.onnx").is_file()
    ),
    "python jobs/export.py checkpoint=outputs/omniglot 'formats=[mlflow]' register=omniglot alias=best": gives(
        lambda _, result: result["registered"]["version"] == 1
    ),
    "python jobs/train.py --help": runs(),
    "python jobs/train.py 'trainer.num_workers=[1,2]' model.norm=sync_batch": checked_by(
        "tests/end_to_end/test_elastic.py::test_a_lost_machine_is_done_without_until_there_is_another"
    ),
    "python jobs/train.py model.norm=group train.chunk_size=64 sampler.classes_per_batch=512": checked_by(
        "tests/training/test_chunks.py::test_chunks_train_what_the_whole_batch_trains"
    ),
    "python jobs/train.py resume=outputs/NAME": checked_by(
        "tests/end_to_end/test_tracking_outages.py::test_a_run_whose_server_is_not_there_is_whole_and_resume_delivers_it"
    ),
    "python jobs/benchmark.py suite=soak seconds=600": checked_by(
        "tests/end_to_end/test_soak.py::test_a_minute_with_faults_ends_as_if_there_had_been_none"
    ),
    "python jobs/ingest.py source=walks out=walks.arrow tracklet_folders=true": checked_by(
        "tests/data/test_clips.py::test_folders_become_tracklets_in_the_order_of_their_numbers"
    ),
    "python jobs/train.py data=catalog data.path=walks.arrow model.frames_per_clip=4 model.temporal=attention": (
        checked_by("tests/training/test_clips.py::test_interrupted_and_resumed_equals_never_interrupted")
    ),
    "python jobs/train.py experiment=moving_glyphs": checked_by(
        "tests/training/test_clips.py::test_the_attribute_aware_loss_learns_identities_and_attributes_of_clips"
    ),
    "python jobs/train.py experiment=quickstart sampler=hard_neighbors": checked_by(
        "tests/end_to_end/test_hard_neighbors.py::"
        "test_killing_the_index_and_a_worker_right_after_a_swap_leaves_the_run_as_planned"
    ),
    "python jobs/mine.py embeddings=embeddings.parquet out=mined": gives(
        lambda workspace, result: (
            {Path(table["path"]).name for table in result["tables"].values()}
            == {path.name for path in (workspace / "mined").iterdir()}
            == {f"{name}.parquet" for name in result["tables"]}
        )
    ),
    "torchrun --nproc-per-node 2 my_loop.py": runs(),
    "python jobs/train.py experiment=quickstart --cfg json > config.json": lambda workspace, command: print(
        run(workspace, command.replace("--cfg", "debug=tiny train.steps=4 data.max_classes=40 --cfg"))
    ),
    "torchrun --nproc-per-node 2 -m distmetric.training config.json": gives(
        lambda _, result: result["step"] == 4
    ),
    "python jobs/benchmark.py suite=losses": gives(
        lambda _, result: result["statuses"] == {"ok": 2} and Path(result["markdown"]).is_file(),
        *("losses=[batch_hard]", "sizes=[64]", "processes=[1]"),
    ),
    "python jobs/benchmark.py suite=kernels": checked_by(  # it needs a GPU
        "tests/benchmarks/kernels/test_suite.py::test_without_a_gpu_one_line_says_so"
    ),
    "python jobs/benchmark.py suite=index": gives(
        lambda _, result: set(result["statuses"]) == {"ok"} and Path(result["markdown"]).is_file(),
        *("methods=[flat,class_balls]", "sizes=[200]", "steps=1"),
    ),
    "python jobs/benchmark.py suite=index embeddings=embeddings.parquet "
    "methods=[flat,flat_negative,class_balls]": gives(
        lambda _, result: set(result["statuses"]) == {"ok"}, "steps=1", "k=2"
    ),
    "python jobs/benchmark.py suite=data": gives(
        lambda _, result: result["statuses"] == {"ok": 1} and Path(result["markdown"]).is_file(),
        *("images=[jpeg256]", "sizes=[8]", "steps=1", "threads=1"),
    ),
    "python jobs/benchmark.py suite=training": gives(
        lambda _, result: result["statuses"] == {"ok": 3} and Path(result["markdown"]).is_file(),
        *("models=[conv]", "sizes=[16]", "processes=[1]", "steps=1", "startup=false"),
    ),
    "python jobs/benchmark.py suite=scaling": gives(
        lambda _, result: result["statuses"] == {"ok": 4} and Path(result["markdown"]).is_file(),
        *("sizes=[16]", "processes=[1]", "steps=1"),
    ),
    "python -m distmetric.index.scale": runs(),
    "export RAY_AUTH_MODE=token": SUBMIT,
    "ray get-auth-token --generate > /dev/null": made_token,
    "chmod 600 ~/.ray/auth_token": protects_token,
    "ray start --head --dashboard-host 127.0.0.1": SUBMIT,
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py experiment=quickstart "
    "output_dir=$PWD/outputs": SUBMIT,
    # Ends every Ray on the machine, so not here.
    "ray stop": SUBMIT,
    "ray up cluster.yaml": CLUSTER,
    "ray dashboard cluster.yaml": CLUSTER,
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py experiment=omniglot "
    "trainer=cluster trainer.num_workers=8 data.path=/home/ubuntu/data/omniglot.arrow "
    "output_dir=s3://my-bucket/distmetric/runs": SUBMIT,
    "ray down cluster.yaml": CLUSTER,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    joined = re.sub(r"\s*\\\n\s*", " ", "".join(blocks("bash")))
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout, with the inputs that the README talks about, only smaller."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "jobs").symlink_to(REPOSITORY / "jobs")
    (folder / "my_loop.py").write_text(block("init_process_group"), encoding="utf-8")
    for number, alphabets in enumerate((("Greek", "Latin", "Sanskrit"), ("Greek", "Korean", "Tagalog")), 1):
        with zipfile.ZipFile(folder / f"images_background_small{number}.zip", "w") as archive:
            for alphabet in alphabets:
                for character in range(3):
                    for drawing in range(4):
                        name = f"images/{alphabet}/character{character:02}/{drawing}.png"
                        archive.writestr(name, picture(f"{alphabet}{character}", drawing, "1"))
    for kind in range(20):
        (folder / "photos" / f"kind{kind}").mkdir(parents=True)
        for shot in range(4):
            (folder / "photos" / f"kind{kind}" / f"{shot}.png").write_bytes(picture(f"{kind}", shot, "RGB"))
    (folder / "photo.png").write_bytes(picture("7", 9, "RGB"))
    add_published(folder)
    return folder


def add_published(folder: Path) -> None:
    """Tiny copies of the data sets that are not to be had here."""
    cars, annotations = published.cars196()
    clothes, partition = published.inshop()
    published.make_tar(folder / "CUB_200_2011.tgz", published.cub200())
    published.make_tar(folder / "car_ims.tgz", cars)
    make_zip(folder / "Stanford_Online_Products.zip", published.sop())
    make_zip(folder / "img.zip", clothes)
    make_zip(folder / "Market-1501-v15.09.15.zip", published.market1501())
    make_folder(folder, published.webface())
    published.make_tar(folder / "lfw.tgz", published.lfw())
    (folder / "cars_annos.mat").write_bytes(annotations)
    (folder / "list_eval_partition.txt").write_bytes(partition)
    (folder / "market_attribute.mat").write_bytes(published.market_attribute())


def picture(kind: str, number: int, mode: str) -> bytes:
    """A few strokes, the same ones for a kind but for some jitter."""
    strokes = np.random.default_rng(list(kind.encode())).integers(0, 105, (4, 4))
    jitter = np.random.default_rng([*kind.encode(), number]).integers(-4, 5, (4, 4))
    image = Image.new(mode, (105, 105), "white")
    for stroke in strokes + jitter:
        ImageDraw.Draw(image).line([int(end) for end in stroke], fill="black", width=3)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.ray
@pytest.mark.parametrize("command", list(dict.fromkeys(commands())), ids=lambda command: command[:60])
def test_every_command_does_what_it_says(command: str, workspace: Path, monkeypatch) -> None:
    monkeypatch.chdir(workspace)
    assert command in CHECKS, "a command of the README that nobody checks: say in CHECKS how it is"
    CHECKS[command](workspace, command)


def test_every_check_has_its_command() -> None:
    assert set(CHECKS) == set(commands())


def block(text: str) -> str:
    """The one Python block that has this text."""
    (found,) = (each for each in blocks("python") if text in each)
    return found


def names_of(text: str) -> dict[str, Any]:
    """What a Python block leaves when it is run."""
    names: dict[str, Any] = {}
    exec(block(text), names)
    return names


PYTHON: dict[str, Callable[[dict[str, Any]], object]] = {
    "MultiSimilarityLoss": lambda names: names["criterion"],
    "CheckpointEmbedder": lambda names: names["embeddings"].shape == (80, 8),
    "survey_pairs": lambda names: names["survey"].calibration.far <= 1e-3,
    "load_exported": lambda names: names["embedder"].embedding_dim == 8,
    "load_model": lambda names: names["embeddings"].shape == (1, 8),
    "GradientCache": lambda names: names["model"].weight.grad.abs().sum() > 0,
    "ClassBallIndex": lambda names: names["found"].ids.shape == (5, 10),
}


@pytest.mark.parametrize("text", PYTHON)
def test_python_does_what_it_says(text: str, workspace: Path, monkeypatch) -> None:
    """After the commands, whose files some of it reads."""
    monkeypatch.chdir(workspace)
    try:
        assert PYTHON[text](names_of(text))
    finally:
        mlflow.set_tracking_uri(None)  # of this process and its environment, which one of them sets


def test_all_python_is_run() -> None:
    """The training loop is run as `my_loop.py`."""
    assert all(
        sum(text in each for text in (*PYTHON, "init_process_group")) == 1 for each in blocks("python")
    )


def test_blocks_have_a_language() -> None:
    assert set(re.findall(r"^```(.*)$", README, re.MULTILINE)) == {"bash", "python", "text", ""}


def test_the_configuration_table_is_current(monkeypatch) -> None:
    monkeypatch.delenv("DISTMETRIC_CACHE", raising=False)  # which would be shown as a default
    assert readme_table.updated(README) == README, "renew it: python tests/readme_table.py"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_what_continuous_integration_runs_is_in_the_makefile() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    targets = re.findall(r"^make (\w+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == ["check", "test"]
    rules = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in targets)
