"""conf/ and the dataclasses say the same: every choice composes, with the same keys and the same defaults."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distmetric.config.compose import CONF_DIR, compose, groups, groups_of
from distmetric.config.decode import decode, leaves
from distmetric.config.jobs import (
    BenchmarkJob,
    EmbedJob,
    EvaluateJob,
    ExportJob,
    IngestJob,
    MineJob,
    ReportJob,
    SearchJob,
    StudyJob,
    TuneJob,
)
from distmetric.config.schema import Config
from distmetric.config.validate import validate

SECTIONS = {name: groups()[name] for name in groups_of("config") if name not in ("experiment", "debug")}
REQUIRED = {
    "data=catalog": ["data.path=x"],
    "model=custom": ["model.target=torch.nn.Flatten"],
    "loss=custom": ["loss.target=pytorch_metric_learning.losses.SupConLoss"],
    **{
        f"experiment={name}": ["data.path=x"]
        for name in (
            *("omniglot", "omniglot_best", "cub200", "cars196", "sop", "inshop", "market1501"),
            *("market1501_attributes", "webface"),
        )
    },
    "protocol=lfw": ["protocol.pairs=x"],
}
JOBS: dict[str, tuple[type[Any], list[str]]] = {
    "ingest": (IngestJob, ["source=x", "out=y"]),
    "evaluate": (EvaluateJob, ["checkpoint=x"]),
    "embed": (EmbedJob, ["checkpoint=x", "source=y", "out=z"]),
    "benchmark": (BenchmarkJob, []),
    "export": (ExportJob, ["checkpoint=x", "out=y"]),
    "mine": (MineJob, ["embeddings=x", "out=y"]),
    "report": (ReportJob, ["runs=[x]"]),
    "search": (SearchJob, ["gallery=x", "queries=y", "out=z"]),
    "study": (StudyJob, []),
    "tune": (TuneJob, ["space={optim.lr: [0.1]}"]),
}
# Where a choice deliberately differs from the defaults of its dataclass.
DIFFERENT: dict[str, set[str]] = {
    "augment=affine": {
        f"augment.{k}" for k in ("rotation", "translate", "scale_min", "scale_max", "shear", "fill")
    },
    "augment=photo": {
        *(
            f"augment.{k}"
            for k in ("crop_area", "flip", "erase", "brightness", "contrast", "saturation", "fill")
        )
    },
    "loss=triplet_hard_margin": {"loss.margin"},
    "loss=lifted_structure": {"model.normalize"},
    "loss=generalized_lifted_structure": {"model.normalize"},
    "loss=n_pairs": {"model.normalize"},
    "loss=hard_triple": {"loss.assignment"},
    "loss=weighted_sum": {"loss.parts.contrastive.weight"},
    "loss=attribute_identity_hard": {"loss.attributes", "loss.side"},
    "loss=attribute_classification": {"model.attributes", "model.attributes_detached"},
    "loss=aitl": {
        *("model.attributes", "loss.parts.irrelevant.loss.attributes", "loss.parts.relevant.loss.attributes"),
        *(f"loss.parts.{part}.weight" for part in ("triplet", "irrelevant", "relevant")),
        *("loss.parts.triplet.loss.margin", "loss.parts.triplet.loss.distance"),
    },
    "loss=aitl_identity": {
        *("model.attributes", "loss.parts.triplet.loss.margin", "loss.parts.triplet.loss.distance"),
        *(f"loss.parts.{part}.weight" for part in ("triplet", "relevant")),
    },
    "protocol=sop": {"protocol.ks"},
    "protocol=inshop": {"protocol.ks"},
    "protocol=market1501": {"protocol.average_precision", "protocol.junk"},
    "protocol=lfw": {"protocol.fars"},
    "schedule=constant": {"schedule.name"},
    "schedule=step": {"schedule.name"},
    "schedule=exponential": {"schedule.name", "schedule.final_fraction"},
    "trainer=gpu": {f"trainer.{k}" for k in ("num_workers", "use_gpu", "cpus_per_worker")},
    "trainer=cluster": {
        *(f"trainer.{k}" for k in ("num_workers", "use_gpu", "cpus_per_worker", "max_failures")),
        *("trainer.address", "trainer.start_timeout_s"),
    },
}
# Protocols as published for a data set, and which of ours they are.
PUBLISHED = {"sop": "retrieval", "inshop": "retrieval", "market1501": "reid", "lfw": "verification"}
# One choice of every group at a time: composing is slow, and choices are looked at one by one anyway.
ROUNDS = [
    [f"{name}={choices[number % len(choices)]}" for name, choices in SECTIONS.items()]
    for number in range(max(map(len, SECTIONS.values())))
]
PRESETS = [f"{name}={choice}" for name in ("experiment", "debug") for choice in groups()[name]]


def choices_of(job: str) -> list[str]:
    """The choices of the groups that only other jobs than training have."""
    own = [name for name in groups_of(job) if name not in groups_of("config")]
    return [f"{name}={choice}" for name in own for choice in groups()[name]]


@cache
def composed(*choices: str) -> dict[str, Any]:
    required = [text for choice in choices for text in REQUIRED.get(choice, [])]
    return compose("config", [*choices, *required])


@pytest.fixture(autouse=True)
def _no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTMETRIC_CACHE", raising=False)


@pytest.mark.parametrize("choices", [*ROUNDS, *([preset] for preset in PRESETS)], ids=" ".join)
def test_every_choice_has_exactly_the_fields_of_its_dataclass(choices: list[str]) -> None:
    values = composed(*choices)
    config = decode(Config, values)
    assert leaves(asdict(config)).keys() == leaves(values).keys()
    for choice in choices:
        name, _, wanted = choice.partition("=")
        if name in ("data", "index", "miner", "model", "optim", "sampler", "schedule", "tracking"):
            assert values[name]["name"] == wanted


@pytest.mark.parametrize(
    "name", [*sorted(JOBS), *(f"{job} {choice}" for job in JOBS for choice in choices_of(job))]
)
def test_every_job_has_exactly_the_fields_of_its_dataclass(name: str) -> None:
    name, _, choice = name.partition(" ")
    schema, required = JOBS[name]
    required = [*required, *REQUIRED.get(choice, [])]
    values = compose(name, [*required, choice] if choice else required)
    job = decode(schema, values)
    assert leaves(asdict(job)).keys() == leaves(values).keys()
    given = {text.partition("=")[0] for text in required}
    assert other_defaults(job) - given == DIFFERENT.get(choice, set())
    if choice:
        group, _, wanted = choice.partition("=")
        assert values[group]["name"] == getattr(job, group).name == PUBLISHED.get(wanted, wanted)


def other_defaults(value: Any, prefix: str = "") -> set[str]:
    """Keys of the fields of a dataclass, and of those in it, that do not have their default."""
    different = set()
    for entry in fields(value):
        inner, key = getattr(value, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(inner):
            different |= other_defaults(inner, f"{key}.")
        elif isinstance(inner, dict) and any(map(is_dataclass, inner.values())):
            different |= set().union(
                *(other_defaults(each, f"{key}.{name}.") for name, each in inner.items())
            )
        elif (default := default_of(entry)) is not MISSING and default != inner:
            different.add(key)
    return different


def default_of(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


@pytest.mark.parametrize("choices", ROUNDS, ids=" ".join)
def test_defaults_in_conf_are_those_of_the_dataclasses(choices: list[str]) -> None:
    expected = set().union(*(DIFFERENT.get(choice, set()) for choice in choices))
    config = decode(Config, composed(*choices))
    if {"data=glyphs", "data=moving_glyphs"} & set(choices) and config.model.image_size != 28:
        expected.add("data.size")  # glyphs are drawn as large as the model takes them
    assert other_defaults(config) == expected


def test_the_default_run_is_possible_and_so_are_the_presets() -> None:
    for choices in ([], *([preset] for preset in PRESETS)):
        validate(decode(Config, composed(*choices)))


@pytest.mark.parametrize("trainer", SECTIONS["trainer"])
def test_the_default_batch_can_be_divided_among_the_workers_of_every_trainer(trainer: str) -> None:
    config = next(decode(Config, composed(*c)) for c in ROUNDS if f"trainer={trainer}" in c)
    assert (
        config.sampler.classes_per_batch * config.sampler.samples_per_class % config.trainer.num_workers == 0
    )


def test_glyphs_follow_the_model_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTMETRIC_CACHE", "/tmp/glyphs")
    config = decode(Config, compose("config", ["model.image_size=40"]))
    assert config.data.name == "glyphs"
    assert (config.data.size, config.data.cache_dir) == (40, "/tmp/glyphs")


def test_every_file_at_the_top_belongs_to_a_job() -> None:
    jobs = {path.stem for path in (Path(__file__).parents[2] / "jobs").glob("*.py")}
    assert {path.stem for path in CONF_DIR.glob("*.yaml")} == {"config", *JOBS}
    assert jobs == {"train", *JOBS}


@pytest.mark.parametrize("file", ["config", *JOBS])
def test_the_table_of_contents_names_every_choice(file: str) -> None:
    text = re.sub(r"\n +#", "", (CONF_DIR / f"{file}.yaml").read_text())  # a list may go on below
    lines = {line.split()[1].rstrip(":"): line for line in text.splitlines() if line.startswith("  - ")}
    lines.pop("_self_", None)
    assert sorted(lines) == groups_of(file)
    for name in lines.keys() - {"experiment", "debug"}:
        assert [
            choice for choice in groups()[name] if choice not in lines[name].partition("#")[2].split()
        ] == []


def test_every_group_belongs_to_a_file_at_the_top() -> None:
    assert {name for file in ("config", *JOBS) for name in groups_of(file)} == groups().keys()
