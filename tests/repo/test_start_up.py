"""What starting costs, in function calls and imports: they do not depend on the machine.

CPU time as a ratio to a bare start is measured by benchmarks/start_up.py.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from cnn_core.plugins import HEAVY

BARE = "import click, pluggy, importlib.metadata"
MAIN = "from cnn_core.cli import main\nmain([{!r}])"
LIGHT = [
    "--help",
    "--version",
    "list-models",
    "list-datasets",
    "list-recipes",
    "list-keys",
    "plugins",
]

COUNTED = """
import sys
calls = [0]
def count(frame, event, argument):
    calls[0] += 1
sys.setprofile(count)
{body}
sys.setprofile(None)
with open({path!r}, "w") as file:
    file.write(str(calls[0]))
"""


def calls(body: str, path: str, *, terminal: bool = False) -> int:
    """Run Python code in a new process; return how many function calls it makes."""
    command = [sys.executable, "-c", COUNTED.format(body=body, path=path)]
    leader, follower = pty.openpty() if terminal else (-1, subprocess.DEVNULL)
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    if terminal:
        os.close(follower)
        drain(leader)
    assert child.wait() == 0
    with open(path, encoding="utf-8") as file:
        return int(file.read())


def drain(leader: int) -> None:
    """Read a terminal until its other end is closed."""
    try:
        while os.read(leader, 65536):
            pass
    except OSError:
        pass
    os.close(leader)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("argument", ["--help", "list-models"])
def test_listing_calls_few_functions(argument, terminal, tmp_path):
    calls(BARE, str(tmp_path / "calls"))  # compiles, where bytecode is not there yet
    calls(MAIN.format(argument), str(tmp_path / "calls"))
    bare = calls(BARE, str(tmp_path / "calls"))
    listing = calls(MAIN.format(argument), str(tmp_path / "calls"), terminal=terminal)
    assert listing <= 3.2 * bare


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


def test_the_first_training_step_imports_little_beside_torch(tmp_path):
    command = [sys.executable, "-c", FIRST_STEP, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
