"""Run cnnzoo commands in forks of a process that has imported torch and the like already.

These imports are three quarters of the CPU time of a short command, and the tests run hundreds of
commands. Nothing of cnnzoo is imported before the fork, and a fork has the environment, folder,
path and streams that a new process would have.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass

# What several commands import, and take no settings from that a test would change.
IMPORTED = ("torch", "torchvision", "matplotlib.figure", "rich.progress", "sklearn.datasets")
SECONDS = 300


@dataclass(frozen=True)
class Job:
    """`python -m` with a command, in a folder; `path` are folders in PYTHONPATH.

    `streams` are the files, or the terminal, of stdin, stdout and stderr.
    """

    command: tuple[str, ...]
    cwd: str
    environment: dict[str, str]
    streams: tuple[str, str, str]
    path: tuple[str, ...] = ()


class WarmPython:
    """A process that waits for commands and runs each in a fork of itself."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *jobs: Job) -> list[int]:
        """Run jobs side by side; return their exit codes."""
        self._server.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()


def _run(job: Job) -> None:
    """Be the process that runs the command."""
    signal.alarm(SECONDS)
    for number, name in enumerate(job.streams):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOCTTY), number)
    os.environ.clear()
    os.environ.update(job.environment)
    os.chdir(job.cwd)
    # As `python -m` has it: the current folder first, then PYTHONPATH.
    sys.path[:1] = [job.cwd, *job.path]
    name, *sys.argv[1:] = job.command
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _exit_code(job: Job) -> int:
    try:
        _run(job)
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _start(job: Job) -> int:
    """Run a job in a fork; return the fork's id."""
    if child := os.fork():
        return child
    code = _exit_code(job)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    # Not sys.exit: freeing all that was imported takes as long as importing it.
    os._exit(code)


def _serve() -> None:
    for name in IMPORTED:
        __import__(name)
    for line in sys.stdin:
        children = [_start(Job(**job)) for job in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    _serve()
