"""Compare the images per second of cnnzoo's and torchvision's data pipelines.

    python benchmarks/pipeline.py [--images N] [--rounds N] [--batch N]

Each pipeline yields an epoch of normalised 3x32x32 images in batches: with random crops (padding
4) and mirroring, and without augmentation. All pipelines take turns in one process, with one
thread each. A ratio is the median over rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from cnn_core.data import Preprocessing, Split, batches
from cnn_core.data.augment import Augmentation

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main() -> None:
    """Measure each pipeline and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    split = Split(
        torch.randint(0, 256, (chosen.images, 3, 32, 32), dtype=torch.uint8),
        torch.randint(0, 10, (chosen.images,)),
    )
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, ", end="")
    print(f"{chosen.images:,} images, batch {chosen.batch}, one thread, {chosen.rounds} rounds\n")
    for changed in (True, False):
        print("with random crop and mirroring" if changed else "without augmentation")
        print("\n| pipeline | images/s | ours is faster by |\n|---|--:|--:|")
        seconds: dict[str, list[float]] = {}
        for _ in range(chosen.rounds):
            for name, epoch in contestants(split, changed, chosen.batch).items():
                seconds.setdefault(name, []).append(timed(epoch, chosen.images))
        ours = seconds["cnnzoo, in memory"]
        for name, theirs in seconds.items():
            ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
            speed = chosen.images / statistics.median(theirs)
            print(f"| {name} | {speed:,.0f} | {ratio:.1f}x |", flush=True)
        print()


def contestants(
    split: Split, changed: bool, batch: int
) -> dict[str, Callable[[], Iterable[tuple[Tensor, Tensor]]]]:
    """Return functions that iterate over one epoch, by name."""
    return {
        "cnnzoo, in memory": lambda: ours(split, changed, batch),
        "torchvision, PIL, no workers": lambda: theirs(split, old(changed), batch, 0),
        "torchvision v2, PIL, no workers": lambda: theirs(split, new(changed, False), batch, 0),
        "torchvision v2, tensors, no workers": lambda: theirs(split, new(changed, True), batch, 0),
        "torchvision v2, tensors, 2 workers": lambda: theirs(split, new(changed, True), batch, 2),
        "torchvision, PIL, 2 workers": lambda: theirs(split, old(changed), batch, 2),
    }


def ours(split: Split, changed: bool, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch from cnnzoo's pipeline."""
    what = Augmentation(shift=4, flip=True) if changed else Augmentation()
    prepare = Preprocessing(size=(32, 32), image_size=(32, 32), fit="resize", mean=MEAN, std=STD)
    for taken in batches(split, prepare, batch, draws=what.draws(0, 0)):
        yield taken.images, taken.targets


def theirs(
    split: Split, transform: Callable, batch: int, workers: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Return a DataLoader over torchvision's own CIFAR10 class, with these images in it."""
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = split.targets.tolist()
    dataset.transform, dataset.target_transform = transform, None
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers)


def old(changed: bool) -> Callable:
    """Return torchvision's v1 transforms, on PIL images, as in most tutorials."""
    steps = [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip()] if changed else []
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(MEAN, STD)])


def new(changed: bool, tensors: bool) -> Callable:
    """Return torchvision's v2 transforms, on PIL images or on uint8 tensors."""
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if changed else []
    image = [v2.ToImage()]
    ends = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([*image, *steps, *ends] if tensors else [*steps, *image, *ends])


def timed(epoch: Callable[[], Iterable[tuple[Tensor, Tensor]]], images: int) -> float:
    """Return the seconds of one epoch."""
    began = time.perf_counter()
    seen = sum(len(targets) for _, targets in epoch())
    assert seen == images
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
