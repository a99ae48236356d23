"""The presets of published data sets train on tiny copies of them and are evaluated by the published protocols."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import published
from distmetric.config.compose import compose, load
from distmetric.config.decode import decode
from distmetric.config.jobs import EvaluateJob, ExportJob
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.errors import ConfigError
from distmetric.evaluation.verification import verify_pairs
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.evaluate import run_evaluation
from distmetric.inference.evaluation_sets import EvaluationSet, set_of_images
from distmetric.inference.export import export_checkpoint
from distmetric.inference.exported import ServedEmbedder
from image_sources import make_folder, make_zip
from runs import run_once

transformers = pytest.importorskip("transformers")

PRESETS = ["cub200", "cars196", "sop", "inshop", "market1501", "market1501_attributes", "webface"]
# The same preset with a few steps of few images; what is learned stays what it says.
TINY = [
    *("train.steps=4", "eval.every_steps=4", "checkpoint.every_steps=4", "eval.resamples=10"),
    *("trainer=cpu", "trainer.num_workers=1", "tracking=none"),
    *("sampler.classes_per_batch=4", "sampler.samples_per_class=3"),
]
MEMORY = ["loss.memory_size=48", "loss.start_step=2"]
RECTANGLE = "model.image_size=[32,16]"
OTHERS = {
    "sop": MEMORY,
    "inshop": MEMORY,
    "market1501": [RECTANGLE],
    "market1501_attributes": [RECTANGLE],
    "cub200": ["sampler.samples_per_class=2"],
    "cars196": ["sampler.samples_per_class=2"],
}


@dataclass(frozen=True)
class Run:
    """A preset that was trained: its catalog, its folder, and what the run measured."""

    catalog: Path
    folder: Path
    config: Config
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet as small as can be, as a local folder: the one that presets name cannot be had without a network."""
    folder = tmp_path_factory.mktemp("trunk")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 32, "width": 32}}
        )
    )
    return folder


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalog NAME.arrow for every preset."""
    folder = tmp_path_factory.mktemp("catalogs")
    cars, annotations = published.cars196()
    clothes, partition = published.inshop()
    beside = {"cars": annotations, "inshop": partition, "market": published.market_attribute()}
    for name, data in beside.items():
        (folder / name).write_bytes(data)
    sources: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "cub200": ([published.cub200()], {}),
        "cars196": ([cars], {"manifest": str(folder / "cars")}),
        "sop": ([published.sop()], {}),
        "inshop": ([clothes], {"manifest": str(folder / "inshop")}),
        "market1501": ([published.market1501()], {"manifest": str(folder / "market")}),
        "webface": ([published.webface(), published.lfw()], {"layout": ["webface", "lfw"]}),
    }
    for name, (parts, options) in sources.items():
        archives = [make_zip(folder / f"{name}{n}.zip", files) for n, files in enumerate(parts)]
        ingest(archives, folder / f"{name}.arrow", **{"layout": name, **options})
    return folder


def overrides(preset: str, catalogs: Path, trunk: Path) -> list[str]:
    small = [
        f"model.model={trunk}",
        "model.local_files_only=true",
        "model.image_size=32",
        "model.embedding_dim=16",
    ]
    if preset == "webface":
        small = [
            "model.image_size=16",
            "model.embedding_dim=16",
            "model.widths=[4,8]",
            "model.blocks_per_stage=[1,1]",
        ]
    data = f"data.path={catalogs / preset.removesuffix('_attributes')}.arrow"
    return [f"experiment={preset}", data, *TINY, *small, *OTHERS.get(preset, [])]


@pytest.fixture(scope="module")
def trained(catalogs: Path, trunk: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A preset's run, made when it is asked for first."""
    runs: dict[str, Run] = {}

    def of(preset: str) -> Run:
        if preset not in runs:
            config = decode(Config, compose("config", overrides(preset, catalogs, trunk)))
            validate(config)
            folder = tmp_path_factory.mktemp(preset)
            _, result, tracker = run_once(config, folder)
            assert set(tracker.series("train/loss")) == {1, 2, 3, 4}
            runs[preset] = Run(Path(config.data.path), folder, config, result.metrics)
        return runs[preset]

    return of


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_on_a_copy_of_its_data_set(preset: str, trained: Any) -> None:
    run = trained(preset)
    assert {f"recall_at_{k}" for k in run.config.eval.ks} <= run.metrics.keys()
    assert 0 <= run.metrics["recall_at_1"] <= 1
    assert Catalog.open(run.catalog).fingerprint


def evaluated(run: Run, *settings: str) -> dict[str, Any]:
    return run_evaluation(load("evaluate", EvaluateJob, [f"checkpoint={run.folder}", *settings]))


def two_splits(run: Run) -> list[str]:
    return [
        *(f"query={run.catalog}", "query_split=query"),
        *(f"gallery={run.catalog}", "gallery_split=gallery"),
    ]


def embedded(run: Run, split: str) -> EvaluationSet:
    return set_of_images(CheckpointEmbedder(str(run.folder)), str(run.catalog), "query", split, 64, [])


def distances(query: EvaluationSet, gallery: EvaluationSet) -> np.ndarray:
    return torch.cdist(
        query.embeddings.double(), gallery.embeddings.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()


def names(images: EvaluationSet) -> list[str]:
    return [images.label_names[label] for label in images.labels]


@pytest.mark.parametrize("preset", ["cub200", "cars196"])
def test_birds_and_cars_are_retrieved_as_the_run_itself_has_measured(preset: str, trained: Any) -> None:
    found = evaluated(trained(preset))["metrics"]
    assert {"recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8"} <= found.keys()
    assert found["recall_at_1"] == pytest.approx(trained(preset).metrics["recall_at_1"], abs=1e-9)


def test_products_are_retrieved_among_up_to_a_thousand(trained: Any) -> None:
    found = evaluated(trained("sop"), "protocol=sop")
    assert found["split"] == "test"
    assert found["images"] == 18
    assert [name for name in found["metrics"] if name.startswith("recall")] == [
        f"recall_at_{k}" for k in (1, 10, 100, 1000)
    ]
    assert found["metrics"]["recall_at_1000"] == 1


def test_clothes_are_found_in_the_gallery(trained: Any) -> None:
    run = trained("inshop")
    found = evaluated(run, "protocol=inshop", *two_splits(run))["metrics"]
    query, gallery = embedded(run, "query"), embedded(run, "gallery")
    order = np.argsort(distances(query, gallery), axis=1, kind="stable")
    for k in (1, 10, 20, 30):
        hits = [
            any(names(gallery)[place] == wanted for place in order[row, :k])
            for row, wanted in enumerate(names(query))
        ]
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("preset", ["market1501", "market1501_attributes"])
def test_persons_are_found_by_other_cameras_among_distractors_and_without_junk(
    preset: str, trained: Any
) -> None:
    run = trained(preset)
    found = evaluated(run, "protocol=market1501", *two_splits(run))["metrics"]
    query, gallery = embedded(run, "query"), embedded(run, "gallery")
    assert query.cameras is not None
    assert gallery.cameras is not None
    assert {"-1", "0000"} <= set(gallery.label_names)
    firsts, precisions = [], []
    for row, wanted in enumerate(names(query)):
        ranking = [
            names(gallery)[place] == wanted
            for place in np.argsort(distances(query, gallery)[row], kind="stable")
            if names(gallery)[place] != "-1"
            and not (names(gallery)[place] == wanted and gallery.cameras[place] == query.cameras[row])
        ]
        assert sum(ranking) == 4  # two images from each of the other two cameras
        firsts.append(ranking[0])
        area, right, before = 0.0, 0, 1.0
        for rank, is_right in enumerate(ranking, 1):
            right += is_right
            if is_right:
                area += (before + right / rank) / 2 / sum(ranking)
            before = right / rank
        precisions.append(area)
    assert found["num_queries"] == 18
    assert found["cmc_at_1"] == pytest.approx(np.mean(firsts))
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions))


def test_all_attributes_of_persons_are_predicted(trained: Any) -> None:
    embedder = CheckpointEmbedder(str(trained("market1501_attributes").folder))
    config = trained("market1501_attributes").config
    assert len(config.model.attributes) == 27
    assert set(config.model.attributes) == set(Catalog.open(trained("market1501").catalog).attribute_names)
    assert embedder.config.model.image_size == [32, 16]


def test_a_model_of_images_higher_than_wide_is_exported(trained: Any, tmp_path: Path) -> None:
    run = trained("market1501")
    job = load(
        "export", ExportJob, [f"checkpoint={run.folder}", f"out={tmp_path}/out", "formats=[safetensors]"]
    )
    export_checkpoint(job)
    served = ServedEmbedder(tmp_path / "out")
    catalog = Catalog.open(run.catalog)
    rows = catalog.rows("query")
    query = embedded(run, "query")
    found = served.predict({"image": [bytes(catalog.image_bytes(row)) for row in rows]})
    assert found == pytest.approx(query.embeddings.numpy(), abs=1e-4)


def test_faces_are_verified_over_the_ten_folds_of_pairs_txt(trained: Any, tmp_path: Path) -> None:
    run = trained("webface")
    (tmp_path / "pairs.txt").write_bytes(published.pairs_txt())
    found = evaluated(run, "protocol=lfw", f"protocol.pairs={tmp_path}/pairs.txt")["metrics"]
    faces = embedded(run, "test")
    row_of = {path.rpartition("/")[2].removesuffix(".jpg"): row for row, path in enumerate(faces.paths)}
    rows, same, folds = [], [], []
    for number, line in enumerate(published.pairs_txt().decode().splitlines()[1:]):
        fields = line.split("\t")
        other = fields[2:] if len(fields) == 4 else [fields[0], fields[2]]
        rows.append([row_of[f"{name}_{int(k):04}"] for name, k in (fields[:2], other)])
        same.append(len(fields) == 3)
        folds.append(number // 4)
    first, second = faces.embeddings.double()[rows].unbind(dim=1)
    expected = verify_pairs((first - second).norm(dim=1), torch.tensor(same), folds=torch.tensor(folds))
    assert len(set(folds)) == 10
    assert found["num_positive_pairs"] == found["num_negative_pairs"] == 20
    for name in ("accuracy", "accuracy_std", "equal_error_rate", "roc_auc"):
        assert found[name] == pytest.approx(expected.to_dict()[name], abs=1e-9)


def test_faces_may_be_verified_in_the_folder_they_lie_in(trained: Any, tmp_path: Path) -> None:
    run = trained("webface")
    (tmp_path / "pairs.txt").write_bytes(published.pairs_txt())
    pairs = f"protocol.pairs={tmp_path}/pairs.txt"
    folder = make_folder(tmp_path / "faces", published.lfw())
    found = evaluated(run, "protocol=lfw", pairs, f"query={folder}")["metrics"]
    assert found == pytest.approx(evaluated(run, "protocol=lfw", pairs)["metrics"], abs=1e-6)


def test_pairs_have_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"protocol.pairs is required: give it as protocol.pairs=\.\.\."):
        load("evaluate", EvaluateJob, ["checkpoint=x", "protocol=lfw"])
