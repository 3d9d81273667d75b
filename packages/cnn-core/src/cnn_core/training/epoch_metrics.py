"""Loss and metrics of an epoch, or of a split, added up batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.tasks import metrics_of
from cnn_core.tasks.segmentation import centred

if TYPE_CHECKING:
    from cnn_core.training.distributed import World

__all__ = ["EpochMetrics"]

ENOUGH = 2**16  # logits to collect before metrics are updated


class EpochMetrics:
    """The metrics of all images so far, and the mean loss of images, or of pixels that count.

    Metrics are integer sums, so update order does not matter; small batches are buffered until
    an update is worth its call. One object serves a whole training: `load` starts it again.
    """

    def __init__(self, task: str, num_classes: int, topk: int, evaluated: str = "") -> None:
        self._metrics = metrics_of(task, num_classes, topk, evaluated)
        self._zeros = {name: metric.sums.clone() for name, metric in self._metrics.items()}
        self._loss, self._count = 0.0, 0
        self._buffer: list[tuple[Tensor, Tensor]] = []
        self._buffered = 0

    def add(self, loss: float, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss, logits N x classes or N x classes x h x w, its targets."""
        count = _counted(logits, targets)
        self._loss += loss * count
        self._count += count
        self._buffer.append((logits.detach(), targets))
        self._buffered += logits.numel()
        if self._buffered >= ENOUGH:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        logits, targets = (
            torch.cat(parts) if len(parts) > 1 else parts[0]
            for parts in zip(*self._buffer, strict=True)
        )
        for metric in self._metrics.values():
            metric.update(logits, targets)
        self._buffer, self._buffered = [], 0

    def compute(self, prefix: str = "") -> dict[str, float]:
        """Return {"loss": mean, …} with the metrics by name, each behind `prefix`."""
        self._flush()
        numbers = {"loss": self._loss / max(self._count, 1)}
        for name, metric in self._metrics.items():
            found = metric.compute()
            numbers |= found if isinstance(found, dict) else {name: found}
        return {f"{prefix}{name}": value for name, value in numbers.items()}

    def sums(self) -> dict[str, Tensor]:
        """Return copies of all sums, as tensors by name."""
        self._flush()
        loss = torch.tensor([self._loss, self._count], dtype=torch.float64)
        copies = {name: metric.sums.clone() for name, metric in self._metrics.items()}
        return {"loss": loss, **copies}

    def total(self, world: World, device: torch.device) -> dict[str, Tensor]:
        """Return the sums over all processes; each process keeps its own."""
        sums = self.sums()
        if world.size > 1:
            sums = {name: tensor.to(device) for name, tensor in sums.items()}
            world.sum(sums.values())
        return sums

    def load(self, sums: Mapping[str, Tensor]) -> None:
        """Continue from what `sums` or `total` returned; start again where that is empty."""
        loss, count = sums["loss"].tolist() if sums else (0.0, 0)
        self._loss, self._count = loss, int(count)
        for name, metric in self._metrics.items():
            metric.sums = (sums or self._zeros)[name].clone()
        self._buffer, self._buffered = [], 0


def _counted(logits: Tensor, targets: Tensor) -> int:
    """Return over how many images, or pixels, the mean loss of a batch was taken."""
    if targets.ndim == 1:
        return len(targets)
    return int((centred(targets, logits) != IGNORED).sum())
