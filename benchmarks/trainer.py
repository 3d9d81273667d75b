"""Compare cnnzoo's training loop with a bare PyTorch loop, other trainers and plain scripts.

    python benchmarks/trainer.py [overhead|resnet18|time_to_accuracy|all]
        [--rounds N] [--threads N] [--quick] [--write] [--only PATTERN] [--data-dir DIR]

`overhead`: the time of a step divided by that of a bare loop with the same metrics, for a tiny
network and LeNet-5 on one thread; see benchmarks/overhead.py. `resnet18`: a step of
`resnet18_cifar`, batch 128, two threads, compared with torchvision's reference loop and with
`cnnzoo train` without some of its optimisations; every measurement is a new process
(benchmarks/resnet18_step.py). `time_to_accuracy`: seconds from the start of the process to an
accuracy on the test split of Fashion-MNIST, two threads, compared with a plain script
(benchmarks/plain_fashion.py).

The other trainers are optional; the table marks those that are not installed. To install them:

    python -m venv .venv-peers
    .venv-peers/bin/pip install -r requirements.txt -r benchmarks/requirements.txt
    .venv-peers/bin/python benchmarks/trainer.py

A ratio is the median over rounds of one time divided by the other in the same round, with the
quartiles in brackets. Prints Markdown tables; --write also puts them into docs/performance.md,
between their markers.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import peers
import resnet18_step
import synthetic
import torch

from cnn_core.create import build
from cnn_core.training import Run
from cnn_core.training.checkpoint import Checkpoints
from cnn_core.training.evaluation import eval_setup, evaluate_split
from cnn_core.training.trained import Trained

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
FASHION = HERE.parent.parent / "shared" / "data" / "fashion-mnist"
TARGETS = (0.88, 0.90, 0.92)
RECIPES = ("lenet5_modern-fashion_mnist-fast", "resnet20_cifar-fashion_mnist-fast")
TITLES = {
    "tiny": "a convolution and a linear layer, batch 8",
    "lenet5": "`lenet5`, batch 64",
}
SECONDS_TO_ACCURACY = list[tuple[float, float, float]]  # seconds, epochs, accuracy


def main() -> None:
    """Run the chosen benchmarks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--rounds", type=int, help="default: 15, 5 and 3")
    parser.add_argument("--threads", type=int, help="default: 1, 2 and 2")
    parser.add_argument("--quick", action="store_true", help="a trial with few rounds and steps")
    parser.add_argument("--write", action="store_true", help="update docs/performance.md")
    parser.add_argument("--only", default="*", help="only matching trainers or sides")
    parser.add_argument("--data-dir", type=Path, default=FASHION)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="for time_to_accuracy")
    chosen = parser.parse_args()
    for name, benchmark in BENCHMARKS.items():
        if chosen.what in (name, "all"):
            lines = []
            for line in benchmark(chosen):
                print(line, flush=True)
                lines.append(line)
            print()
            if chosen.write:
                write(name, "\n".join(lines))


def overhead(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a table for each task: all trainers, relative to the bare loops."""
    rounds, threads = chosen.rounds or (2 if chosen.quick else 15), chosen.threads or 1
    yield facts(rounds, threads, installed())
    for task, title in TITLES.items():
        steps = synthetic.TASKS[task].steps // (4 if chosen.quick else 1)
        yield f"\n{title}, {steps} steps an epoch:\n"
        yield "| trainer | ms a step | over the bare loop | over it with fused SGD | loss |"
        yield "|---|--:|--:|--:|--:|"
        for name in peers.CONTESTANTS:
            if fnmatch.fnmatch(name, chosen.only) and name != peers.BARE:
                arguments = ["--rounds", rounds, "--threads", threads, "--steps", steps]
                yield from overhead_rows(task, name, steps, arguments)


def overhead_rows(task: str, name: str, steps: int, arguments: list[Any]) -> Iterator[str]:
    """Measure one trainer; yield its row, preceded by the bare loop's for the fused variant."""
    module, package = peers.MODULES.get(name.partition(",")[0], ("torch", "torch"))
    if util.find_spec(module) is None:
        yield f"| {name} | {package} is not installed | | | |"
        return
    done = run(["overhead.py", task, name, *arguments])
    if done.returncode:
        yield f"| {name} | failed: {done.stderr.strip().splitlines()[-1][:80]} | | | |"
        return
    found: dict[str, list[list[float]]] = json.loads(done.stdout)
    seconds = {who: [numbers[0] for numbers in rounds] for who, rounds in found.items()}
    for who in (peers.BARE, name) if name == peers.FUSED else (name,):
        milliseconds = 1000 * statistics.median(seconds[who]) / steps
        over = [ratio(seconds[who], seconds[base]) for base in (peers.BARE, peers.FUSED)]
        loss = statistics.mean(numbers[1] for numbers in found[who])
        yield f"| {who} | {milliseconds:.3f} | {over[0]} | {over[1]} | {loss:.2f} |"


def resnet18(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table for a step of ResNet-18."""
    rounds, threads = chosen.rounds or (1 if chosen.quick else 5), chosen.threads or 2
    arguments = ["--steps", 1 if chosen.quick else 5, "--threads", threads]
    sides = [side for side in resnet18_step.SIDES if fnmatch.fnmatch(side, chosen.only)]
    sides = list(dict.fromkeys(["torchvision", *sides]))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            done = run(["resnet18_step.py", side, *arguments], threads, check=True)
            seconds[side].append(float(done.stdout.splitlines()[-1]))
    yield facts(rounds, threads, f"batch {synthetic.TASKS['resnet18'].batch}, 3x32x32")
    yield "\n| loop | s a step | images/s | faster than torchvision's by |\n|---|--:|--:|--:|"
    for side, taken in seconds.items():
        middle = statistics.median(taken)
        speed = synthetic.TASKS["resnet18"].batch / middle
        faster = ratio(seconds["torchvision"], taken)
        yield f"| {side} | {middle:.2f} | {speed:.1f} | {faster} |"


def time_to_accuracy(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table with the times to reach each accuracy."""
    if not chosen.data_dir.is_dir():
        yield f"not measured: {chosen.data_dir} does not exist (--data-dir DIR)"
        return
    rounds, threads = chosen.rounds or (1 if chosen.quick else 3), chosen.threads or 2
    ours: dict[str, list[SECONDS_TO_ACCURACY]] = {recipe: [] for recipe in chosen.recipes}
    plain = []
    with tempfile.TemporaryDirectory() as folder:
        unpacked = unpack(chosen.data_dir, Path(folder))
        for seed in range(rounds):
            for recipe, found in ours.items():
                found.append(command(chosen, recipe, seed, threads))
            plain.append(script(chosen, unpacked, seed, threads))
    yield facts(rounds, threads, "seeds from 0 on")
    titles = " | ".join(f"`{recipe}`" for recipe in ours)
    yield f"\n| test accuracy | {titles} | plain script | the first of ours is faster by |"
    yield f"|---|{'--:|' * len(ours)}--:|--:|"
    for target in TARGETS:
        mine = [[first(line, target) for line in lines] for lines in ours.values()]
        other = [first(line, target) for line in plain]
        yield f"| {target:.0%} | {' | '.join(map(shown, [*mine, other]))} | {gain(mine, other)} |"


def gain(
    mine: list[list[tuple[float, float] | None]], other: list[tuple[float, float] | None]
) -> str:
    """Return the script's times divided by those of our fastest recipe.

    Return "" if the script or all recipes missed the accuracy in some round.
    """
    whole = [[at[0] for at in times if at is not None] for times in mine if None not in times]
    if not whole or None in other:
        return ""
    return ratio([at[0] for at in other if at is not None], min(whole, key=statistics.median))


def command(
    chosen: argparse.Namespace, recipe: str, seed: int, threads: int
) -> SECONDS_TO_ACCURACY:
    """Run `cnnzoo train` and return the seconds, epochs and accuracy of each checkpoint.

    All checkpoints are kept and evaluated only after training. The seconds count from the start of
    the process until the checkpoint was on disk: with imports, decoding, validation and saving.
    """
    more = ["--set", "keep=1000", "--seed", seed, *(["--epochs", 1] if chosen.quick else [])]
    where = ["--data", "fashion_mnist", "--data-dir", chosen.data_dir.absolute()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began = time.time()
        arguments = ["train", *where, "--recipe", recipe, *more]
        run(["-m", "cnn_core", *arguments, "--out", out], threads, check=True)
        return [(when - began, *rest) for when, *rest in reached(Run.open(out), chosen.data_dir)]


def reached(run: Run, data_dir: Path) -> Iterator[tuple[float, float, float]]:
    """Yield the time of day, epochs and test accuracy of each checkpoint."""
    trained = Trained(run, data_dir=data_dir, device="cpu")
    setup, data = eval_setup(trained), trained.dataset
    checkpoints = Checkpoints(run.state)
    for name in checkpoints.names():
        state, model = checkpoints.read(name), build(trained.weights)
        model.load_state_dict(dict(state.eval_weights))
        found = evaluate_split(model, data.split("test"), setup)
        steps = len(data.split("train")) * (1 - run.recipe.validation) / run.recipe.batch_size
        written = (run.state / name).stat().st_ctime  # the rename, once the file was complete
        yield written, round(state.epoch + state.step / steps, 2), found["top1"]


def script(
    chosen: argparse.Namespace, folder: Path, seed: int, threads: int
) -> SECONDS_TO_ACCURACY:
    """Run the plain script; return the seconds without evaluation, the epoch and the accuracy."""
    until = 0 if chosen.quick else 100 * max(TARGETS)
    arguments = ["plain_fashion.py", folder, "--until", until, "--seed", seed]
    began = time.time()
    done = run(arguments, threads, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(when - began, epoch, accuracy) for when, epoch, accuracy in lines]


def unpack(source: Path, folder: Path) -> Path:
    """Unpack the files into the layout of torchvision's downloads; return the folder."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in source.glob("*-ubyte*"):
        data = path.read_bytes()
        unzipped = gzip.decompress(data) if path.suffix == ".gz" else data
        (raw / path.name.removesuffix(".gz")).write_bytes(unzipped)
    return folder


def first(line: SECONDS_TO_ACCURACY, target: float) -> tuple[float, float] | None:
    """Return the seconds and epochs until an accuracy was first reached, or None."""
    return next((tuple(at) for *at, accuracy in line if accuracy >= target), None)


def shown(found: list[tuple[float, float] | None]) -> str:
    """Return the median seconds and the range of epochs: "61 s (epoch 3 to 4)"."""
    if missed := found.count(None):
        return "not reached" if missed == len(found) else f"not reached by {missed}"
    seconds, epochs = zip(*found, strict=True)
    low, high = min(epochs), max(epochs)
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{statistics.median(seconds):.0f} s (epoch {span})"


def ratio(times: Sequence[float], bases: Sequence[float]) -> str:
    """Return the median of the pairwise ratios, with quartiles."""
    ratios = [time / base for time, base in zip(times, bases, strict=True)]
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def run(
    arguments: list[Any], threads: int = 1, *, check: bool = False
) -> subprocess.CompletedProcess:
    """Run Python in this folder with these arguments and number of threads."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=check,
    )


def installed() -> str:
    """Return the installed trainers with their versions."""
    found = [package for module, package in peers.MODULES.values() if util.find_spec(module)]
    return ", ".join(f"{package} {metadata.version(package)}" for package in found)


def facts(rounds: int, threads: int, more: str) -> str:
    """Return the line above a table: torch's version, threads, rounds and `more`."""
    many = f"{threads} thread{'s' * (threads > 1)}, {rounds} round{'s' * (rounds > 1)}"
    return ", ".join(filter(None, (f"torch {torch.__version__}", many, more)))


def write(name: str, text: str) -> None:
    """Put a table between its markers in docs/performance.md."""
    begin, end = f"<!-- trainer:{name} -->", f"<!-- /trainer:{name} -->"
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE}: no {begin} … {end}")
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page), encoding="utf-8")


BENCHMARKS = {
    "overhead": overhead,
    "resnet18": resnet18,
    "time_to_accuracy": time_to_accuracy,
}

if __name__ == "__main__":
    main()
