"""Any checkpoint or file of embeddings on any images by any protocol: the numbers of the evaluation functions."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import distmetric
from distmetric.config.compose import load
from distmetric.config.jobs import EvaluateJob
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.errors import InputError, ResourceError, UserError
from distmetric.evaluation.clustering import cluster
from distmetric.evaluation.episodes import evaluate_episodes
from distmetric.evaluation.identification import identify
from distmetric.evaluation.query_expansion import expand_queries
from distmetric.evaluation.reid import evaluate_reid, reid_metrics_of_rankings
from distmetric.evaluation.reranking import rerank
from distmetric.evaluation.verification import verify, verify_pairs
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.evaluate import run_evaluation
from distmetric.inference.protocols import divide
from distmetric.training.run_data import open_data
from runs import CPU, run_once, tiny_config


@dataclass(frozen=True)
class Trained:
    """A run, and what its best checkpoint makes of its data.

    Attributes:
        catalog: Of the run.
        rows: Of its test split.
        embeddings: (len(rows), D).
    """

    checkpoint: str
    metrics: dict[str, float]
    catalog: Catalog
    rows: NDArray[np.int64]
    embeddings: Tensor

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.catalog.labels[self.rows]

    @property
    def names(self) -> list[str]:
        return [self.catalog.label_names[label] for label in self.labels]


@pytest.fixture(scope="module")
def trained(glyph_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    _, result, _ = run_once(config, folder)
    catalog = open_data(config.data)
    embedder = CheckpointEmbedder(result.checkpoint, CPU)
    parts = [embedder.embed(rows.images) for rows, _ in embedder.batches(str(catalog.path), split="test")]
    rows = catalog.rows("test")
    return Trained(
        result.checkpoint, dict(result.metrics), catalog, rows, torch.from_numpy(np.concatenate(parts))
    )


def evaluated(*overrides: str) -> dict[str, Any]:
    return run_evaluation(load("evaluate", EvaluateJob, overrides))


def error_of(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        evaluated(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_images(trained: Trained, folder: Path, rows: list[int], prefix: str = "") -> Path:
    """Images of the catalog in folders that are called like their classes."""
    for row in rows:
        file = folder / f"class {trained.catalog.labels[row]:03d}" / f"{prefix}{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(trained.catalog.image_bytes(row))
    return folder


def write_embeddings(trained: Trained, file: Path, chosen: slice = slice(None), **more: list[Any]) -> Path:
    embeddings = trained.embeddings[chosen].numpy()
    columns = {
        "id": trained.catalog.ids[trained.rows][chosen],
        "path": [f"images/{row}.png" for row in trained.rows[chosen]],
        "label_name": trained.names[chosen],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1]),
        **more,
    }
    table = pa.table(columns)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        feather.write_feather(table, file)
    return file


def test_evaluation_repeats_what_training_measured(trained: Trained) -> None:
    found = evaluated(f"checkpoint={trained.checkpoint}")
    assert found["metrics"] == pytest.approx(trained.metrics, abs=1e-9)
    assert (found["split"], found["data"]) == ("test", str(trained.catalog.path))
    assert found["fingerprint"] == trained.catalog.fingerprint
    assert (found["checkpoint"], found["images"]) == (trained.checkpoint, len(trained.rows))
    assert found["protocol"] == "retrieval"
    for name in ("recall_at_1", "map_at_r", "r_precision"):
        low, high = found["intervals"][name]
        assert low <= found["metrics"][name] <= high
        assert low < high


def test_evaluation_of_another_catalog_and_split(trained: Trained) -> None:
    path = trained.catalog.path
    found = evaluated(
        f"checkpoint={trained.checkpoint}", f"data.path={path}", "data.split=train", "protocol.ks=[3,2]"
    )
    assert found["metrics"]["num_queries"] == len(trained.catalog.rows("train"))
    assert set(found["metrics"]) >= {"recall_at_2", "recall_at_3", "map_at_r"}
    assert "nope" in error_of(f"checkpoint={trained.checkpoint}", f"data.path={path}", "data.split=nope")


def test_images_of_query_and_gallery_match_by_the_name_of_their_class(
    trained: Trained, tmp_path: Path
) -> None:
    rows = trained.rows.tolist()
    # The gallery has classes that no query has, first and last by name, so that equal classes differ in number.
    middle = set(np.unique(trained.labels)[2:-2].tolist())
    queries = [row for row in rows[::2] if trained.catalog.labels[row] in middle]
    query = write_images(trained, tmp_path / "query", queries)
    gallery = write_images(trained, tmp_path / "gallery", rows[1::2])
    (gallery / "class 000").mkdir(exist_ok=True)
    (gallery / "class 000" / "broken.png").write_bytes(b"not an image")
    archive = tmp_path / "gallery.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(gallery.rglob("*.png")):
            zipped.write(file, file.relative_to(gallery))

    order = {row: number for number, row in enumerate(rows)}
    embeddings, labels = trained.embeddings, trained.labels
    asked, searched = [order[row] for row in queries], [order[row] for row in rows[1::2]]
    expected = distmetric.evaluate(
        embeddings[asked],
        labels[asked],
        gallery_embeddings=embeddings[searched],
        gallery_labels=labels[searched],
        ks=(1, 5),
    ).to_dict()
    for source in (gallery, archive):
        found = evaluated(
            f"checkpoint={trained.checkpoint}",
            f"query={query}",
            f"gallery={source}",
            "protocol.ks=[1,5]",
            "batch_size=7",
        )
        assert found["metrics"] == pytest.approx(expected, abs=1e-9)
        assert (found["query"], found["gallery"]) == (str(query), str(source))
        assert [Path(bad["path"]).name for bad in found["bad_images"]] == ["broken.png"]
        assert found["images"] == len(queries) + len(rows[1::2])


def test_one_folder_is_evaluated_leave_one_out(trained: Trained, tmp_path: Path) -> None:
    folder = write_images(trained, tmp_path / "images", trained.rows.tolist())
    found = evaluated(f"checkpoint={trained.checkpoint}", f"query={folder}", "protocol.resamples=0")
    expected = distmetric.evaluate(trained.embeddings, trained.labels).to_dict()
    assert found["metrics"] == pytest.approx(expected, abs=1e-9)
    assert found["intervals"] == {}


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow"])
def test_files_of_embeddings_need_no_checkpoint(trained: Trained, suffix: str, tmp_path: Path) -> None:
    alone = write_embeddings(trained, tmp_path / f"all{suffix}")
    found = evaluated(f"embeddings={alone}")
    assert found["metrics"] == pytest.approx(trained.metrics, abs=1e-9)
    assert found["embeddings"] == str(alone)
    assert "checkpoint" not in found
    query = write_embeddings(trained, tmp_path / f"query{suffix}", slice(None, None, 2))
    gallery = write_embeddings(trained, tmp_path / f"gallery{suffix}", slice(1, None, 2))
    found = evaluated(f"query={query}", f"gallery={gallery}")
    embeddings, labels = trained.embeddings, trained.labels
    expected = distmetric.evaluate(
        embeddings[::2], labels[::2], gallery_embeddings=embeddings[1::2], gallery_labels=labels[1::2]
    )
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)


def test_splits_of_one_catalog_are_query_and_gallery(trained: Trained, tmp_path: Path) -> None:
    catalog = tmp_path / "split.arrow"
    with CatalogWriter(catalog) as writer:
        for number, row in enumerate(trained.rows):
            writer.add(
                trained.catalog.image_bytes(row),
                trained.names[number],
                group="g",
                path=f"{row}.png",
                width=28,
                height=28,
                split=("query", "gallery")[number % 2],
            )
    both = [f"query={catalog}", f"gallery={catalog}"]
    found = evaluated(f"checkpoint={trained.checkpoint}", *both, "query_split=query", "gallery_split=gallery")
    embeddings, labels = trained.embeddings, trained.labels
    expected = distmetric.evaluate(
        embeddings[::2], labels[::2], gallery_embeddings=embeddings[1::2], gallery_labels=labels[1::2]
    )
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)
    assert (found["query_split"], found["gallery_split"]) == ("query", "gallery")
    message = error_of(f"checkpoint={trained.checkpoint}", *both, "query_split=query")
    assert message.startswith("gallery_split=null but query and gallery are one catalog")
    message = error_of(f"checkpoint={trained.checkpoint}", *both, "query_split=query", "gallery_split=query")
    assert message.startswith(f"gallery={catalog} is the query as well: leave gallery out")


def expected_of_protocol(name: str, embeddings: Tensor, labels: NDArray[np.int64], groups: Any) -> Any:
    """What the evaluation functions say of one set, with the settings of the test below."""
    match name:
        case "retrieval":
            options: dict[str, Any] = {"ks": (1, 3), "whole_ranking": True, "resamples": 50, "seed": 4}
            return distmetric.evaluate(embeddings, labels, **options)
        case "verification":
            return verify(embeddings, labels, fars=(0.1, 0.01), folds=5, seed=4)
        case "identification":
            gallery, probes = divide(labels, 2, 0.3, 4)
            sides = (embeddings[gallery], labels[gallery], embeddings[probes], labels[probes])
            return identify(*sides, fars=(0.1,), ranks=(1, 2), templates="mean")
        case "clustering":
            return cluster(embeddings, labels, num_clusters=7, seed=4, iterations=3)
        case "episodes":
            options = {"ways": 3, "shots": 2, "queries": 2, "episodes": 20, "seed": 4}
            return evaluate_episodes(embeddings, labels, groups=groups, method="prototype", **options)
    raise AssertionError(name)


SETTINGS = {
    "retrieval": ["ks=[1,3]", "whole_ranking=true", "resamples=50"],
    "verification": ["fars=[0.1,0.01]", "folds=5"],
    "identification": ["fars=[0.1]", "ranks=[1,2]", "shots=2", "strangers=0.3", "templates=mean"],
    "clustering": ["num_clusters=7", "iterations=3"],
    "episodes": ["ways=3", "shots=2", "queries=2", "episodes=20", "within_groups=true", "method=prototype"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_protocol_gives_the_numbers_of_its_function(name: str, trained: Trained) -> None:
    settings = [f"protocol.{setting}" for setting in SETTINGS[name]]
    found = evaluated(f"checkpoint={trained.checkpoint}", f"protocol={name}", "seed=4", *settings)
    groups = np.unique(trained.catalog.groups[trained.rows].astype(str), return_inverse=True)[1]
    expected = expected_of_protocol(name, trained.embeddings, trained.labels, groups)
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)
    assert found["protocol"] == name
    assert found["settings"].keys() >= {"seed", *(setting.partition("=")[0] for setting in SETTINGS[name])}
    if name == "retrieval":
        assert found["intervals"].keys() == expected.intervals.keys()
        for key, ends in expected.intervals.items():
            assert found["intervals"][key] == pytest.approx(ends, abs=1e-9)
    if name == "episodes":
        low, high = found["intervals"]["accuracy"]
        assert low <= found["metrics"]["accuracy"] <= high
    json.dumps(found)


def test_identification_enrolls_the_gallery(trained: Trained, tmp_path: Path) -> None:
    known = np.isin(trained.labels, np.unique(trained.labels)[::2])
    enrolled = np.flatnonzero(known & (np.arange(len(known)) % 3 == 0))
    probes = np.setdiff1d(np.arange(len(known)), enrolled)
    gallery = write_images(trained, tmp_path / "gallery", trained.rows[enrolled].tolist())
    query = write_images(trained, tmp_path / "query", trained.rows[probes].tolist())
    found = evaluated(
        f"checkpoint={trained.checkpoint}", "protocol=identification", f"query={query}", f"gallery={gallery}"
    )
    embeddings, labels = trained.embeddings, trained.labels
    sides = (embeddings[enrolled], labels[enrolled], embeddings[probes], labels[probes])
    expected = identify(*sides, fars=(0.1, 0.01, 0.001), ranks=(1, 5, 10))
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)


@pytest.mark.parametrize("one_set", [True, False])
def test_reranked_retrieval(one_set: bool, trained: Trained, tmp_path: Path) -> None:
    """Queries that were expanded are searched for like any; reranked lists are judged as they are."""
    embeddings, labels = trained.embeddings, trained.labels
    if one_set:
        sources = [f"embeddings={write_embeddings(trained, tmp_path / 'all.parquet')}"]
        asked = searched = np.arange(len(labels))
        index = torch.from_numpy(asked)
    else:
        asked, searched, index = np.arange(0, len(labels), 2), np.arange(1, len(labels), 2), None
        query = write_embeddings(trained, tmp_path / "query.parquet", slice(None, None, 2))
        gallery = write_embeddings(trained, tmp_path / "gallery.parquet", slice(1, None, 2))
        sources = [f"query={query}", f"gallery={gallery}"]
    queries, rows = embeddings[asked], embeddings[searched]

    settings = [
        "protocol.rerank=query_expansion",
        "protocol.expansion_neighbors=3",
        "protocol.expansion_alpha=1",
    ]
    found = evaluated(*sources, *settings)["metrics"]
    expanded = expand_queries(queries, rows, neighbors=3, alpha=1.0, query_index=index)
    distances = torch.cdist(expanded.double(), rows.double())
    if one_set:
        distances.fill_diagonal_(float("inf"))
    expected = first_is_right(distances.argsort(dim=1, stable=True), labels[asked], labels[searched], one_set)
    assert found["recall_at_1"] == pytest.approx(expected, abs=1e-9)

    settings = ["protocol.rerank=k_reciprocal", "protocol.reciprocal_k1=6", "protocol.reciprocal_k2=3"]
    for whole in ("true", "false"):
        found = evaluated(*sources, *settings, f"protocol.whole_ranking={whole}")["metrics"]
        neighbors, _ = rerank(queries, rows, k1=6, k2=3, lambda_value=0.3, query_index=index)
        expected = first_is_right(neighbors, labels[asked], labels[searched], one_set)
        assert found["recall_at_1"] == pytest.approx(expected, abs=1e-9)
        assert ("mean_average_precision" in found) == (whole == "true")


def first_is_right(
    neighbors: Tensor, labels: NDArray[np.int64], gallery_labels: NDArray[np.int64], one_set: bool
) -> float:
    """Recall at 1 of lists, over the queries that have something to find."""
    counts = np.bincount(gallery_labels, minlength=labels.max() + 1)[labels] - one_set
    right = gallery_labels[neighbors[:, 0].numpy()] == labels
    return float(right[counts > 0].mean())


def test_reid_takes_cameras_from_catalog_file_or_path(trained: Trained, tmp_path: Path) -> None:
    count = len(trained.rows)
    cameras = np.random.default_rng(0).integers(0, 3, count)
    embeddings, labels = trained.embeddings, trained.labels
    junk = int(labels[0])
    expected = evaluate_reid(
        embeddings,
        labels,
        cameras,
        embeddings,
        labels,
        cameras,
        ks=(1, 2),
        junk_label=junk,
        resamples=20,
        seed=0,
    )
    settings = ["protocol=reid", "protocol.ks=[1,2]", "protocol.resamples=20"]

    catalog = tmp_path / "cameras.arrow"
    with CatalogWriter(catalog) as writer:
        for number, row in enumerate(trained.rows):
            image, name = trained.catalog.image_bytes(row), trained.names[number]
            more = {"group": "g", "width": 28, "height": 28, "split": "test", "camera": int(cameras[number])}
            writer.add(image, name, path=f"{row}.png", **more)
    file = write_embeddings(trained, tmp_path / "cameras.parquet", camera=cameras.tolist())
    pattern = write_embeddings(
        trained,
        tmp_path / "pattern.parquet",
        path=[f"a/{i:05d}_c{camera}s1.png" for i, camera in enumerate(cameras)],
    )
    for sources in (
        [f"checkpoint={trained.checkpoint}", f"data.path={catalog}"],
        [f"checkpoint={trained.checkpoint}", f"query={catalog}"],
        [f"embeddings={file}"],
        [f"embeddings={pattern}", r"protocol.camera_pattern='_c(\d+)'"],
    ):
        found = evaluated(*sources, *settings, f"protocol.junk='{trained.names[0]}'")
        assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)
        assert found["intervals"].keys() == expected.intervals.keys()

    assert error_of(f"embeddings={pattern}", *settings).startswith(
        f"embeddings={pattern} says nothing about cameras: give protocol.camera_pattern=..."
    )
    assert error_of(f"checkpoint={trained.checkpoint}", *settings).startswith(
        f"data.path={trained.catalog.path} says nothing about cameras"
    )
    assert error_of(f"embeddings={pattern}", *settings, r"protocol.camera_pattern='_d(\d+)'").startswith(
        r"protocol.camera_pattern=_d(\d+) finds no camera in a/00000_c"
    )
    some = write_embeddings(trained, tmp_path / "some.parquet", camera=[None, *cameras[1:].tolist()])
    assert f"1 of {count} images have no camera (the first: images/" in error_of(
        f"embeddings={some}", *settings
    )
    message = error_of(f"embeddings={file}", *settings, "protocol.junk=nope")
    assert message == f"protocol.junk=nope is no class of embeddings={file}: leave it out"


def test_reid_of_rankings_that_were_made_anew(trained: Trained, tmp_path: Path) -> None:
    cameras = np.random.default_rng(0).integers(0, 3, len(trained.rows))
    embeddings, labels = trained.embeddings, trained.labels
    file = write_embeddings(trained, tmp_path / "cameras.parquet", camera=cameras.tolist())
    settings = [f"embeddings={file}", "protocol=reid", "protocol.average_precision=trapezoid"]
    own = torch.arange(len(labels))
    options: dict[str, Any] = {"average_precision": "trapezoid", "resamples": 1000, "seed": 0}

    found = evaluated(*settings, "protocol.rerank=k_reciprocal", "protocol.reciprocal_lambda=0.5")
    neighbors, _ = rerank(embeddings, embeddings, lambda_value=0.5, query_index=own)
    expected = reid_metrics_of_rankings(neighbors, labels, cameras, labels, cameras, **options)
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)
    assert found["intervals"]["cmc_at_1"] == pytest.approx(expected.intervals["cmc_at_1"], abs=1e-9)

    found = evaluated(*settings, "protocol.rerank=query_expansion", "protocol.expansion_neighbors=2")
    expanded = expand_queries(embeddings, embeddings, neighbors=2, query_index=own)
    expected = evaluate_reid(expanded, labels, cameras, embeddings, labels, cameras, **options)
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)


def test_a_list_of_pairs_is_verified(trained: Trained, tmp_path: Path) -> None:
    folder = write_images(trained, tmp_path / "images", trained.rows.tolist())
    random = np.random.default_rng(0)
    first, second = random.integers(0, len(trained.rows), (2, 300))
    second[::2] = [random.choice(np.flatnonzero(trained.labels == trained.labels[row])) for row in first[::2]]
    same = trained.labels[first] == trained.labels[second]
    names = [f"class {label:03d}/{row}.png" for label, row in zip(trained.labels, trained.rows, strict=True)]
    listed = zip(first, second, same, strict=True)
    lines = [f"{names[a]},{names[b]},{int(c)},{number % 3}" for number, (a, b, c) in enumerate(listed)]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(["path_1,path_2,same,fold", *lines]))
    found = evaluated(
        *(f"checkpoint={trained.checkpoint}", f"query={folder}", "protocol=verification"),
        *(f"protocol.pairs={pairs}", "protocol.fars=[0.1]"),
    )
    distances = (trained.embeddings[first].double() - trained.embeddings[second].double()).norm(dim=1)
    expected = verify_pairs(distances, torch.from_numpy(same), fars=(0.1,), folds=torch.arange(300) % 3)
    assert found["metrics"] == pytest.approx(expected.to_dict(), abs=1e-9)
    assert found["metrics"]["num_positive_pairs"] == same.sum()


def test_several_checkpoints_stand_side_by_side(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "result.json"
    all_steps = sorted(map(str, Path(trained.checkpoint).parent.iterdir()))
    assert len(all_steps) > 1
    found = evaluated(f"checkpoint=[{','.join(all_steps)}]", f"out={out}", "protocol.ks=[1]")
    assert [each["checkpoint"] for each in found["evaluations"]] == all_steps
    assert len({each["metrics"]["map_at_r"] for each in found["evaluations"]}) == len(all_steps)
    for each in found["evaluations"]:
        alone = evaluated(f"checkpoint={each['checkpoint']}", "protocol.ks=[1]")
        assert {**each, "seconds": 0} == {**alone, "seconds": 0}
    capsys.readouterr()
    evaluated(f"checkpoint=[{','.join(all_steps)}]", "protocol.ks=[1]")
    assert json.loads(out.read_text()) == found
    assert [file.name for file in out.parent.iterdir()] == ["result.json"]
    table = capsys.readouterr().err.splitlines()
    line = next(line for line in table if line.startswith("recall_at_1 "))
    for each in found["evaluations"]:
        assert f"{each['metrics']['recall_at_1']:.4f} [" in line
        assert f"step {each['step']}" in table[0]


def test_one_checkpoint_is_shown_with_its_intervals(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(f"checkpoint={trained.checkpoint}")
    low, high = found["intervals"]["map_at_r"]
    table = capsys.readouterr().err
    assert f"{found['metrics']['map_at_r']:.4f} [{low:.4f}, {high:.4f}]" in table
    assert f"num_queries {len(trained.rows)}" in " ".join(table.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            "checkpoint=null and there are no embeddings: give checkpoint=FOLDER, embeddings=FILE, or query=FILE.par",
        ),
        (["checkpoint=[]"], "checkpoint=[] names none: give the folder of a run or of a checkpoint"),
        (["checkpoint=a", "gallery=b"], "gallery=b but query=null: give what is searched as query=..."),
        (
            ["checkpoint=a", "gallery_split=b"],
            "gallery_split=b but gallery=null: name the catalog as gallery=FILE",
        ),
        (
            ["embeddings=a", "checkpoint=[b,c]"],
            "embeddings=a is evaluated as it is: leave checkpoint=[b,c] out",
        ),
        (["embeddings=a", "query=b"], "embeddings=a is evaluated as it is: leave query=b out"),
        (["embeddings=a", "data.split=b"], "embeddings=a is evaluated as it is: leave data.split=b out"),
        (
            ["checkpoint=a", "data.path=b", "query=c"],
            "data.path=b and query=c are two sets of images: leave one of them out",
        ),
        (
            ["checkpoint=a", "data.split=b", "query=c"],
            "data.split=b and query=c are two sets of images: leave one of them out (query_split=... names a split)",
        ),
        (
            ["checkpoint=a", "query=b", "gallery=c", "protocol=clustering"],
            "gallery=c is of no use to protocol=clustering, which takes one set: leave gallery out",
        ),
        (["checkpoint=a", "batch_size=0"], "batch_size=0 is too small: set it to 1 or more"),
        (
            ["checkpoint=a", "protocol.ks=[0]"],
            "protocol: ks=[0] is wrong: give one or more numbers, each at least 1",
        ),
        (
            ["checkpoint=a", "protocol.reciprocal_k2=30"],
            "protocol: reciprocal_k2=30 is wrong: it must be from 1 to ",
        ),
        (
            ["checkpoint=a", "protocol.resamples=-1"],
            "protocol: resamples=-1 is too small: set it to 0 or more",
        ),
        (
            ["checkpoint=a", "protocol=verification", "protocol.fars=[0.1,0.1]"],
            "protocol: fars=[0.1, 0.1] is wrong: give different rates between 0 and 1",
        ),
        (
            ["checkpoint=a", "protocol=identification", "protocol.strangers=1.0"],
            "protocol: strangers=1.0 is wrong: give a fraction between 0 and 1",
        ),
        (
            ["checkpoint=a", "protocol=episodes", "protocol.ways=1"],
            "protocol: ways=1 is too small: set it to 2 or more",
        ),
        (
            ["checkpoint=a", "protocol=reid", r"protocol.camera_pattern='c\d'"],
            r"protocol: camera_pattern=c\d has 0 groups: put the camera's number, and only that, in parentheses",
        ),
        (
            ["checkpoint=a", "protocol=reid", "protocol.camera_pattern='('"],
            "protocol: camera_pattern=( is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            ["checkpoint=a", "protocol=nope"],
            "protocol=nope does not exist: choose one of clustering, episodes, ",
        ),
        (["checkpoint=a", "ks=[1]"], "ks is not a setting: did you mean protocol.ks?"),
    ],
)
def test_what_contradicts_itself_is_told_before_anything_is_read(overrides: list[str], message: str) -> None:
    assert error_of(*overrides).startswith(message)


def test_sources_that_are_not_what_they_are_named_for(trained: Trained, tmp_path: Path) -> None:
    folder = write_images(trained, tmp_path / "images", trained.rows[:8].tolist())
    file = write_embeddings(trained, tmp_path / "e.parquet")
    model, catalog = f"checkpoint={trained.checkpoint}", trained.catalog.path
    for overrides, message in (
        ([model, f"query={file}"], f"query={file} holds embeddings already: leave checkpoint out"),
        (
            [f"query={folder}"],
            f"query={folder} holds images, not embeddings: give what embeds them as checkpoint=...",
        ),
        (
            [model, f"query={folder}", f"gallery={file}"],
            f"gallery={file} holds embeddings and query={folder} images: embed the latter with jobs/embed.py",
        ),
        (
            [model, f"data.path={file}"],
            f"data.path={file} holds embeddings: give it as embeddings={file}, without",
        ),
        (
            [model, f"data.path={folder}"],
            f"data.path={folder} is no catalog: give images of other kinds as query=",
        ),
        (
            [model, f"query={folder}", "query_split=test"],
            f"query_split=test but query={folder} is no catalog: leave ",
        ),
        (
            [f"query={file}", "query_split=test"],
            f"query_split=test but query={file} is no catalog: leave query_split",
        ),
        (
            [model, f"query={catalog}", "query_split=x"],
            f"query: {catalog}: no split is called 'x'; choose one of ",
        ),
        ([model, f"query={tmp_path}/nope"], f"query: {tmp_path}/nope: does not exist"),
        ([f"query={tmp_path}/nope.parquet"], f"query={tmp_path}/nope.parquet does not exist"),
        ([f"embeddings={catalog}"], f"embeddings={catalog} lacks the column "),
        (
            ["checkpoint=/nope"],
            "checkpoint=/nope does not exist: give the folder of a checkpoint or of a run",
        ),
        (
            [f"query={file}", f"gallery={file}"],
            f"gallery={file} is the query as well: leave gallery out, so that no ",
        ),
        (
            [model, "protocol=verification", "protocol.pairs=/nope.csv"],
            "protocol.pairs=/nope.csv cannot be read: ",
        ),
    ):
        assert error_of(*overrides).startswith(message)


def test_sets_that_do_not_go_together(trained: Trained, tmp_path: Path) -> None:
    model = f"checkpoint={trained.checkpoint}"
    query = write_images(trained, tmp_path / "query", trained.rows[:4].tolist())
    gallery = write_images(trained, tmp_path / "gallery", trained.rows[-4:].tolist())
    message = error_of(model, f"query={query}", f"gallery={gallery}")
    assert message.startswith(
        f"query={query} and gallery={gallery} have no class in common: classes are matched by "
    )
    assert f"class {trained.labels[0]:03d}" in message

    (query / "loose.png").write_bytes(trained.catalog.image_bytes(0))
    message = error_of(model, f"query={query}")
    assert message.startswith(
        f"query={query}: 1 of 5 images have no class (the first: loose.png): put each into a "
    )

    empty = tmp_path / "empty" / "class"
    empty.mkdir(parents=True)
    (empty / "broken.png").write_bytes(b"")
    message = error_of(model, f"query={empty.parent}")
    assert message == f"query={empty.parent}: none of its 1 images can be read"

    first = write_embeddings(trained, tmp_path / "a.parquet")
    table = pq.read_table(first)
    pq.write_table(table.replace_schema_metadata({"checkpoint": "run/a", "step": "3"}), first)
    second = tmp_path / "b.parquet"
    pq.write_table(table.replace_schema_metadata({"checkpoint": "run/b", "step": "4"}), second)
    assert evaluated(f"query={first}")["embedded_by"] == {"checkpoint": "run/a", "step": "3"}
    message = error_of(f"query={first}", f"gallery={second}")
    assert message.startswith(
        f"query={first} is of checkpoint run/a (step 3) and gallery={second} of run/b (step 4): "
    )
    short = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(len(table) * 3)), 3)
    place = table.column_names.index("embedding")
    pq.write_table(table.set_column(place, "embedding", short), second)
    message = error_of(f"query={first}", f"gallery={second}")
    assert message.startswith(
        f"query={first} has embeddings of 16 numbers and gallery={second} of 3: embed both with "
    )


def test_groups_that_are_not_known_are_missed(trained: Trained, tmp_path: Path) -> None:
    settings = ["protocol=episodes", "protocol.within_groups=true"]
    file = write_embeddings(trained, tmp_path / "e.parquet")
    message = error_of(f"embeddings={file}", *settings)
    assert message == f"embeddings={file} says nothing about groups: give protocol.within_groups=false"
    groups = [None, *("g" for _ in trained.rows[1:])]
    file = write_embeddings(trained, tmp_path / "groups.parquet", group=groups)
    assert "1 of" in error_of(f"embeddings={file}", *settings)
    assert "have no group (the first: images/" in error_of(f"embeddings={file}", *settings)


def test_a_result_that_cannot_be_written_is_told_before_the_work(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"^out=.*/file/x\.json cannot be written: "):
        evaluated("checkpoint=/nope", f"out={tmp_path}/file/x.json")
    with pytest.raises(InputError, match=r"^out=.* is a folder: name a file in it$"):
        evaluated("checkpoint=/nope", f"out={tmp_path}")


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_a_division_leaves_out_whole_classes_and_enrolls_some_images_of_the_others(shots: int) -> None:
    labels = np.repeat(np.arange(10) * 7, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])[
        np.random.default_rng(1).permutation(55)
    ]
    enrolled, probes = divide(labels, shots, 0.3, seed=2)
    assert sorted([*enrolled, *probes]) == list(range(55))
    known, sizes = np.unique(labels[enrolled], return_counts=True)
    assert len(known) == 7
    assert sizes.tolist() == [min(shots, int((labels == label).sum())) for label in known]
    again = divide(labels, shots, 0.3, seed=2)
    assert np.array_equal(enrolled, again[0])
    others = [divide(labels, shots, 0.3, seed)[0].tolist() for seed in range(5)]
    assert len({tuple(other) for other in others}) > 1


def test_a_division_has_strangers_and_acquaintances_however_few_classes_there_are() -> None:
    for strangers in (0.01, 0.99):
        enrolled, probes = divide(np.array([4, 4, 9, 9]), 1, strangers, seed=0)
        assert (len(enrolled), len(probes)) == (1, 3)
    with pytest.raises(InputError, match="needs strangers, but there are images of 1 class only"):
        divide(np.array([4, 4]), 1, 0.5, seed=0)
