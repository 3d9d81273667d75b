"""Compare cnnzoo's and torchvision's training from image files, and time the start of large sets.

    python benchmarks/files.py [--images N] [--rounds N] [--batch N] [--photographs FOLDER]
        [--first-step N]

Photographs of 500x375 pixels, JPEG of quality 90, become random crops of 224x224, half of them
mirrored, normalised, in batches: with torchvision's ImageFolder, PIL and DataLoader; with cnnzoo
from the same files (`pipeline = "streaming"`); and from a pack (`pipeline = "packed"`), whose
images have a shorter side of 256 pixels. With no workers and with two, one thread each. All take
turns in one process. A ratio is the median over rounds, with quartiles in brackets. CPU time, of
all processes, is compared likewise: it depends less on what else the machine does. Freed memory is
kept (`cnn_core.training.allocator`), as in every training with cnnzoo; torchvision gains as much.

With --first-step, N files are made that are links to 64 photographs, in folders of 1,000 classes,
and the seconds are printed from the start of a training to its first step.

Photographs are crops of the two that come with scikit-learn, or of those in a folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from cnn_core.data import Preprocessing, batches, load_dataset
from cnn_core.data.augment import Augmentation
from cnn_core.data.packing import pack
from cnn_core.data.pipeline import load_splits
from cnn_core.training.allocator import keep_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, HEIGHT, SIDE, RESIZE = 500, 375, 224, 256
CLASSES, LINKED, LINKED_CLASSES = 10, 64, 1000

FIRST_STEP = """
import sys, time
began = time.perf_counter()
import cnn_core

class Stop:
    @cnn_core.hookimpl
    def cnnzoo_step_end(self, run, epoch, step, loss):
        print(time.perf_counter() - began, flush=True)
        raise KeyboardInterrupt

try:
    data, out = f"imagefolder:{sys.argv[1]}", sys.argv[2]
    cnn_core.train("mobilenet_v1", data, observers=[Stop()], workers=2, out=out)
except KeyboardInterrupt:
    pass
"""


@dataclass(frozen=True)
class Epoch:
    """What one epoch took: seconds on the clock, and CPU seconds of all processes."""

    wall: float
    cpu: float


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--first-step", type=int, metavar="N")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["CNNZOO_CACHE"] = str(Path(temporary) / "cache")
        folder = Path(temporary) / "images"
        if chosen.first_step:
            link_photographs(folder, chosen.first_step, chosen.photographs)
            print_first_step(folder, chosen.first_step)
            return
        write_photographs(folder, chosen.images, CLASSES, chosen.photographs)
        print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, ", end="")
        print(f"{chosen.images:,} images, batch {chosen.batch}, {chosen.rounds} rounds\n")
        print("| pipeline | workers | images/s | faster by | by CPU time |")
        print("|---|--:|--:|--:|--:|")
        for workers in (0, 2):
            print_rows(contestants(folder, chosen.batch, workers), workers, chosen)


def write_photographs(folder: Path, count: int, classes: int, source: Path | None) -> list[Path]:
    """Write crops of photographs as JPEG files, and return their paths."""
    if source is None:
        photographs = [Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower")]
    else:
        photographs = [Image.open(path).convert("RGB") for path in sorted(source.iterdir())]
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        image = photographs[number % len(photographs)]
        share = random.uniform(0.6, 1)
        width, height = (int(share * side) for side in image.size)
        left, top = random.integers(0, (image.width - width + 1, image.height - height + 1))
        path = folder / f"class {number % classes:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = image.crop((left, top, left + width, top + height))
        part.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(path, quality=90)
        paths.append(path)
    return paths


def contestants(
    folder: Path, batch: int, workers: int
) -> dict[str, Callable[[int], Iterable[Tensor]]]:
    """Return functions that yield the images of an epoch, by name; the first is torchvision's."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    theirs = torchvision.datasets.ImageFolder(str(folder), augment)
    loader = DataLoader(theirs, batch, shuffle=True, num_workers=workers)
    dataset = load_dataset(f"imagefolder:{folder}").pooled()
    preprocessing = Preprocessing(
        size=(SIDE, SIDE),
        image_size=dataset.spec.image[1:],
        fit="crop",
        resize=RESIZE,
        mean=MEAN,
        std=STD,
    )
    files = load_splits(dataset, preprocessing, "streaming").split("all")
    packed = pack(dataset, preprocessing, threads=2)[0].split("all")

    def ours(split: object) -> Callable[[int], Iterable[Tensor]]:
        def epoch(number: int) -> Iterable[Tensor]:
            draws = Augmentation(crop=(0.08, 1.0), flip=True).draws(0, number)
            for found in batches(split, preprocessing, batch, draws=draws, workers=workers):
                yield found.images

        return epoch

    return {
        "torchvision, files": lambda _: (images for images, _ in loader),
        "cnnzoo, files": ours(files),
        "cnnzoo, packed": ours(packed),
    }


def print_rows(
    epochs: dict[str, Callable[[int], Iterable[Tensor]]], workers: int, chosen: argparse.Namespace
) -> None:
    """Measure the contestants in turns and print a row for each."""
    found: dict[str, list[Epoch]] = {name: [] for name in epochs}
    for number in range(chosen.rounds):
        for name, epoch in epochs.items():
            found[name].append(timed(epoch(number), chosen.images))
    theirs = found["torchvision, files"]
    for name, ours in found.items():
        pairs = list(zip(theirs, ours, strict=True))
        wall = quartiles([other.wall / own.wall for other, own in pairs])
        cpu = quartiles([other.cpu / own.cpu for other, own in pairs])
        speed = chosen.images / statistics.median(own.wall for own in ours)
        print(f"| {name} | {workers} | {speed:,.0f} | {wall} | {cpu} |", flush=True)


def timed(epoch: Iterable[Tensor], count: int) -> Epoch:
    """Return what it takes to go through an epoch, whose images are counted."""
    began, cpu = time.perf_counter(), cpu_seconds()
    seen = sum(map(len, epoch))
    if seen != count:
        raise RuntimeError(f"{seen} images, expected {count}")
    return Epoch(time.perf_counter() - began, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def quartiles(values: list[float]) -> str:
    """Return "median (lower quartile to upper quartile)"."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def link_photographs(folder: Path, count: int, source: Path | None) -> None:
    """Make `count` files that are links to a few photographs."""
    paths = write_photographs(folder.parent / "photographs", LINKED, 1, source)
    for number in range(LINKED_CLASSES):
        (folder / f"class {number:03}").mkdir(parents=True)
    for number in range(count):
        link = folder / f"class {number % LINKED_CLASSES:03}" / f"{number // LINKED_CLASSES}.jpg"
        os.link(paths[number % LINKED], link)


def print_first_step(folder: Path, count: int) -> None:
    """Print the seconds from the start of a process to the first step, and its memory."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_STEP, str(folder), str(Path(out) / "run")],
            check=True,
            capture_output=True,
            text=True,
        )
    seconds = float(done.stdout.split()[0])
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{count:,} files: first step after {seconds:.1f} s; largest process {memory:.2f} GB")


if __name__ == "__main__":
    main()
