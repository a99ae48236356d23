"""The package keeps its layers, its optional packages in their places, and its files and functions small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import distmetric

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# What each room may import of ours beside itself. A dotted name allows that module only: the settings of a
# part live beside the part, so the schema of the configuration reaches into four rooms for them.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "progress": (),
    "secrets": (),
    "locations": ("errors",),
    "regular_files": (),
    "startup": (),
    "custom_targets": ("errors",),
    "functional": (),
    "miners": ("functional",),
    "losses": ("functional", "miners", "custom_targets"),
    "evaluation": ("functional", "errors"),
    "index": ("functional", "evaluation", "errors", "progress", "locations", "regular_files"),
    "samplers": ("functional", "index", "errors"),
    "data": ("functional", "errors", "progress", "regular_files", "__version__"),
    "distributed": ("functional", "losses", "miners", "errors"),
    "models": ("distributed", "functional", "custom_targets", "errors"),
    "config": ("functional.checks", "errors", "secrets"),
    "config.schema": (
        *("config", "data.augment", "losses.build", "miners.build", "models.spec", "samplers.pk"),
        *("samplers.hard_neighbors", "index.config"),
    ),
    "config.validate": (
        *("config", "evaluation.retrieval", "functional.dial", "losses.build", "losses.class_loss"),
        "samplers.hard_neighbors",
        *("models.spec", "losses.whole_batch", "custom_targets"),
        "errors",
    ),
    "config.chunks": ("config", "models.spec", "errors"),
    "config.attributes": (
        *("config", "losses.build", "losses.attribute_classification", "losses.attribute_identity_hard"),
        "errors",
    ),
    "tracking": ("errors", "secrets", "locations"),
    "reports": ("evaluation", "index", "errors"),
    "training": (
        *("config", "data", "distributed", "evaluation", "functional", "index", "losses", "miners", "models"),
        *("samplers", "tracking", "errors", "progress", "locations", "secrets", "startup", "__version__"),
    ),
    "inference": (
        *(
            "training",
            "evaluation",
            "reports",
            "tracking",
            "config",
            "data",
            "distributed",
            "index",
            "models",
        ),
        *("errors", "progress", "locations", "regular_files", "secrets", "__version__"),
    ),
    "cluster": (
        *(
            "inference",
            "training",
            "tracking",
            "config",
            "data",
            "distributed",
            "index",
            "models",
            "samplers",
        ),
        *("errors", "progress", "locations", "secrets", "startup", "__version__"),
    ),
    "benchmarks": (
        *("training", "losses", "miners", "distributed", "functional", "evaluation", "index", "tracking"),
        *(
            "config",
            "data",
            "models",
            "samplers",
            "errors",
            "locations",
            "progress",
            "secrets",
            "startup",
            "__version__",
        ),
    ),
    "jobs": ("cluster", "inference", "data", "index", "benchmarks", "config", "startup"),
}

# Packages that only some may import, at whatever depth: folders end in a slash.
PLACES: dict[str, tuple[str, ...]] = {
    "ray": ("distmetric/cluster/",),
    "mlflow": ("distmetric/tracking/mlflow_server.py", "distmetric/tracking/registry.py"),
    "hydra": ("distmetric/config/compose.py",),
    "omegaconf": ("distmetric/config/compose.py",),
    "matplotlib": ("distmetric/reports/", "distmetric/data/glyphs.py"),
    "torch.distributed": ("distmetric/distributed/", "distmetric/benchmarks/training/bare.py"),
    "torch.nn.parallel": ("distmetric/distributed/", "distmetric/benchmarks/training/bare.py"),
    "sklearn": ("distmetric/reports/",),
    "scipy": ("distmetric/data/layouts/annotations.py", "distmetric/evaluation/confidence.py"),
    "onnx": ("distmetric/inference/onnx_export.py",),
    "onnxruntime": ("distmetric/inference/onnx_export.py",),
    "safetensors": ("distmetric/inference/",),
    "transformers": ("distmetric/models/",),
    "timm": ("distmetric/models/",),
    "pytorch_metric_learning": ("distmetric/benchmarks/",),
    "torchvision": (),
    "triton": ("distmetric/functional/triton_kernels.py",),
    "distmetric.functional.triton_kernels": ("distmetric/functional/fused_rows.py",),
    "faiss": ("distmetric/index/faiss_search.py", "distmetric/benchmarks/index/raw_faiss.py"),
}

ONLY_STANDARD_LIBRARY = ("errors", "progress", "secrets", "startup", "tracking", "jobs")


class Import(NamedTuple):
    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def files() -> list[Path]:
    return sorted([*(ROOT / "distmetric").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_in(path: Path, tree: ast.Module) -> Iterator[Import]:
    """Every module that a file names: imports at any depth, import_module("..."), and torch.distributed.x."""
    for node in ast.walk(tree):
        modules: list[str] = []
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                # Of `from torch import distributed` nobody can say here whether it is a module: both count.
                modules = [module, *(f"{module}.{alias.name}" for alias in names)]
            case ast.ImportFrom():
                modules = ["."]
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(to)), *_]
            ):
                modules = [to] if name in ("import_module", "__import__") else []
            case ast.Attribute():
                modules = [text] if (text := ast.unparse(node)) in PLACES else []
        for module in modules:
            yield Import(name_of(path), getattr(node, "lineno", 0), module)


@cache
def all_imports() -> list[Import]:
    return [found for path in files() for found in imports_in(path, tree_of(path))]


def is_in(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def module_of(file: str) -> str:
    """Dotted name without `distmetric.`; the package itself is ""."""
    parts = Path(file).with_suffix("").parts
    parts = parts[1:] if parts[0] == "distmetric" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def breaks_layers(found: Import) -> bool:
    importer = module_of(found.file)
    if found.module == ".":
        return True  # a relative import says less about where it leads
    if importer == "" or not found.module.startswith("distmetric."):
        return False
    module = found.module.removeprefix("distmetric.")
    room = importer.partition(".")[0]
    allowed = (room, *LAYERS.get(importer, LAYERS[room]))
    return not any(is_in(module, prefix) for prefix in allowed)


def is_misplaced(found: Import) -> bool:
    places = next((at for package, at in PLACES.items() if is_in(found.module, package)), None)
    return places is not None and not any(
        found.file == place or (place.endswith("/") and found.file.startswith(place)) for place in places
    )


def test_every_room_has_a_place_in_the_layers() -> None:
    rooms = {module_of(name_of(path)).partition(".")[0] for path in files()} - {""}
    assert rooms == {name for name in LAYERS if "." not in name}


def test_rooms_import_only_what_lies_below_them() -> None:
    assert [str(found) for found in all_imports() if breaks_layers(found)] == []


def test_layers_have_no_cycle() -> None:
    done: list[str] = []
    below = {room: {name.partition(".")[0] for name in names} for room, names in LAYERS.items()}
    below["config"] |= set().union(*(below.pop(name) for name in LAYERS if name.startswith("config.")))
    below["__version__"] = set()
    while below:
        free = [room for room, names in below.items() if not names - {room} - set(done)]
        assert free, f"these import each other: {', '.join(below)}"
        done += free
        for room in free:
            del below[room]


def test_optional_and_heavy_packages_stay_in_their_places() -> None:
    assert [str(found) for found in all_imports() if is_misplaced(found)] == []


def test_the_lowest_rooms_and_the_jobs_need_no_other_package() -> None:
    known = {*sys.stdlib_module_names, "distmetric"}
    allowed = dict.fromkeys(PLACES["mlflow"], "mlflow")
    assert [
        str(found)
        for found in all_imports()
        if module_of(found.file).partition(".")[0] in ONLY_STANDARD_LIBRARY
        and (package := found.module.partition(".")[0]) not in known
        and package != allowed.get(found.file)
    ] == []


@pytest.mark.parametrize(
    ("file", "source", "layers", "places"),
    [
        ("distmetric/losses/new.py", "from distmetric.distributed.gather import gather", True, False),
        ("distmetric/losses/new.py", "def f():\n    import distmetric.distributed.gather", True, False),
        ("distmetric/losses/new.py", "from distmetric import evaluation", True, False),
        ("distmetric/losses/new.py", "from ..functional import distances", True, False),
        ("distmetric/losses/new.py", "from distmetric.functional import distances", False, False),
        ("distmetric/config/schema.py", "from distmetric.samplers.pk import PKSamplerConfig", False, False),
        ("distmetric/config/schema.py", "from distmetric.samplers.slices import rank_slice", True, False),
        ("distmetric/config/decode.py", "from distmetric.samplers.pk import PKSamplerConfig", True, False),
        ("distmetric/errors.py", "from distmetric import __version__", True, False),
        ("distmetric/training/new.py", "def f():\n    from ray import train", False, True),
        ("distmetric/training/new.py", "import torch.distributed as dist", False, True),
        ("distmetric/training/new.py", "from torch import distributed", False, True),
        ("distmetric/training/new.py", "import torch\ntorch.distributed.barrier()", False, True),
        ("distmetric/data/new.py", "import importlib\nimportlib.import_module('faiss')", False, True),
        ("distmetric/data/new.py", "import matplotlib.pyplot", False, True),
        ("distmetric/data/glyphs.py", "import matplotlib.pyplot", False, False),
        ("distmetric/losses/new.py", "import triton.language as tl", False, True),
        ("distmetric/losses/new.py", "from distmetric.functional import triton_kernels", False, True),
        ("distmetric/data/new.py", "import rays, torch.nn", False, False),
    ],
)
def test_the_rules_see_what_they_forbid(file: str, source: str, layers: bool, places: bool) -> None:
    found = list(imports_in(ROOT / file, ast.parse(source)))
    assert any(map(breaks_layers, found)) == layers
    assert any(map(is_misplaced, found)) == places


HEAVY = {"triton", "ray", "mlflow", "faiss", "hydra", "omegaconf", "matplotlib", "torchvision"}
NEEDS = {"fit": {"ray"}, "load_config": {"hydra", "omegaconf"}}
STAGES = """
import sys

def show():
    print(*sys.modules)

import distmetric
show()
for name in distmetric.__all__:
    if name not in {needs}:
        getattr(distmetric, name)
show()
distmetric.fit
show()
distmetric.load_config
show()
"""


def test_lazy_names_load_only_what_they_need() -> None:
    code = STAGES.format(needs=set(NEEDS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    alone, light, with_fit, with_both = (set(line.split()) for line in done.stdout.splitlines())
    assert not alone & (HEAVY | {"torch", "numpy", "pyarrow"})
    assert light & HEAVY == set()
    assert with_fit & HEAVY == NEEDS["fit"]
    assert with_both & HEAVY == NEEDS["fit"] | NEEDS["load_config"]


def test_the_package_exports_what_it_lists() -> None:
    from distmetric import DistributedLoss, losses, miners

    assert DistributedLoss.__module__ == "distmetric.distributed.loss"
    assert losses.TripletLoss is distmetric.losses.TripletLoss
    assert miners.BatchHardMiner is distmetric.miners.BatchHardMiner
    assert set(distmetric.__all__) <= set(dir(distmetric))
    assert distmetric.load_config(["train.steps=7"]).train.steps == 7
    with pytest.raises(AttributeError, match="has no attribute 'Catalogue'"):
        distmetric.Catalogue  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from distmetric import nothing  # type: ignore[attr-defined]  # noqa: F401


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def test_everything_public_says_what_it_is_for() -> None:
    missing = [
        f"{name_of(path)}: {name}"
        for path in files()
        for name, node in [("the module", tree_of(path)), *public(tree_of(path).body, "")]
        if not ast.get_docstring(node)
    ]
    assert missing == []


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, its docstring left out: that may be as long as it has to be."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{name_of(path)}:{node.lineno} {node.name}": count
        for path in files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := lines_of(node)) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_files_are_about_one_thing_each() -> None:
    long = {
        name_of(path): count
        for path in files()
        if (count := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}
