"""Compare the startup time of cnnzoo with alternatives; `make bench` runs this.

Each command runs several times in a process of its own, in turn with the others. The tables give
the smallest CPU time (user and system) and its ratio to the first row of the group.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

RUNS = 7
GROUPS = {
    "listing": {
        "import click, pluggy, importlib.metadata": [
            "-c",
            "import click, pluggy, importlib.metadata",
        ],
        "cnnzoo --help": ["-m", "cnn_core", "--help"],
        "cnnzoo list-models": ["-m", "cnn_core", "list-models"],
        "torchvision.models.list_models()": [
            "-c",
            "import torchvision; torchvision.models.list_models()",
        ],
    },
    "to the first training step": {
        "import torch": ["-c", "import torch"],
        "cnnzoo train lenet5 --data digits": [
            "-c",
            "import os, tempfile\n"
            "from cnn_core.plugins import Observers\n"
            "def notify(self, hook, **facts):\n"
            "    if hook == 'step_end': os._exit(0)\n"
            "Observers.notify, Observers.wants = notify, lambda self, hook: True\n"
            "from cnn_core.cli import main\n"
            "main(['train', 'lenet5', '--data', 'digits', '--out', tempfile.mkdtemp()])",
        ],
        "the same by hand, torch.optim.SGD, sklearn.datasets": [
            "-c",
            "import torch\n"
            "from sklearn.datasets import load_digits\n"
            "from cnn_arch_lenet import LeNet5\n"
            "digits = load_digits()\n"
            "x = torch.from_numpy(digits.images[:32]).float()[:, None] / 16\n"
            "x = torch.nn.functional.interpolate(x, (32, 32))\n"
            "model = LeNet5()\n"
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.001)\n"
            "y = torch.from_numpy(digits.target[:32])\n"
            "torch.nn.functional.cross_entropy(model(x), y).backward()\n"
            "optimizer.step()",
        ],
        "import torch, torchvision": ["-c", "import torch, torchvision"],
    },
}


def cpu_seconds(arguments: list[str]) -> float:
    """Run Python with these arguments; return the CPU seconds of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            cwd=folder,
            env=environment,
            capture_output=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print one table for each group."""
    for title, commands in GROUPS.items():
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, arguments in commands.items():
                times[name].append(cpu_seconds(arguments))
        best = {name: min(seconds) for name, seconds in times.items()}
        first = next(iter(best.values()))
        print(f"\n| {title} | CPU s | ratio |\n|---|--:|--:|")
        for name, seconds in best.items():
            print(f"| `{name}` | {seconds:.2f} | {seconds / first:.2f} |")


if __name__ == "__main__":
    main()
