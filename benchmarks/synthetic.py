"""A plugin for the benchmarks: a tiny network, and synthetic images that are free to load.

`offer` registers this module with the current process as if pip had installed it, so that
`cnn_core.train` finds both by name and runs exactly the code that users run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnn_core import DatasetSpec, ModelSpec, Paper, hookimpl
from cnn_core.data import Dataset, Preprocessing, Split

__all__ = [
    "CLASSES",
    "DATA",
    "TASKS",
    "Task",
    "load",
    "normalised",
    "offer",
    "random_images",
    "tiny",
]

CLASSES = 10
DATA = "synthetic"


@dataclass(frozen=True)
class Task:
    """A training task: model, image shape (C H W), batch size, steps per epoch, learning rate."""

    model: str
    shape: tuple[int, int, int]
    batch: int
    steps: int
    lr: float

    @property
    def spec(self) -> DatasetSpec:
        """The spec of a dataset with exactly as many training images as an epoch uses."""
        return DatasetSpec(
            name=DATA,
            target="synthetic:load",
            summary="an image for each class, with noise",
            classes=tuple(f"class {number}" for number in range(CLASSES)),
            image=self.shape,
            splits={"train": self.steps * self.batch, "test": CLASSES},
            mean=(0.5,) * self.shape[0],
            std=(0.2,) * self.shape[0],
            fit="resize",
            licence="none",
            citation="none",
            homepage="https://example.org",
        )


TASKS = {
    "tiny": Task("tiny", (1, 16, 16), batch=8, steps=800, lr=0.01),
    "lenet5": Task("lenet5", (1, 32, 32), batch=64, steps=80, lr=0.001),
    "resnet18": Task("resnet18_cifar", (3, 32, 32), batch=128, steps=6, lr=0.1),
}
_offered: list[DatasetSpec] = []


def tiny(num_classes: int = CLASSES, in_channels: int = 1) -> nn.Sequential:
    """Return a convolution and a linear layer: so little computation that the loop dominates."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
        *(nn.Flatten(), nn.Linear(128, num_classes)),
    )


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the dataset; `root` and `download` are ignored."""
    return Dataset(spec, {name: random_images(spec, count) for name, count in spec.splits.items()})


def random_images(spec: DatasetSpec, count: int) -> Split:
    """Return `count` images, each the random pattern of its class plus twice as much noise."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.rand(len(spec.classes), *spec.image, generator=generator)
    targets = torch.arange(count) % len(spec.classes)
    noise = torch.rand(count, *spec.image, generator=generator)
    return Split(((classes[targets] + 2 * noise) * 85).to(torch.uint8), targets)


def normalised(task: Task) -> tuple[Tensor, Tensor]:
    """Return the training split as normalised float32 images, N C H W, and targets, N."""
    spec, size = task.spec, task.shape[1:]
    split = random_images(spec, spec.splits["train"])
    prepare = Preprocessing(size=size, image_size=size, fit=spec.fit, mean=spec.mean, std=spec.std)
    return prepare(split.images), split.targets


def offer(folder: Path, task: Task) -> None:
    """Write the metadata of this plugin to an empty folder, and add the folder to sys.path."""
    info = folder / "cnnzoo_benchmarks-0.dist-info"
    info.mkdir()
    metadata = "Metadata-Version: 2.1\nName: cnnzoo-benchmarks\nVersion: 0\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[cnnzoo]\n{DATA} = synthetic\n", encoding="utf-8")
    sys.path.append(str(folder))
    _offered[:] = [task.spec]


@hookimpl
def cnnzoo_datasets() -> list[DatasetSpec]:
    return _offered


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="tiny",
            target="synthetic:tiny",
            family="synthetic",
            variant="tiny",
            summary="a convolution and a linear layer",
            paper=Paper(title="none", authors="none", year=2026, url="https://example.org"),
            input=(1, 16, 16),
            min_size=4,
            num_classes=CLASSES,
            params=1_370,
            macs=19_712,
            stages=("0", "4"),
            cam_stage="0",
        )
    ]
