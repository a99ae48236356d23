"""Jobs in this process, and a small trained run for them to work on."""

from __future__ import annotations

import importlib.util
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

from distmetric.config.command import run_command
from distmetric.training.run_data import open_data
from distmetric.training.run_folder import RunFolder
from distmetric.training.saved_model import config_dict
from image_sources import make_folder, png
from runs import run_once, tiny_config

JOBS = Path(__file__).parents[1] / "jobs"
CONFIGS = {"train": "config"}


class Scene:
    """A trained run, images, embeddings and whatever else jobs read.

    Args:
        root: Where all of it goes.
        cache: Where glyphs are drawn.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        self.run = root / "run"
        self.config = config = tiny_config(
            cache, "model.widths=[8, 8]", "model.embedding_dim=16", "train.steps=4", "name=run"
        )
        run_once(config, self.run)
        catalog = open_data(config.data)
        self.catalog, self.cache = catalog.path, cache
        RunFolder(str(self.run), "run", config_dict(config), catalog.fingerprint, "0.1.0").write()
        self.images = root / "images"
        make_folder(self.images, {f"{name}/{n}.png": png(n) for name in "abcd" for n in range(3)})
        self.embeddings = root / "embeddings.parquet"
        code, told = job(
            "embed", f"checkpoint={self.run}", f"source={self.catalog}", f"out={self.embeddings}"
        )
        assert code == 0, told


def job(name: str, *overrides: str) -> tuple[int, str]:
    """Run a job in this process: its exit code and what it has said on standard error."""
    module = _module(name)
    with redirect_stderr(StringIO()) as told, redirect_stdout(StringIO()):
        code = run_command(CONFIGS.get(name, name), module.__doc__ or "", module.main, overrides)
    return code, told.getvalue()


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
