"""The overhead of one trainer over a bare PyTorch loop.

    python benchmarks/overhead.py TASK CONTESTANT [--rounds N] [--threads N] [--steps N]

benchmarks/trainer.py runs this script once for each contestant, so that no contestant is affected
by another's changes to torch or the process. In every round the contestant, the bare loop and the
bare loop with torch's fused SGD train the same network from the same weights for two epochs; the
order changes from round to round. The second epoch is timed: wall time from before its first step
to after its last, including its metrics, without checkpoints and validation. Prints the seconds as
JSON.

Output goes to a pseudo-terminal that another process reads, since progress bars are part of the
cost. glibc keeps freed memory for all contestants, as `cnn_core.train` does.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import struct
import subprocess
import tempfile
import termios
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import synthetic
import torch
from peers import BARE, CONTESTANTS, EPOCHS, FUSED, Job

from cnn_core.training.allocator import keep_memory


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Send stdout and stderr to a pseudo-terminal, 120 columns wide, read by `cat`."""
    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with open(os.devnull, "wb") as nothing:
        reader = subprocess.Popen(["cat"], stdin=main, stdout=nothing, stderr=nothing)
    os.close(main)
    with (
        os.fdopen(side, "w", buffering=1) as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        yield
    reader.wait()


def rounds(name: str, job: Job, count: int) -> dict[str, list[list[float]]]:
    """Run the contestant and the two bare loops in turn.

    Return, by name and round, the seconds of the second epoch and its mean loss, top-1 and top-5.
    """
    names = dict.fromkeys((BARE, FUSED, name))
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    threads = torch.get_num_threads()
    for order in itertools.islice(itertools.cycle(itertools.permutations(names)), count):
        for contestant in order:
            trained = replace(job, seconds=[], totals=[0.0, 0.0, 0.0])
            CONTESTANTS[contestant](trained)
            assert (len(trained.seconds), torch.get_num_threads()) == (EPOCHS, threads)
            means = [total / len(job.images) for total in trained.totals]
            found[contestant].append([trained.seconds[-1], *means])
    return found


def main() -> None:
    """Measure one contestant and print its times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=synthetic.TASKS)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    os.environ["TERM"] = "xterm-256color"
    task = synthetic.TASKS[chosen.task]
    task = replace(task, steps=chosen.steps or task.steps)
    with tempfile.TemporaryDirectory() as folder, terminal(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        synthetic.offer(Path(folder), task)
        found = rounds(chosen.contestant, Job(task, *synthetic.normalised(task)), chosen.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
