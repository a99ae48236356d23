"""The offline job: audit a file of embeddings, write what was found as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distmetric.errors import InputError, ResourceError
from distmetric.index.audit import Audit, audit
from distmetric.index.embedding_file import EmbeddingFile, read_embedding_file
from distmetric.index.pruned_search import ClassBallIndex, Metric
from distmetric.locations import absolute, open_location, put_in_place
from distmetric.progress import Progress

ROWS_PER_WRITE = 1 << 16


def mine(
    embeddings: str,
    out: str,
    *,
    metric: Metric = "l2",
    k: int = 10,
    pairs: int | None = None,
    label_neighbors: int = 3,
    duplicate_fraction: float = 0.1,
    sub_centers: int = 4,
    fall_back_above: float = 0.1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> dict[str, Any]:
    """Write hardest pairs, suspected label errors and near-duplicates of a file of embeddings as Parquet tables.

    `audit` defines what these are; all tables are sorted, the worst first.

    - hardest_pairs.parquet: id, path, label_name, rank, negative_id, negative_path, negative_label_name, distance, and
      the row's hardest positive: positive_id, positive_path, positive_distance, empty for the only row of a class.
    - suspected_label_errors.parquet: id, path, label_name, suggested_label_name, score, own_distance, distance,
      neighbor_ids.
    - near_duplicates.parquet: id, path, label_name, other_id, other_path, other_label_name, distance, ratio, exact.

    Args:
        embeddings: File as `jobs/embed.py` writes it.
        out: Folder for the tables.
        metric: "l2" or "cosine"; distances are in it.
        k: Nearest negatives of every row.
        pairs: Hardest pairs to list, of all rows together; None for all k of every row.
        label_neighbors: See `audit`.
        duplicate_fraction: See `audit`.
        sub_centers: See `ClassBallIndex.build`.
        fall_back_above: See `ClassBallIndex.build`.
        device: Where to compute.

    Returns:
        out, rows, classes, dim, metric, tables (path and rows of each), exact_duplicates, scanned_fraction (distances
        computed, as a share of all), fell_back (whether brute force took over), seconds.

    Raises:
        InputError: If the file cannot be used, has one class only, or all its embeddings are equal.
        ResourceError: If a table cannot be written, or there is no GPU and one was asked for.

    Cost: N N D in the worst case; memory about five copies of the embeddings, and a few times N max(k, m).
    """
    started = time.monotonic()
    place = _device(device)
    file = read_embedding_file(embeddings)
    if len(file.label_names) == 1:
        raise InputError(
            f"embeddings={embeddings} has one class only, {file.label_names[0]}: no negatives to mine"
        )
    if bool((file.embeddings == file.embeddings[0]).all()):
        raise InputError(
            f"embeddings={embeddings}: all embeddings are equal; the model that made them has collapsed"
        )
    labels = torch.from_numpy(file.labels).to(place)
    index = ClassBallIndex.build(
        file.embeddings.to(place),
        labels,
        metric=metric,
        sub_centers=sub_centers,
        fall_back_above=fall_back_above,
    )
    progress = Progress("rows mined, three times each", 3 * len(index))
    found = audit(
        index,
        k=k,
        top=pairs,
        label_neighbors=label_neighbors,
        duplicate_fraction=duplicate_fraction,
        done=progress.update,
    )
    progress.close()
    folder = absolute(out)
    return {
        "out": folder,
        "rows": len(index),
        "classes": len(file.label_names),
        "dim": file.embeddings.shape[1],
        "metric": metric,
        "tables": {
            "hardest_pairs": _write_pairs(folder, file, found),
            "suspected_label_errors": _write_errors(folder, file, found),
            "near_duplicates": _write_duplicates(folder, file, found),
        },
        "exact_duplicates": int((found.duplicates.distances == 0).sum()),
        "scanned_fraction": found.effort.fraction,
        "fell_back": found.effort.fell_back,
        "seconds": time.monotonic() - started,
    }


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device=cuda: torch sees no GPU here; set device=auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _write_pairs(folder: str, file: EmbeddingFile, found: Audit) -> dict[str, Any]:
    pairs = found.pairs

    def columns(part: slice) -> dict[str, Any]:
        rows = pairs.rows[part]
        positives = found.positives[rows]
        alone = (positives < 0).cpu().numpy()
        other = _described(file, positives.clamp_min(0), "positive_", alone)
        return {
            **_described(file, rows),
            "rank": _array(pairs.ranks[part]),
            **_described(file, pairs.negatives[part], "negative_"),
            "distance": _array(pairs.distances[part]),
            "positive_id": other["positive_id"],
            "positive_path": other["positive_path"],
            "positive_distance": _array(found.positive_distances[rows], alone),
        }

    return _write(f"{folder}/hardest_pairs.parquet", len(pairs.rows), columns)


def _write_errors(folder: str, file: EmbeddingFile, found: Audit) -> dict[str, Any]:
    errors = found.errors

    def columns(part: slice) -> dict[str, Any]:
        neighbors = errors.neighbors[part].cpu().numpy()
        ids = pa.array(file.ids[neighbors].reshape(-1), pa.int64())
        return {
            **_described(file, errors.rows[part]),
            "suggested_label_name": _named(file, errors.labels[part].cpu().numpy()),
            "score": _array(errors.scores[part]),
            "own_distance": _array(errors.own_distances[part]),
            "distance": _array(errors.distances[part]),
            "neighbor_ids": pa.FixedSizeListArray.from_arrays(ids, neighbors.shape[1]),
        }

    return _write(f"{folder}/suspected_label_errors.parquet", len(errors.rows), columns)


def _write_duplicates(folder: str, file: EmbeddingFile, found: Audit) -> dict[str, Any]:
    pairs = found.duplicates

    def columns(part: slice) -> dict[str, Any]:
        return {
            **_described(file, pairs.rows[part]),
            **_described(file, pairs.others[part], "other_"),
            "distance": _array(pairs.distances[part]),
            "ratio": _array(pairs.ratios[part]),
            "exact": _array(pairs.distances[part] == 0),
        }

    return _write(f"{folder}/near_duplicates.parquet", len(pairs.rows), columns)


def _described(file: EmbeddingFile, rows: Tensor, prefix: str = "", missing: Any = None) -> dict[str, Any]:
    """Id, path and class name of rows, in columns of that prefix; empty where missing."""
    at = rows.cpu().numpy()
    taken = pa.array(at, pa.int64(), mask=missing)
    return {
        f"{prefix}id": pa.array(file.ids[at], pa.int64(), mask=missing),
        f"{prefix}path": file.paths.take(taken),
        f"{prefix}label_name": _named(file, file.labels[at]),
    }


def _named(file: EmbeddingFile, labels: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(labels, pa.int64()), pa.array(file.label_names)).cast(
        pa.string()
    )


def _array(values: Tensor, missing: Any = None) -> Any:
    return pa.array(values.cpu().numpy(), mask=missing)


def _write(location: str, size: int, columns: Callable[[slice], Mapping[str, Any]]) -> dict[str, Any]:
    """Write a table a few rows at a time; a local one is moved to its name when it is complete."""
    schema = pa.table(dict(columns(slice(0, 0)))).schema
    filesystem, path = open_location(location)
    try:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with (
            put_in_place(filesystem, path) as target,
            filesystem.open_output_stream(target) as stream,
            pq.ParquetWriter(stream, schema) as writer,
        ):
            for start in range(0, size, ROWS_PER_WRITE):
                part = slice(start, min(start + ROWS_PER_WRITE, size))
                writer.write_table(pa.table(dict(columns(part)), schema=schema))
    except OSError as error:
        raise ResourceError(f"{location} cannot be written: {' '.join(str(error).split())}") from None
    return {"path": location, "rows": size}
