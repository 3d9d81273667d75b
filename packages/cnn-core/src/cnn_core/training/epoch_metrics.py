"""Accumulate the loss and metrics of an epoch or a split, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.palette import background_class
from cnn_core.tasks import metrics_of
from cnn_core.tasks.classification import Metric
from cnn_core.tasks.segmentation import center_crop
from cnn_core.training.numerics import all_finite

if TYPE_CHECKING:
    from cnn_core.training.distributed import World

__all__ = ["EpochMetrics"]

BUFFER_LOGITS = 2**16  # number of logit values to buffer before updating the metrics


class EpochMetrics:
    """Accumulates metrics, and the mean loss per image or per pixel that is not ignored.

    `spec` names the classes and the background.

    Small batches are buffered, because each update has a fixed cost. Use one object for a whole
    run; `load({})` resets it. `not_finite` counts the images with an output that is not finite.
    Such an output is no prediction, so then there are no metrics.
    """

    def __init__(
        self,
        task: str,
        num_classes: int,
        topk: int,
        evaluated: str = "",
        classes: Sequence[str] = (),
        thresholds: Sequence[float] = (),
        background: str = "",
    ) -> None:
        self._all = metrics_of(
            task,
            num_classes,
            topk,
            evaluated,
            classes=classes,
            thresholds=thresholds,
            background=background_class(classes, background) if classes else 0,
        )
        self._metrics = self._all
        self._zeros = {name: metric.sums.clone() for name, metric in self._metrics.items()}
        self._loss, self._count = 0.0, 0
        self.not_finite: int = 0
        self._buffer: list[tuple[Tensor, Tensor]] = []
        self._buffered = 0

    def add(self, loss: float, logits: Tensor, targets: Tensor) -> None:
        """Add a batch's mean loss, targets and logits: N x classes or N x classes x h x w."""
        if not all_finite(logits):
            self.not_finite += int((~logits.isfinite().flatten(1).all(1)).sum())
        count = _loss_count(logits, targets)
        self._loss += loss * count
        self._count += count
        self._buffer.append((logits.detach(), targets))
        self._buffered += logits.numel()
        if self._buffered >= BUFFER_LOGITS:
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
        """Return the mean loss and all metrics by name; each name starts with `prefix`.

        If outputs are not finite, return only the number of such images, as "not_finite", and the
        loss if it is finite.
        """
        self._flush()
        values: dict[str, float] = {"loss": self._loss / max(self._count, 1)}
        if self.not_finite:
            values = {name: value for name, value in values.items() if math.isfinite(value)}
            values["not_finite"] = self.not_finite
        metrics = {} if self.not_finite else self._metrics
        for name, metric in metrics.items():
            value = metric.compute()
            values |= value if isinstance(value, dict) else {name: value}
        return {f"{prefix}{name}": value for name, value in values.items()}

    def sums(self) -> dict[str, Tensor]:
        """Return copies of all accumulated sums by name.

        "loss" holds the sum of the losses, their count, and the number of images not finite.
        """
        self._flush()
        loss = torch.tensor([self._loss, self._count, self.not_finite], dtype=torch.float64)
        copies = {name: metric.sums.clone() for name, metric in self._metrics.items()}
        return {"loss": loss, **copies}

    def total(self, world: World, device: torch.device) -> dict[str, Tensor]:
        """Return the sums over all processes, without changing this process's own."""
        sums = self.sums()
        if world.size > 1:
            sums = {name: tensor.to(device) for name, tensor in sums.items()}
            joined = {name for name, metric in self._metrics.items() if _gathers(metric)}
            world.sum(tensor for name, tensor in sums.items() if name not in joined)
            sums |= {name: world.gather(sums[name]) for name in sorted(joined)}
        return sums

    def load(self, sums: Mapping[str, Tensor], *, training: bool = False) -> None:
        """Continue from the result of `sums` or `total`; reset everything if `sums` is empty.

        Metrics that need the scores of all images at once are left out in `training`: there may be
        too many, and their augmented images change while the network does.
        """
        self._metrics = {
            name: metric
            for name, metric in self._all.items()
            if not (training and _gathers(metric))
        }
        loss, count, not_finite = sums["loss"].tolist() if sums else (0.0, 0, 0)
        self._loss, self._count = loss, int(count)
        self.not_finite = int(not_finite)
        for name, metric in self._metrics.items():
            metric.sums = (sums or self._zeros)[name].clone()
        self._buffer, self._buffered = [], 0


def _gathers(metric: Metric) -> bool:
    """Return whether processes join the rows of a metric's sums instead of adding them up."""
    return bool(getattr(metric, "gathers", False))


def _loss_count(logits: Tensor, targets: Tensor) -> int:
    """Return the number of images, or of pixels that are not ignored, in a batch."""
    if targets.ndim < 3:
        return len(targets)
    return int((center_crop(targets, logits) != IGNORED).sum())
