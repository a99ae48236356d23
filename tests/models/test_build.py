import ast
import inspect
import itertools
import subprocess
import sys
from dataclasses import asdict, dataclass, fields

import pytest
import torch
from torch import nn

from distmetric.config.decode import decode
from distmetric.custom_targets import build_target
from distmetric.distributed.batch_norm import SyncBatchNorm2d
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError
from distmetric.models import (
    AnySpec,
    ConvSpec,
    CustomSpec,
    ResNetSpec,
    TimmSpec,
    TransformersSpec,
    build_embedder,
)
from processes import run_ranks

SPECS = [
    ConvSpec(embedding_dim=6, widths=[4, 8]),
    ConvSpec(embedding_dim=6, widths=[4, 8], pool_last=False, norm="group", pooling="flatten"),
    ResNetSpec(embedding_dim=6, widths=[4, 8], blocks_per_stage=[1, 1], norm="sync_batch", channels=3),
    ResNetSpec(embedding_dim=6, widths=[4], blocks_per_stage=[1], stem_stride=2, norm="group", pooling="gem"),
    CustomSpec(
        embedding_dim=6,
        target="torch.nn.Conv2d",
        kwargs={"in_channels": 1, "out_channels": 4, "kernel_size": 3},
    ),
    CustomSpec(embedding_dim=784, target="torch.nn.Flatten", head="none"),
]


@pytest.mark.parametrize("spec", SPECS)
def test_every_kind_builds_trains_and_is_fixed_by_its_seed(spec):
    before = torch.get_rng_state()
    model, twin, other = (build_embedder(spec, seed, allow_custom_targets=True) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    weights = [p for name, p in model.named_parameters() if name.endswith("conv.weight") or "head" in name]
    assert not weights or any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    embeddings = model(torch.rand(2, spec.channels, 28, 28))
    assert embeddings.shape == (2, spec.embedding_dim)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(embedding_dim=6, widths=[4, 8], image_size=[24, 8]),
        ResNetSpec(
            embedding_dim=6, widths=[4, 8], blocks_per_stage=[1, 1], image_size=[24, 8], pooling="flatten"
        ),
    ],
)
def test_images_may_be_higher_than_wide(spec):
    assert spec.image_sides == (24, 8)
    assert build_embedder(spec, 0)(torch.rand(2, 1, 24, 8)).shape == (2, 6)


@pytest.mark.parametrize("size", [0, [8], [8, 0], [8, 8, 8], []])
def test_a_size_of_images_is_one_number_or_two(size):
    with pytest.raises(
        ConfigError, match=r"image_size=.* is wrong: give one number from 1 on, or \[height, width\]"
    ):
        decode(ConvSpec, {"image_size": size})


def test_the_shorter_side_has_to_be_long_enough():
    with pytest.raises(
        ConfigError, match=r"model.image_size=\[24, 3\] is too small for 3 blocks: use at least 8"
    ):
        build_embedder(ConvSpec(image_size=[24, 3]), 0)


def test_defaults_build():
    assert build_embedder(ConvSpec(), 0)(torch.rand(1 + 1, 1, 28, 28)).shape == (2, 128)
    assert build_embedder(ResNetSpec(), 0).embedding_dim == 128


def sync_norms(replica: Replica) -> list[int]:
    model = build_embedder(SPECS[2], 0)
    return [m.replica.world_size for m in model.modules() if isinstance(m, SyncBatchNorm2d)]


def test_sync_batch_uses_the_ranks_that_are_there():
    assert run_ranks(2, sync_norms) == [[2] * 7, [2] * 7]


def test_only_the_head_is_synchronized_unless_asked_for():
    model = build_embedder(SPECS[0], 0)
    assert not any(isinstance(m, SyncBatchNorm2d) for m in model.trunk.modules())
    assert any(isinstance(m, SyncBatchNorm2d) for m in model.head.modules())


def test_a_standardizing_head_keeps_a_constant_trunk_from_collapsing():
    model = build_embedder(ConvSpec(widths=[4], embedding_dim=8, pooling="avg"), 0)
    embeddings = model(0.5 + 1e-3 * torch.rand(64, 1, 28, 28))
    assert embeddings.var(0).sum() > 0.9
    plain = build_embedder(
        ConvSpec(widths=[4], embedding_dim=8, head="linear", norm="group", pooling="avg"), 0
    )
    assert plain(0.5 + 1e-3 * torch.rand(64, 1, 28, 28)).var(0).sum() < 0.1


def test_images_are_standardized_as_the_spec_says():
    def mean(**options):
        return build_embedder(ConvSpec(channels=3, widths=[4], **options), 0).image_mean.flatten().tolist()

    assert mean() == [0.5, 0.5, 0.5]
    assert mean(image_mean=[0.25], image_std=[1.0]) == [0.25, 0.25, 0.25]
    assert mean(image_mean=[0.25, 0.5, 0.75], image_std=[1.0, 1.0, 1.0]) == [0.25, 0.5, 0.75]


@dataclass
class Holder:
    model: AnySpec


@pytest.mark.parametrize("spec", [*SPECS, TransformersSpec(), TimmSpec()])
def test_configuration_round_trip(spec):
    values = asdict(Holder(spec))
    assert next(iter(values["model"])) == "name"
    assert decode(Holder, values).model == spec


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "conv", "width": [3]},
        {"name": "conv", "widths": ["3"]},
        {"name": "alexnet"},
        {"name": "resnet", "norm": "layer"},
        {"name": "custom"},
    ],
)
def test_configuration_mistakes_are_found(wrong):
    with pytest.raises(ConfigError, match="model"):
        decode(Holder, {"model": wrong})


def test_every_field_is_documented():
    for kind in (ConvSpec, ResNetSpec, TransformersSpec, TimmSpec, CustomSpec):
        documented = set()
        for part in kind.__mro__[:-1]:
            body = ast.parse(inspect.getsource(part)).body[0].body
            for line, after in itertools.pairwise(body):
                if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                    documented.add(line.target.id)
        assert documented == {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ConvSpec(image_size=4), "image_size=4 is too small for 3 blocks: use at least 8"),
        (ConvSpec(image_mean=[0.5]), "go together"),
        (ConvSpec(channels=3, image_mean=[0.5, 0.5], image_std=[1.0, 1.0]), "2 numbers for 3 channels"),
        (CustomSpec(target="Trunk"), "not a dotted path"),
        (CustomSpec(target="no_such_package.Trunk"), "cannot be imported: ModuleNotFoundError"),
        (CustomSpec(target="torch.nn.NoSuchTrunk"), "torch.nn has no NoSuchTrunk"),
        (CustomSpec(target="random.Random"), "not a class derived from torch.nn.Module"),
        (CustomSpec(target="torch.pi"), "not a class derived"),
        (CustomSpec(target="random.random"), "gave a float"),
        (CustomSpec(target="torch.nn.Conv2d", kwargs={"width": 3}), "do not fit torch.nn.Conv2d"),
        (CustomSpec(target="torch.nn.Linear", kwargs={"in_features": 3, "out_features": 3}), "Linear fails"),
    ],
)
def test_wrong_specs_are_one_clear_line(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_embedder(spec, 0, allow_custom_targets=True)
    assert "\n" not in str(caught.value)


def test_custom_accepts_functions_that_build_modules(tmp_path, monkeypatch):
    (tmp_path / "my_trunks.py").write_text(
        "from torch import nn\ndef shallow(width): return nn.Conv2d(1, width, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(build_target("model", "my_trunks.shallow", {"width": 3}, True), nn.Conv2d)


def test_imports_stay_light():
    """No torchvision ever; transformers only when a model of it is built."""
    program = (
        "import sys, distmetric.models, distmetric.models.hf, distmetric.models.timm, "
        "distmetric.data.augment, distmetric.distributed.batch_norm\n"
        "heavy = {'torchvision', 'transformers', 'timm', 'ray', 'mlflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "[]", done.stdout
