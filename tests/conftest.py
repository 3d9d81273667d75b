"""What several folders need: the command in its own process, fake distributions, a run."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from warm import Job, WarmPython

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
    *command: object,
    site: Path | None = None,
    cwd: Path | None = None,
    environments: Sequence[dict[str, str]],
) -> list[Outcome]:
    """Run `python -m` with a command in forks of the warm process, one in each environment."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(
                command=tuple(map(str, command)),
                cwd=str(cwd or Path.cwd()),
                environment=environment,
                streams=(os.devnull, f"{folder}/{number}.out", f"{folder}/{number}.err"),
                path=() if site is None else (str(site),),
            )
            for number, environment in enumerate(environments)
        ]
        codes = warm_python().run(*jobs)
        written = [[Path(name).read_text("utf-8") for name in job.streams[1:]] for job in jobs]
        return [Outcome(code, *texts) for code, texts in zip(codes, written, strict=True)]


def run_on_terminal(*args: object, code: int = 0, **variables: str) -> str:
    leader, follower = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while block := os.read(leader, 65536):
                written.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    terminal = os.ttyname(follower)
    job = Job(
        command=("cnn_core", *map(str, args)),
        cwd=os.getcwd(),
        environment={**os.environ, "COLUMNS": "120", "TERM": "xterm-256color", **variables},
        streams=(terminal, terminal, terminal),
    )
    (ended,) = warm_python().run(job)
    os.close(follower)
    reader.join()
    os.close(leader)
    assert ended == code, written
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
        (outcome,) = run_warm("cnn_core", *args, site=site, cwd=cwd, environments=[environment])
        return outcome
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


def run_module(
    *command: object, site: Path | None = None, cwd: Path | None = None, **variables: object
) -> Outcome:
    """Run `python -m` with a command in a fork of the warm process."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    if site is not None:
        environment["PYTHONPATH"] = beside(site)
    (outcome,) = run_warm(*command, site=site, cwd=cwd, environments=[environment])
    return outcome


@pytest.fixture(scope="session")
def module() -> Callable[..., Outcome]:
    return run_module


def run_script(code: str, folder: Path, *args: object, **more: Any) -> Outcome:
    """Write Python code to the module a_script of a folder and run it there."""
    (folder / "a_script.py").write_text(code, encoding="utf-8")
    return run_module("a_script", *args, cwd=folder, **more)


@pytest.fixture(scope="session")
def script() -> Callable[..., Outcome]:
    return run_script


def run_two_ranks(*command: object, cwd: Path | None = None) -> list[Outcome]:
    """Run `python -m` with a command in two processes that find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    world |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    outcomes = run_warm(*command, cwd=cwd, environments=ranks)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    return outcomes


@pytest.fixture(scope="session")
def two_ranks() -> Callable[..., list[Outcome]]:
    return run_two_ranks


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
