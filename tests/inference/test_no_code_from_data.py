"""Nothing that lies in data is executed: weights, catalogs, tables, zips, models' folders, and what describes them."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.errors import ConfigError, InputError, UserError
from distmetric.index.arrays import read_arrays
from distmetric.index.embedding_file import read_embedding_file
from distmetric.inference.exported import load_exported
from distmetric.models.build import build_embedder
from distmetric.models.spec import TransformersSpec
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.saved_model import load_embedder
from runs import run_once, tiny_config

ROOT = Path(__file__).parents[2]


class Payload:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there only if a payload was executed; which one does when it is unpickled."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "trial"))).close()
    assert (tmp_path / "trial").exists()
    return tmp_path / "executed"


def test_weights_of_a_checkpoint_are_tensors_and_nothing_else(
    glyph_cache: Path, tmp_path: Path, mark: Path
) -> None:
    config = tiny_config(glyph_cache, "train.steps=1", "eval.resamples=10", "model.widths=[4,4,4]")
    _, result, _ = run_once(config, tmp_path / "run")
    folder = Path(result.checkpoint)
    stream = io.BytesIO()
    torch.save({"trunk.weight": Payload(mark)}, stream)
    (folder / "model.pt").write_bytes(stream.getvalue())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt"] = hashlib.sha256(stream.getvalue()).hexdigest()
    manifest.pop("check", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError):
        load_embedder(read_checkpoint(str(folder)))
    assert not mark.exists()


def test_a_catalog_is_read_without_what_its_metadata_would_have_run(tmp_path: Path, mark: Path) -> None:
    pictures = tmp_path / "pictures"
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), 50, np.uint8)).save(pictures / f"{name}.png")
    path = tmp_path / "c.arrow"
    ingest([str(pictures)], str(path), split_by="ratio")
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all().combine_chunks()
    payload = pickle.dumps(Payload(mark), protocol=0)  # which is text, as metadata has to be
    more = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": payload,
        b"pandas": payload,
    }
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), **more})
    schema = schema.set(0, schema.field(0).with_metadata(more))
    with pa.ipc.new_file(str(path), schema) as writer:
        for batch in table.cast(schema).to_batches():
            writer.write_batch(batch)
    with suppress(InputError):  # refused, which is as good
        assert len(Catalog.open(path)) == 4
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_file_of_embeddings_is_read_without_what_its_metadata_would_have_run(
    suffix: str, tmp_path: Path, mark: Path
) -> None:
    payload = pickle.dumps(Payload(mark), protocol=0)  # which is text, as metadata has to be
    field = pa.field(
        "id",
        pa.int64(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payload,
        },
    )
    schema = pa.schema(
        [
            field,
            pa.field("path", pa.string()),
            pa.field("label_name", pa.string()),
            pa.field("embedding", pa.list_(pa.float32(), 2)),
        ],
        metadata={b"pandas": payload},
    )
    columns = [[0, 1], ["a", "b"], ["x", "y"], [[0.0, 1.0], [1.0, 0.0]]]
    table = pa.table(
        [pa.array(each, field.type) for each, field in zip(columns, schema, strict=True)], schema=schema
    )
    path = tmp_path / f"e.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_table(table)
    assert len(read_embedding_file(str(path)).ids) == 2
    assert not mark.exists()


def test_a_zip_gives_pictures_and_runs_nothing(tmp_path: Path, mark: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.full((9, 9), 50, np.uint8)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
            archive.writestr(name, picture.getvalue())
        for name in ("a/__init__.py", "__main__.py", "conftest.py"):
            archive.writestr(name, f"open({str(mark)!r}, 'w')")
        archive.writestr("a/x.pkl", pickle.dumps(Payload(mark)))
    found = ingest([str(tmp_path / "a.zip")], str(tmp_path / "c.arrow"), split_by="ratio")
    assert found.rows == 4
    assert not mark.exists()


def test_arrays_of_an_index_are_no_pickle(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "snapshot.arrow").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(Exception, match=r"."):
        read_arrays(str(tmp_path / "snapshot.arrow"))
    assert not mark.exists()


def test_an_exported_folder_runs_nothing(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "config.json").write_bytes(pickle.dumps(Payload(mark)))
    (tmp_path / "embedder.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(InputError, match="is damaged"):
        load_exported(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("local_code", [False, True])
def test_a_models_folder_runs_neither_its_code_nor_its_pickles(
    local_code: bool, tmp_path: Path, mark: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = tmp_path / "model"
    transformers.ViTModel(transformers.ViTConfig(**small, image_size=16, patch_size=4)).save_pretrained(
        folder
    )
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    if local_code:
        (folder / "modeling_x.py").write_text(f"open({str(mark)!r}, 'w')\nclass X: pass\n")
        config = json.loads((folder / "config.json").read_text())
        code = {
            "AutoConfig": "modeling_x.X",
            "AutoModel": "modeling_x.X",
            "AutoImageProcessor": "modeling_x.X",
        }
        (folder / "config.json").write_text(
            json.dumps({**config, "model_type": "unheard_of", "auto_map": code})
        )
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"auto_map": code, "image_mean": [0.5] * 3})
        )
    with pytest.raises(ConfigError, match=r"^model.model=\S+ cannot be loaded: ") as caught:
        build_embedder(TransformersSpec(model=str(folder), local_files_only=True, image_size=16), 0)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


ALLOWED = {
    # Whose argument is a constant of ours, or a target that was checked (custom_targets.py).
    "import_module": {
        *("distmetric/__init__.py", "distmetric/custom_targets.py", "distmetric/index/search.py"),
        *("distmetric/cluster/private_token.py", "distmetric/benchmarks/losses/cells.py"),
        "distmetric/functional/fused_rows.py",
    },
    "torch.load": {"distmetric/training/checkpoint_folder.py"},
}
FORBIDDEN = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle",
    "cloudpickle",
    "marshal",
    "dill",
    "joblib",
    "shelve",
)


def test_the_package_has_no_other_way_to_run_what_it_reads() -> None:
    """Calls by name: a new one has to be put down here, with what is checked before it."""
    for path in sorted((ROOT / "distmetric").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names) if {each.name.partition(".")[0] for each in names} & set(
                    FORBIDDEN
                ):
                    pytest.fail(f"{name}:{node.lineno} imports {ast.unparse(node)}")
                case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in FORBIDDEN:
                    pytest.fail(f"{name}:{node.lineno} imports {module}")
                case ast.Call(func=ast.Name(id=called)) if called in FORBIDDEN:
                    pytest.fail(f"{name}:{node.lineno} calls {called}")
                case ast.Call(func=ast.Attribute() as called):
                    text = ast.unparse(called)
                    assert text not in ("os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), (
                        name,
                        node.lineno,
                    )
                    if text.endswith("import_module"):
                        assert name in ALLOWED["import_module"], (name, node.lineno)
                    if text == "torch.load":
                        assert name in ALLOWED["torch.load"], (name, node.lineno)
                        assert "weights_only=True" in ast.unparse(node)
                    if text == "np.load":
                        assert "allow_pickle=True" not in ast.unparse(node), (name, node.lineno)
                    if text.startswith("subprocess."):
                        assert "shell=True" not in ast.unparse(node), (name, node.lineno)
