"""What several test files need: the command in a process of its own, and fake plugins."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cnn_core.training import Run

# Tests run side by side: one thread each. Set before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
FASHION = ROOT.parent / "shared" / "data" / "fashion-mnist"


TRAINED = {
    "lenet5_modern": {"epochs": 2, "batch_size": 32},
    "unet_same": {"epochs": 1, "image_size": 32, "options": {"width": 4, "depth": 2}},
}


def beside(site: Path) -> str:
    """Return a PYTHONPATH with a folder of more distributions in front."""
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))


def wheel_into(project: Path, site: Path) -> Path:
    """Build a project's wheel and unpack it into a folder like site-packages, as pip does."""
    build = "import sys; from flit_core import buildapi; buildapi.build_wheel(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", build, folder], cwd=project, check=True, capture_output=True
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    return site


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_cnnzoo(
    *args: object, site: Path | None = None, cwd: Path | None = None, **variables: str
) -> Outcome:
    """Run the cnnzoo command; `site` is a folder of more distributions."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CNNZOO")}
    environment.update(variables)
    environment["COLUMNS"] = "200"
    if site is not None:
        environment["PYTHONPATH"] = beside(site)
    done = subprocess.run(
        [sys.executable, "-m", "cnn_core", *map(str, args)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cnnzoo() -> Callable[..., Outcome]:
    return run_cnnzoo


class FakeSite:
    """A folder like site-packages, with distributions made up for a test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        source: str,
        *,
        distribution: str = "cnn-arch-bad",
        name: str = "bad",
        module: str | None = None,
        requires: tuple[str, ...] = ("cnn-core",),
        target: str | None = None,
        group: str = "cnnzoo",
    ) -> None:
        """Install a distribution with one plugin module of this source."""
        module = module or distribution.replace("-", "_") + "_plugin"
        (self.path / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.path / f"{distribution.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.2.3"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        entry = f"[{group}]\n{name} = {target or module}\n"
        (info / "entry_points.txt").write_text(entry, encoding="utf-8")

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a process that finds these distributions, and no other setting."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CNNZOO")}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "PYTHONPATH": beside(self.path)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path) -> FakeSite:
    folder = tmp_path / "site"
    folder.mkdir()
    return FakeSite(folder)


# A sound plugin with one model, for tests to spoil.
GOOD = """
from cnn_core import ModelSpec, Paper, hookimpl

def model(name="tiny", **changes):
    fields = dict(
        name=name, target="tiny_net:tiny", family="tiny", variant="tiny", summary="tiny",
        paper=Paper(title="t", authors="a", year=2020, url="https://example.org"),
        input=(1, 8, 8), min_size=8, num_classes=10, params=650, macs=640,
        stages=("head",), cam_stage="head",
    )
    return ModelSpec(**{**fields, **changes})

@hookimpl
def cnnzoo_models():
    return [model()]
"""


@pytest.fixture(scope="session")
def install() -> Callable[[Path, Path], Path]:
    return wheel_into


@pytest.fixture(scope="session")
def pythonpath() -> Callable[[Path], str]:
    return beside


@pytest.fixture
def good_source() -> str:
    return GOOD


@pytest.fixture(scope="session")
def fashion() -> Path:
    """The folder of the real Fashion-MNIST, where there is one beside the repository."""
    if not FASHION.is_dir():
        pytest.skip(f"no {FASHION.relative_to(ROOT.parent)} beside the repository")
    return FASHION


# One run and one segmentation run for the whole test process: training takes seconds


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """Return a function that trains a model once and returns the folder of the run."""

    @functools.cache
    def trained(model: str, data: str) -> Path:
        from cnn_core import train

        out = tmp_path_factory.mktemp("trained") / "run"
        return train(model, data, out=out, progress=False, device="cpu", **TRAINED[model]).path

    return trained


@pytest.fixture(scope="module")
def digits_run(trained_once, tmp_path_factory) -> Run:
    """A run of lenet5_modern on the digits, 2 epochs; each test file has a copy of its own."""
    return copy_of(trained_once("lenet5_modern", "digits"), tmp_path_factory)


@pytest.fixture(scope="module")
def scenes_run(trained_once, tmp_path_factory) -> Run:
    """A run of a narrow unet_same on digit_scenes, 1 epoch; a copy for each test file."""
    return copy_of(trained_once("unet_same", "digit_scenes"), tmp_path_factory)


def copy_of(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from cnn_core.training import Run

    return Run.open(shutil.copytree(run, tmp_path_factory.mktemp("copy") / "run"))


# Plugins of a test's own, in its own process


CATALOGUES = ("models", "datasets", "recipes", "metrics", "views", "weights", "commands", "checks")


@pytest.fixture
def command_leaves_no_trace(monkeypatch):
    """Undo what `main` does to its process, which is ours here."""
    log, handler = logging.getLogger("cnn_core"), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def forget():
    """Return a function that has the plugins loaded anew when they are next asked for."""
    from cnn_core import plugins, registry

    def forget():
        plugins.plugins.cache_clear()
        for name in CATALOGUES:
            getattr(registry, name).cache_clear()

    return forget


@pytest.fixture
def zoo(monkeypatch, forget):
    """Return a function that starts anew with the given plugins, core's among them."""
    from cnn_core.plugins import loader

    def start(*found):
        forget()
        monkeypatch.setattr(loader, "discover", lambda: list(found))
        return loader.plugins()

    yield start
    monkeypatch.undo()
    forget()


@pytest.fixture
def plugin(monkeypatch, good_source):
    """Return a function that makes a plugin whose module is the sound one and `more`."""
    from cnn_core.plugins.discovery import Plugin

    def make(name, more="", source=good_source):
        module = types.ModuleType(f"{name}_plugin")
        exec(source + more, vars(module))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Plugin(name, f"cnn-arch-{name}", "1.2.3", module.__name__)

    return make
