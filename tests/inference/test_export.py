"""Exports: ONNX and safetensors give the checkpoint's embeddings, at any batch size, or nothing is written."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from distmetric.config.compose import load
from distmetric.config.decode import decode
from distmetric.config.jobs import ExportJob
from distmetric.data.decode import ImageStore
from distmetric.errors import ConfigError, InputError, ResourceError
from distmetric.inference import export, onnx_export
from distmetric.inference.export import export_checkpoint
from distmetric.inference.exported import (
    ExportedConfig,
    ServedEmbedder,
    load_exported,
    read_exported_config,
    write_exported,
)
from distmetric.inference.onnx_export import export_onnx, onnx_difference
from distmetric.models.build import build_embedder
from distmetric.models.embedder import Embedder
from distmetric.models.spec import ConvSpec, ResNetSpec, TransformersSpec
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.run_data import open_data
from distmetric.training.saved_model import load_embedder
from runs import run_once, tiny_config


@pytest.fixture(scope="module")
def trained(glyph_cache, tmp_path_factory):
    """Location of a checkpoint, its embedder, and real images."""
    config = tiny_config(glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16")
    _, result, _ = run_once(config, tmp_path_factory.mktemp("run"))
    embedder, _ = load_embedder(read_checkpoint(result.checkpoint))
    catalog = open_data(config.data)
    images = ImageStore(catalog, config.model.image_size, config.model.channels).images(np.arange(50))
    return result.checkpoint, embedder, images, catalog


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The result of a job that writes everything that is a file, and its folder."""
    out = tmp_path_factory.mktemp("exports") / "deep" / "glyphs"
    job = load("export", ExportJob, [f"checkpoint={trained[0]}", f"out={out}", f"images={trained[3].path}"])
    return export_checkpoint(job), out


def rgb_embedder(**settings) -> tuple[Embedder, torch.Tensor]:
    spec = ResNetSpec(widths=[8, 8], blocks_per_stage=[1, 1], channels=3, image_size=12, **settings)
    images = torch.randint(0, 256, (9, 3, 12, 12), dtype=torch.uint8)
    embedder = build_embedder(spec, seed=0)
    for norm in embedder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2.0)
    return embedder.eval(), images


def test_the_onnx_file_takes_decoded_images_in_batches_of_any_size(trained, exported) -> None:
    _, embedder, images, _ = trained
    result, out = exported
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [1, 28, 28])
    assert isinstance(given.shape[0], str)
    assert (found.name, found.type, found.shape[1]) == ("embeddings", "tensor(float)", 16)
    with torch.no_grad():
        expected = embedder(images).numpy()
    for size in (1, 3, 50):
        parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(size)]
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)
    assert 0 <= result["parity"]["max_abs_difference"]["onnx"] < 1e-5
    assert (result["parity"]["images"], result["parity"]["batch_sizes"]) == (39, [1, 2, 7, 32])
    facts = {entry.key: entry.value for entry in onnx.load(out / "model.onnx").metadata_props}
    assert facts["step"] == str(result["step"])
    assert float(facts["recall_at_1"]) == pytest.approx(read_checkpoint(trained[0]).metrics["recall_at_1"])


def test_the_files_are_listed_and_nothing_else_is_left(exported) -> None:
    result, out = exported
    names = ["config.json", "embedder.safetensors", "model.onnx"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(result["files"]) == [str(out / name) for name in names]
    assert [path.name for path in out.parent.iterdir()] == ["glyphs"]


def test_safetensors_round_trip_bit_for_bit(trained, exported) -> None:
    checkpoint, embedder, images, _ = trained
    loaded = load_exported(exported[1])
    assert not loaded.training
    state, again = embedder.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    with torch.no_grad():
        assert torch.equal(loaded(images), embedder(images))
    config, meta = read_exported_config(exported[1]), read_checkpoint(checkpoint).meta
    assert (config.step, config.fingerprint, config.metrics) == (
        meta["step"],
        meta["fingerprint"],
        meta["metrics"],
    )
    assert config.calibration == meta.get("calibration")


def test_preprocessing_pooling_and_head_are_part_of_the_graph(tmp_path) -> None:
    settings = {
        "head": "mlp",
        "normalize": False,
        "pooling": "gem",
        "norm": "sync_batch",
        "views": 9,
        "framing": 0.7,
        "whitening": True,
    }
    embedder, images = rgb_embedder(image_mean=[0.2, 0.5, 0.7], image_std=[0.3, 0.2, 0.1], **settings)
    embedder.whitening += 0.5
    export_onnx(embedder, images.shape[1:], tmp_path / "m.onnx", {})
    assert onnx_difference(tmp_path / "m.onnx", embedder, images, [1, 4, 9]) < 1e-5
    other, _ = rgb_embedder(image_mean=[0.2, 0.5, 0.6], image_std=[0.3, 0.2, 0.1], **settings)
    assert onnx_difference(tmp_path / "m.onnx", other, images, [9]) > 1e-4
    other.head[0].weight.data.fill_(float("nan"))
    assert onnx_difference(tmp_path / "m.onnx", other, images, [9]) == float("inf")


def test_attributes_and_double_precision_come_back(tmp_path) -> None:
    values = {"color": ["red", "green"], "size": ["s", "m", "l"]}
    spec = ConvSpec(widths=[4], image_size=8, embedding_dim=6, attributes=["color", "size"])
    embedder = build_embedder(spec, seed=3, attribute_values=values).double().eval()
    config = ExportedConfig(
        version="x", model=spec, attribute_values=values, step=1, metrics={"a": float("nan")}, fingerprint="f"
    )
    digest = write_exported(tmp_path, embedder, config)
    assert digest == hashlib.sha256((tmp_path / "embedder.safetensors").read_bytes()).hexdigest()
    loaded = load_exported(tmp_path)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        (found, logits), (expected, expected_logits) = (
            each(images, with_attributes=True) for each in (loaded, embedder)
        )
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)
    assert all(torch.equal(logits[name], expected_logits[name]) for name in values)
    assert read_exported_config(tmp_path) == replace(config, metrics={})


def test_a_vision_transformer_is_exported_and_rebuilt_without_its_pretrained_weights(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = tmp_path / "vit"
    transformers.ViTModel(transformers.ViTConfig(**size, image_size=16, patch_size=8)).save_pretrained(folder)
    spec = TransformersSpec(model=str(folder), local_files_only=True, image_size=24, embedding_dim=8)
    embedder = build_embedder(spec, seed=0).eval()
    images = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)  # resized to 16 by the model
    export_onnx(embedder, images.shape[1:], tmp_path / "m.onnx", {})
    assert onnx_difference(tmp_path / "m.onnx", embedder, images, [1, 3]) < 1e-5
    config = ExportedConfig(version="x", model=spec, attribute_values={}, step=1, metrics={}, fingerprint="f")
    write_exported(tmp_path, embedder, config)
    (folder / "model.safetensors").unlink()
    with torch.no_grad():
        assert torch.equal(load_exported(tmp_path)(images), embedder(images))


class Branching(nn.Module):
    """What it computes depends on the values it sees, which no graph can say."""

    num_features = 4

    def forward(self, images):
        features = images.flatten(1)[:, :4]
        return features if float(features.sum()) > 0 else -features


def test_a_model_that_has_no_graph_is_one_line(tmp_path) -> None:
    embedder = Embedder(Branching(), "avg", 4, head="none").eval()
    with pytest.raises(InputError, match=r"cannot be exported to ONNX .*safetensors,mlflow") as caught:
        export_onnx(embedder, (1, 2, 2), tmp_path / "m.onnx", {})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_too_large_a_difference_leaves_everything_as_it_was(trained, exported, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"of yesterday")
    job = ExportJob(checkpoint=trained[0], out=str(out), tolerance=1e-12)
    monkeypatch.setattr(export, "export_onnx", lambda *_: None)
    monkeypatch.setattr(export, "onnx_difference", lambda *_: 3e-7)
    message = r"formats=\[onnx\]: its embeddings differ .* up to 3e-07, more than 1e-12 .*tolerance=1e-12"
    with pytest.raises(InputError, match=message):
        export_checkpoint(job)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "model.onnx"]
    assert (out / "model.onnx").read_bytes() == b"of yesterday"
    monkeypatch.setattr(export, "onnx_difference", lambda *_: float("inf"))
    with pytest.raises(InputError, match="up to inf"):
        export_checkpoint(replace(job, tolerance=1.0))


def test_a_comparison_sees_wrong_embeddings_and_files_that_are_no_onnx(exported, trained, tmp_path) -> None:
    _, embedder, images, _ = trained
    spec = read_exported_config(exported[1]).model
    other = build_embedder(spec, seed=1).eval()
    assert onnx_difference(exported[1] / "model.onnx", other, images, [50]) > 0.01
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="the ONNX file cannot be run"):
        onnx_difference(tmp_path / "m.onnx", embedder, images, [50])


def test_missing_packages_are_one_line(trained, tmp_path, monkeypatch) -> None:
    job = ExportJob(checkpoint=trained[0], out=str(tmp_path / "out"), formats=["safetensors"])
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ResourceError, match=r"safetensors: pip install 'distmetric\[export\]'"):
        export_checkpoint(job)
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "not_there", "not_here"))
    with pytest.raises(ResourceError, match=r"needs not_there, not_here: pip install 'distmetric\[export\]'"):
        export_checkpoint(replace(job, formats=["onnx"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "out=null is wrong"),
        (["out=x", "formats=[]"], r"formats=\[\] is wrong"),
        (["out=x", "formats=[onnx,onnx]"], "at most once"),
        (["out=x", "formats=[onxx]"], r"formats\[0\]='onxx' is wrong"),
        (["out=x", "register=m"], "register=m is for MLflow: add mlflow"),
        (["out=x", "tracking_uri=sqlite:///x"], "tracking_uri=sqlite:///x is for MLflow"),
        (["formats=[mlflow]", "alias=best"], "alias=best is for a registered model"),
        (["out=x", "tolerance=0"], "tolerance=0.0 is wrong"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load("export", ExportJob, ["checkpoint=x", *overrides])


def test_folders_that_are_no_export_are_one_line(exported, tmp_path) -> None:
    def copied(change) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file in exported[1].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        change(folder)
        return folder

    def edited(**values):
        def change(folder: Path) -> None:
            content = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**content, **values}))

        return change

    weights = "embedder.safetensors"
    spec = json.loads((exported[1] / "config.json").read_text())["model"]
    for change, message in [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / weights).unlink(), "it has no embedder.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (edited(step="two"), "config.json is damaged .*step='two' is wrong"),
        (edited(format=2), "has format 2 .*this version reads 1"),
        (edited(model={**spec, "widths": [8, 9]}), "does not fit config.json .*export again"),
        (lambda folder: (folder / weights).write_bytes(b"short"), "does not fit config.json"),
    ]:
        with pytest.raises(InputError, match=message):
            load_exported(copied(change))


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def test_serving_decodes_as_training_did(trained, exported) -> None:
    _, embedder, images, catalog = trained
    served = ServedEmbedder(exported[1])
    found = served.predict({"image": [bytes(catalog.image_bytes(row)) for row in range(50)]})
    with torch.no_grad():
        expected = embedder(images).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    large = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    many = served.predict({"image": [encoded(large, "JPEG")] * 65 + [encoded(large, "PNG")]})
    assert many.shape == (66, 16)
    np.testing.assert_allclose(many[:65], many[:1].repeat(65, 0), atol=1e-6)
    assert served.predict({"image": []}).shape == (0, 16)
    with pytest.raises(InputError, match="the image in row 1 cannot be used: not an image"):
        served.predict({"image": [encoded(large, "PNG"), b"no image"]})


def test_what_serves_needs_neither_ray_nor_hydra_nor_mlflow(exported) -> None:
    code = (
        "import sys\nfrom distmetric.inference.exported import _load_pyfunc\n"
        f"_load_pyfunc({str(exported[1])!r})\nprint(*sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert not {"ray", "hydra", "mlflow", "matplotlib", "onnx"} & set(ran.stdout.split())


def test_random_images_go_from_flat_to_noise_and_unreadable_ones_are_refused(tmp_path) -> None:
    spec = decode(ConvSpec, {"image_size": 20, "channels": 3})
    images = export._images(ExportJob(checkpoint="x", out="y"), spec)
    assert (images.shape, images.dtype) == ((39, 3, 20, 20), torch.uint8)
    assert images.float().flatten(2).std(2).min() == 0
    assert images.float().flatten(2).std(2).max() > 50
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="no image in it can be read"):
        export._images(ExportJob(checkpoint="x", out="y", images=str(tmp_path / "a.png")), spec)
