"""Loss and metrics of an epoch, or of a split, as they add up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.tasks import metrics_of
from cnn_core.tasks.segmentation import center_crop

if TYPE_CHECKING:
    from cnn_core.training.distributed import World

__all__ = ["EpochMetrics"]

ENOUGH = 2**16  # numbers that are waited for: metrics of many small batches are taken at once


class EpochMetrics:
    """The metrics of all images so far, and the mean loss of images, or of pixels that count.

    Metrics are of whole numbers, added up: when they are taken changes nothing, so those of
    small batches wait until there are enough to be worth a call.
    """

    def __init__(self, task: str, num_classes: int, topk: int, evaluated: str = "") -> None:
        self._metrics = metrics_of(task, num_classes, topk, evaluated)
        self._loss, self._count = 0.0, 0
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._numbers = 0

    def add(self, loss: float, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: its mean loss, logits N x classes or N x classes x h x w, its targets."""
        count = _counted(logits, targets)
        self._loss += loss * count
        self._count += count
        self._waiting.append((logits.detach(), targets))
        self._numbers += logits.numel()
        if self._numbers >= ENOUGH:
            self._take()

    def _take(self) -> None:
        if not self._waiting:
            return
        logits, targets = (
            torch.cat(parts) if len(parts) > 1 else parts[0]
            for parts in zip(*self._waiting, strict=True)
        )
        for metric in self._metrics.values():
            metric.update(logits, targets)
        self._waiting, self._numbers = [], 0

    def compute(self, prefix: str = "") -> dict[str, float]:
        """Return {"loss": mean, …} with the metrics by name, each behind `prefix`."""
        self._take()
        numbers = {"loss": self._loss / max(self._count, 1)}
        for name, metric in self._metrics.items():
            found = metric.compute()
            numbers |= found if isinstance(found, dict) else {name: found}
        return {f"{prefix}{name}": value for name, value in numbers.items()}

    def sums(self) -> dict[str, Tensor]:
        """Return all that was added up, as tensors by name."""
        self._take()
        loss = torch.tensor([self._loss, self._count], dtype=torch.float64)
        return {"loss": loss, **{name: metric.sums for name, metric in self._metrics.items()}}

    def load(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from what `sums` returned; from nothing where that is empty."""
        if sums:
            self._loss, self._count = float(sums["loss"][0]), int(sums["loss"][1])
            for name, metric in self._metrics.items():
                metric.sums = sums[name]

    def reduce(self, world: World, device: torch.device) -> None:
        """Add up what all processes have seen; each has the whole afterwards."""
        if world.size > 1:
            sums = {name: tensor.to(device) for name, tensor in self.sums().items()}
            world.sum(sums.values())
            self.load(sums)


def _counted(logits: Tensor, targets: Tensor) -> int:
    """Return how many images, or pixels, the mean loss of a batch is of."""
    if targets.ndim == 1:
        return len(targets)
    return int((center_crop(targets, logits) != IGNORED).sum())
