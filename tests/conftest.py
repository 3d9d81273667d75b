"""What several folders need: the command in its own process, fake distributions, a run."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from warm import WarmPython

if TYPE_CHECKING:
    from cnn_core.training import Run

# Tests run side by side: one thread each. Set before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

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


@functools.cache
def warm_python() -> WarmPython:
    """Return the process that this test process has its commands run by."""
    warm = WarmPython()
    atexit.register(warm.close)
    return warm


def run_warm(
    module: str, *args: object, site: Path | None, cwd: Path | None, environment: dict[str, str]
) -> Outcome:
    """Run `python -m` with a module and arguments in a fork of the warm process."""
    with tempfile.TemporaryDirectory() as folder:
        streams = (os.devnull, f"{folder}/out", f"{folder}/err")
        code = warm_python().run(
            *(module, *map(str, args)),
            path=[] if site is None else [str(site)],
            environment=environment,
            cwd=cwd or Path.cwd(),
            streams=streams,
        )
        return Outcome(code, *(Path(name).read_text("utf-8") for name in streams[1:]))


def run_on_terminal(*args: object, **variables: str) -> str:
    leader, follower = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(leader, 65536):
                written.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    code = warm_python().run(
        *("cnn_core", *map(str, args)),
        path=[],
        environment={**os.environ, "COLUMNS": "120", "TERM": "xterm-256color", **variables},
        cwd=Path.cwd(),
        streams=(os.ttyname(follower),) * 3,
    )
    os.close(follower)
    reader.join()
    os.close(leader)
    assert code == 0, written
    return b"".join(written).decode().replace("\r\n", "\n")


def run_cnnzoo(
    *args: object,
    site: Path | None = None,
    cwd: Path | None = None,
    warm: bool | None = None,
    **variables: object,
) -> Outcome:
    """Run the cnnzoo command; `site` is a folder of more distributions.

    By default a command has a new process if there is such a folder, whose plugins are to be
    imported before torch, or a variable that Python or a library reads when it starts.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CNNZOO")}
    environment.update({name: str(value) for name, value in variables.items()})
    environment["COLUMNS"] = "200"
    if site is not None:
        environment["PYTHONPATH"] = beside(site)
    if warm or (warm is None and site is None and all(v.startswith("CNNZOO") for v in variables)):
        return run_warm("cnn_core", *args, site=site, cwd=cwd, environment=environment)
    done = subprocess.run(
        [sys.executable, "-m", "cnn_core", *map(str, args)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cnnzoo() -> Callable[..., Outcome]:
    return run_cnnzoo


@pytest.fixture(scope="session")
def on_terminal() -> Callable[..., str]:
    """Return a function that runs the command on a terminal and returns all that it wrote."""
    return run_on_terminal


@pytest.fixture
def script() -> Callable[[str, Path], Outcome]:
    """Return a function that runs Python code in a folder, as if in a new process."""

    def run_script(code: str, folder: Path) -> Outcome:
        (folder / "a_script.py").write_text(code, encoding="utf-8")
        return run_warm("a_script", site=None, cwd=folder, environment={**os.environ})

    return run_script


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

    def stub_torch(self) -> None:
        """Put an almost empty torch in front: importing the real one takes seconds."""
        stub = "class version:\n    cuda = hip = None\n"  # which the doctor asks for
        (self.path / "torch.py").write_text(stub, encoding="utf-8")

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


@pytest.fixture(scope="session")
def install() -> Callable[[Path, Path], Path]:
    return wheel_into


@pytest.fixture(scope="session")
def pythonpath() -> Callable[[Path], str]:
    return beside


# Training takes seconds: each run is made once in a test process


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
    from cnn_core.training import Run

    whole = trained_once("lenet5_modern", "digits")
    return Run.open(shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "run"))


@pytest.fixture(scope="module")
def scenes_run(trained_once, tmp_path_factory) -> Run:
    """A run of a narrow unet_same on digit_scenes, 1 epoch; a copy for each test file."""
    from cnn_core.training import Run

    whole = trained_once("unet_same", "digit_scenes")
    return Run.open(shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "run"))
