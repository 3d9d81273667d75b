"""What starting costs: CPU time as a ratio to a bare start, and what gets imported."""

from __future__ import annotations

import os
import pty
import resource
import subprocess
import sys

import pytest

from cnn_core.plugins import HEAVY

BARE = [sys.executable, "-c", "import click, pluggy, importlib.metadata"]
LIGHT = ["--help", "--version", "list-models", "list-datasets", "list-recipes", "plugins"]


def cpu_seconds(command: list[str], *, terminal: bool = False) -> float:
    """CPU time, user and system, of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # As on a user's machine: bytecode is kept. The best of several runs does not compile.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if terminal:
        leader, follower = pty.openpty()
        child = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
        os.close(follower)
        while True:
            try:
                if not os.read(leader, 65536):
                    break
            except OSError:  # the other end is closed
                break
        os.close(leader)
        assert child.wait() == 0
    else:
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratio(command: list[str], baseline: list[str], runs: int, **options: bool) -> float:
    """Best run over best run, interleaved: noise only ever adds."""
    pairs = [
        (cpu_seconds(command, **options), cpu_seconds(baseline, **options)) for _ in range(runs)
    ]
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


@pytest.mark.xdist_group("timing")
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("argument", ["--help", "list-models"])
def test_listing_costs_at_most_twice_a_bare_start(argument, terminal):
    command = [sys.executable, "-m", "cnn_core", argument]
    assert ratio(command, BARE, 9, terminal=terminal) <= 2.0


@pytest.mark.parametrize("argument", LIGHT)
def test_nothing_heavy_is_imported(argument):
    code = (
        "import sys\nfrom cnn_core.cli import main\n"
        f"code = main([{argument!r}])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_completing_a_model_imports_nothing_heavy():
    code = (
        "import sys\nfrom cnn_core.cli import main\nmain()\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = {
        **os.environ,
        "_CNNZOO_COMPLETE": "bash_complete",
        "COMP_WORDS": "cnnzoo train len",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["plain,lenet5", "plain,lenet5_modern"]
    assert done.stderr == ""


FIRST_STEP = """
import os, sys
from cnn_core.plugins import Observers
def notify(self, hook, **facts):
    if hook == "step_end":
        late = ("torchvision", "matplotlib", "sklearn", "umap", "torch._dynamo")
        found = [name for name in late if name in sys.modules]
        os._exit(1 if found else 0)
Observers.notify, Observers.wants = notify, lambda self, hook: True
from cnn_core.cli import main
main(["train", "lenet5", "--data", "digits", "--out", sys.argv[1]])
os._exit(2)
"""


@pytest.mark.xdist_group("timing")
def test_the_first_training_step_comes_soon_after_import_torch(tmp_path):
    runs = []
    for number in range(3):
        command = [sys.executable, "-c", FIRST_STEP, str(tmp_path / str(number))]
        runs.append((cpu_seconds(command), cpu_seconds([sys.executable, "-c", "import torch"])))
    assert min(a for a, _ in runs) <= 1.3 * min(b for _, b in runs)
