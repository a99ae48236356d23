"""Any checkpoint or file of embeddings, on any images, by any protocol."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distmetric.config.jobs import EvaluateJob
from distmetric.config.jobs.evaluate import (
    EpisodesProtocolConfig,
    ProtocolConfig,
    ReidProtocolConfig,
    VerificationProtocolConfig,
)
from distmetric.data.catalog import Catalog
from distmetric.errors import InputError, ResourceError
from distmetric.inference.device import best_device
from distmetric.inference.embedder import CheckpointEmbedder
from distmetric.inference.evaluation_sets import (
    EvaluationSet,
    check_one_model,
    holds_embeddings,
    set_of_file,
    set_of_images,
)
from distmetric.inference.evaluation_table import evaluation_table
from distmetric.inference.images import BadImages, is_catalog
from distmetric.inference.protocols import Material, Measured, measure
from distmetric.inference.verification_pairs import PairList, read_pairs
from distmetric.locations import absolute, open_location, put_in_place
from distmetric.secrets import masked
from distmetric.training.run_data import open_data


def run_evaluation(job: EvaluateJob) -> dict[str, Any]:
    """Evaluate what the job names, and show it as a table on standard error.

    Returns:
        What was evaluated (checkpoint, step; data, fingerprint and split, or query and gallery, or embeddings, of which
        `embedded_by` says the checkpoint where the file does), protocol, settings, images, metrics, intervals,
        bad_images, seconds; of a list of checkpoints all of them as `evaluations`.

    Raises:
        InputError: If what is named is not there, or cannot answer the protocol.
        ResourceError: If `out` cannot be written.
    """
    started = time.monotonic()
    _check_kinds(job)
    if job.out is not None:
        _check_out(job.out)
    protocol = job.protocol
    pairs = None
    if isinstance(protocol, VerificationProtocolConfig) and protocol.pairs is not None:
        pairs = read_pairs(protocol.pairs)
    locations = job.checkpoint if isinstance(job.checkpoint, list) else [job.checkpoint]
    evaluations = [_evaluation(job, location, pairs) for location in locations]
    print(evaluation_table(evaluations), file=sys.stderr)
    result = evaluations[0]
    if isinstance(job.checkpoint, list):
        result = {"evaluations": evaluations, "seconds": time.monotonic() - started}
    if job.out is not None:
        _write(job.out, result)
    return result


def _evaluation(job: EvaluateJob, location: str | None, pairs: PairList | None) -> dict[str, Any]:
    started = time.monotonic()
    embedder = (
        None
        if location is None
        else CheckpointEmbedder(location, allow_custom_targets=job.allow_custom_targets)
    )
    bad: BadImages = []
    described: dict[str, Any] = {}
    if embedder is not None:
        described = {"checkpoint": embedder.checkpoint.location, "step": embedder.checkpoint.step}
    query, gallery = _sets(job, embedder, bad, described)
    if query.model:
        described["embedded_by"] = query.model
    device = best_device()
    found = _measured(job.protocol, Material(query, gallery, pairs, job.seed, device))
    settings = asdict(job.protocol)
    return {
        **described,
        "protocol": settings.pop("name"),
        "settings": {**settings, "seed": job.seed},
        "images": len(query) + (0 if gallery is None else len(gallery)),
        "metrics": found.metrics,
        "intervals": {name: list(ends) for name, ends in found.intervals.items()},
        "bad_images": [{"path": path, "reason": reason} for path, reason in bad],
        "seconds": time.monotonic() - started,
    }


def _measured(protocol: ProtocolConfig, material: Material) -> Measured:
    """Measure; what is wrong with the material is said with its name."""
    names = [each.name for each in (material.query, material.gallery) if each is not None]
    try:
        return measure(protocol, material)
    except InputError as error:
        if "protocol" in str(error) or any(name in str(error) for name in names):
            raise
        raise InputError(f"{' and '.join(names)}: {error}") from None


def _sets(
    job: EvaluateJob, embedder: CheckpointEmbedder | None, bad: BadImages, described: dict[str, Any]
) -> tuple[EvaluationSet, EvaluationSet | None]:
    """Queries and gallery, and into `described` what they are."""
    if job.embeddings is not None:
        described["embeddings"] = absolute(job.embeddings)
        return set_of_file(job.embeddings, "embeddings"), None
    if job.query is None:
        assert embedder is not None, "EvaluateJob has checked that there is a checkpoint"
        return _run_data(job, embedder, bad, described), None

    def side(key: str) -> EvaluationSet | None:
        source, split = getattr(job, key), getattr(job, f"{key}_split")
        if source is None:
            return None
        described[key] = absolute(source)
        if split is not None:
            described[f"{key}_split"] = split
        if embedder is None:
            return set_of_file(source, key)
        return set_of_images(embedder, source, key, split, job.batch_size, bad, _needs(job.protocol))

    query, gallery = side("query"), side("gallery")
    assert query is not None
    if gallery is not None:
        check_one_model(query, gallery)
    return query, gallery


def _run_data(
    job: EvaluateJob, embedder: CheckpointEmbedder, bad: BadImages, described: dict[str, Any]
) -> EvaluationSet:
    """A catalog, by default that of the checkpoint's run."""
    trained = embedder.config.data
    catalog = open_data(trained) if job.data.path is None else Catalog.open(Path(job.data.path).expanduser())
    split = job.data.split or trained.test_split
    described |= {"data": str(catalog.path), "fingerprint": catalog.fingerprint, "split": split}
    source, needs = str(catalog.path), _needs(job.protocol)
    return set_of_images(embedder, source, "data.path", split, job.batch_size, bad, needs)


def _needs(protocol: ProtocolConfig) -> list[str]:
    """What has to be known about images beside their class."""
    if isinstance(protocol, ReidProtocolConfig) and protocol.camera_pattern is None:
        return ["camera"]
    return ["group"] if isinstance(protocol, EpisodesProtocolConfig) and protocol.within_groups else []


def _check_kinds(job: EvaluateJob) -> None:
    """See whether the sources can be what their keys say, before anything is computed.

    Raises:
        InputError: Naming key, value and what to do.
    """
    path = job.data.path
    if path is not None and holds_embeddings(path):
        raise InputError(
            f"data.path={path} holds embeddings: give it as embeddings={path}, without checkpoint"
        )
    if path is not None and Path(path).expanduser().exists() and not is_catalog(path):
        raise InputError(f"data.path={path} is no catalog: give images of other kinds as query={path}")
    given = {key: getattr(job, key) for key in ("query", "gallery") if getattr(job, key) is not None}
    embedded = {key: holds_embeddings(source) for key, source in given.items()}
    if len(set(embedded.values())) == 2:
        images, vectors = sorted(given, key=lambda key: embedded[key])
        raise InputError(
            f"{vectors}={given[vectors]} holds embeddings and {images}={given[images]} images: embed the latter with "
            "jobs/embed.py, or give images for both"
        )
    for key, source in given.items():
        split = getattr(job, f"{key}_split")
        if embedded[key] and job.checkpoint is not None:
            raise InputError(f"{key}={source} holds embeddings already: leave checkpoint out")
        if not embedded[key] and job.checkpoint is None:
            raise InputError(
                f"{key}={source} holds images, not embeddings: give what embeds them as checkpoint=..."
            )
        if split is not None and not (is_catalog(source) and not embedded[key]):
            raise InputError(f"{key}_split={split} but {key}={source} is no catalog: leave {key}_split out")
    _check_two_sets(job)


def _check_two_sets(job: EvaluateJob) -> None:
    if job.query is None or job.gallery is None or absolute(job.query) != absolute(job.gallery):
        return
    splits = {job.query_split, job.gallery_split}
    if len(splits) == 1:
        raise InputError(
            f"gallery={job.gallery} is the query as well: leave gallery out, so that no image finds itself"
        )
    if None in splits:
        key = "query_split" if job.query_split is None else "gallery_split"
        raise InputError(
            f"{key}=null but query and gallery are one catalog, {job.query}: name its split, so that no image finds "
            "itself"
        )


def _check_out(out: str) -> None:
    """See whether the result can be written, before it is made."""
    path = Path(out).expanduser().absolute()
    if path.is_dir():
        raise InputError(f"out={out} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"out={out} cannot be written: {error.strerror}") from None


def _write(out: str, result: dict[str, Any]) -> None:
    filesystem, path = open_location(out)
    try:
        with put_in_place(filesystem, path) as target:
            Path(target).write_text(json.dumps(masked(result), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"out={out} cannot be written: {error.strerror}") from None
