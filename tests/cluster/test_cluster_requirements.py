"""What the machines of a cluster install is pinned by version and hash, and is what the tests have passed with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cluster-requirements.txt", "cluster-build-requirements.txt")
EXTRAS = ("gpu", "hf", "export")


def pinned(name: str) -> dict[str, list[str]]:
    """By requirement its hashes."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, *options = line.split()
            found[requirement] = options
    return found


def versions(name: str) -> dict[str, str]:
    return {canonicalize_name(text.partition("==")[0]): text.partition("==")[2] for text in pinned(name)}


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_one_version_with_its_hashes(name: str) -> None:
    assert len(pinned(name)) == len(versions(name)) > 5
    for requirement, options in pinned(name).items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[\w.]+", requirement), requirement
        assert options, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in options), requirement


@pytest.mark.parametrize("name", FILES)
def test_versions_are_those_that_the_tests_have_passed_with(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {
        canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line
    }
    both = versions(name).keys() & tested.keys()
    assert {key: versions(name)[key] for key in both} == {key: tested[key] for key in both}
    if name == FILES[0]:
        # Beside these come CUDA, what reaches the cloud, and MLflow's login.
        others = {key for key in versions(name) if not key.startswith(("nvidia-", "cuda-"))} - both
        known = {
            "boto3",
            "botocore",
            "s3transfer",
            "jmespath",
            "faiss-gpu",
            "triton",
            "setuptools",
            "flask-wtf",
            "wtforms",
        }
        assert others <= known


def test_all_that_the_package_asks_for_is_there_and_fits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], "boto3"]
    wanted += [each for extra in EXTRAS for each in project["project"]["optional-dependencies"][extra]]
    there = versions(FILES[0])
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(there[canonicalize_name(requirement.name)]), requirement
    building = versions(FILES[1])
    for requirement in map(Requirement, project["build-system"]["requires"]):
        assert requirement.specifier.contains(building[canonicalize_name(requirement.name)]), requirement
    assert {"setuptools", "editables"} <= building.keys()


def test_the_gpu_build_is_meant() -> None:
    there = versions(FILES[0])
    assert "faiss-gpu" in there
    assert "faiss-cpu" not in there
    assert any(name.startswith("nvidia-cudnn") for name in there)
    assert "+" not in there["torch"], "a local build is on no index"
