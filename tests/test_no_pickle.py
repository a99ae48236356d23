"""Nothing of ours reads or writes pickle: what a file says is data, never a call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    *("pickle", "_pickle", "cPickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
    *("jsonpickle", "hickle", "klepto", "torch.package"),
}


def findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if _forbidden(alias.name))
            case ast.ImportFrom(module=str(module), names=names):
                full = [module, *(f"{module}.{alias.name}" for alias in names)]
                yield from (name for name in full if _forbidden(name))
                yield from (name for name in full if name in ("torch.load", "torch.jit.load", "numpy.load"))
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
                if name in ("import_module", "importlib.import_module", "__import__"):
                    yield from (
                        text.value
                        for text in node.args
                        if isinstance(text, ast.Constant) and _forbidden(text.value)
                    )
                elif (
                    (name == "torch.load" and given.get("weights_only") != "True")
                    or name in ("torch.jit.load", "np.loads", "pd.read_pickle", "pandas.read_pickle")
                    or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
                    or name.endswith(
                        (".to_pickle", ".read_pickle", "Unpickler", "yaml.load", "yaml.unsafe_load")
                    )
                ):
                    yield name


def _forbidden(module: object) -> bool:
    return isinstance(module, str) and any(
        module == name or module.startswith(f"{name}.") for name in FORBIDDEN
    )


def test_nothing_of_ours_unpickles() -> None:
    files = [*(ROOT / "distmetric").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    assert len(files) > 100
    found = {str(path): [*findings(ast.parse(path.read_text(encoding="utf-8")))] for path in files}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("import pickle", True),
        ("from cloudpickle import loads", True),
        ("import importlib; importlib.import_module('dill')", True),
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, weights_only=True)", False),
        ("from torch import load", True),
        ("np.load(f, allow_pickle=True)", True),
        ("np.load(f)", False),
        ("import json, pickles", False),
        ("pandas.read_pickle(f)", True),
    ],
)
def test_the_rule_sees_what_it_forbids(source, is_found) -> None:
    assert bool([*findings(ast.parse(source))]) == is_found
