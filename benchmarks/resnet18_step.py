"""Time a training step of `resnet18_cifar`, in a process of its own.

    python benchmarks/resnet18_step.py SIDE [--steps N] [--threads N]

SIDE is "torchvision", "cnnzoo" (the defaults of `cnnzoo train`), or cnnzoo without some of its
optimisations. benchmarks/trainer.py runs this script in a new process each time, because settings
of the allocator apply to the whole process. The first step is a warm-up; the script prints the
mean of the others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipeline
import synthetic
import torch
from torch import Tensor, nn

from cnn_core import create_model, train
from cnn_core.data import Batch, Split
from cnn_core.training import loop

PARTS = ("allocator", "memory format", "pipeline")
SIDES = {  # the optimisations that are switched off; None: torchvision's loop
    "torchvision": None,
    "cnnzoo": (),
    **{f"cnnzoo, without {part}": (part,) for part in PARTS},
    "cnnzoo, without all three": PARTS,
}
SETTINGS: dict[str, Any] = {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}


class Clock:
    """An observer that notes the time at which each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def cnnzoo_step_end(self, step: int) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the mean duration of all steps but the first."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def ours(task: synthetic.Task, left_out: tuple[str, ...]) -> float:
    """Train with `cnn_core.train`; return the seconds of a step."""
    more: dict[str, Any] = {}
    if "allocator" in left_out:
        os.environ["CNNZOO_MALLOC"] = "default"
    if "memory format" in left_out:
        more["memory_format"] = "contiguous"
    if "pipeline" in left_out:
        loop.batches = through_pil
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        synthetic.offer(Path(folder), task)
        train(
            *(task.model, synthetic.DATA),
            out=Path(folder) / "run",
            device="cpu",
            observers=[clock],
            epochs=1,
            batch_size=task.batch,
            lr=task.lr,
            validation=0.0,
            shift=4,
            flip=True,
            **SETTINGS,
            **more,
        )
    return clock.seconds()


def through_pil(split: Split, _: Any, size: int, **more: Any) -> Iterator[Batch]:
    """Yield cnnzoo's `Batch` from torchvision's pipeline."""
    whole = Split(split.images, split.targets)
    for images, targets in pipeline.theirs(whole, pipeline.old(True), size, 0):
        yield Batch(images, targets, torch.arange(len(targets)))


def theirs(task: synthetic.Task) -> float:
    """Train as torchvision's reference script for classification does, on the CPU.

    PIL crops and mirrors the images one by one, without workers. Loss and accuracies are computed
    at every step. Memory format and allocator are torch's defaults.
    """
    torch.manual_seed(0)
    model = create_model(task.model, num_classes=synthetic.CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr, **SETTINGS)
    criterion, clock = nn.CrossEntropyLoss(), Clock()
    split = synthetic.random_images(task.spec, task.spec.splits["train"])
    sums = [0.0, 0.0, 0.0]
    model.train()
    loader = pipeline.theirs(split, pipeline.old(True), task.batch, 0)
    for step, (images, targets) in enumerate(loader):
        logits = model(images)
        loss = criterion(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = (loss.item(), *accuracies(logits, targets))
        sums = [total + value * len(targets) for total, value in zip(sums, found, strict=True)]
        clock.cnnzoo_step_end(step)
    return clock.seconds()


@torch.inference_mode()
def accuracies(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the top-1 and top-5 accuracy of a batch."""
    hits = logits.topk(5).indices == targets[:, None]
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


def main() -> None:
    """Measure one side and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    task = replace(synthetic.TASKS["resnet18"], steps=chosen.steps + 1)
    left_out = SIDES[chosen.side]
    print(theirs(task) if left_out is None else ours(task, left_out))


if __name__ == "__main__":
    main()
