"""Segmentation: the loss, and metrics over all pixels of a split, never averaged per batch.

Targets are uint8, N H W; pixels of 255 count in nothing. A network without padding gives logits
for the centre of its input: of targets, the same centre counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED, Mix
from cnn_core.errors import UsageError
from cnn_core.tasks.classification import Loss, Outputs
from cnn_core.training.recipe import Recipe

__all__ = ["MeanIoU", "PixelAccuracy", "centred", "loss_function"]


def centred(targets: Tensor, logits: Tensor) -> Tensor:
    """Return the centre of targets, N H W, that logits, N classes h w, are for."""
    height, width = logits.shape[-2:]
    top, left = (targets.shape[-2] - height) // 2, (targets.shape[-1] - width) // 2
    return targets[..., top : top + height, left : left + width]


def loss_function(recipe: Recipe) -> Loss:
    """Return cross-entropy over the pixels that count, mean over the batch's.

    Raises:
        UsageError: the recipe wants what only whole images can have.
    """
    if recipe.loss != "cross_entropy":
        raise UsageError(f"loss = '{recipe.loss}' is for classification")
    if recipe.mixup or recipe.cutmix or recipe.policy:
        raise UsageError("mixup, cutmix and policy are for classification")

    def loss(outputs: Outputs, targets: Tensor, mix: Mix | None = None) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        counted = centred(targets, logits).long()
        total = F.cross_entropy(
            logits,
            counted,
            ignore_index=IGNORED,
            label_smoothing=recipe.label_smoothing,
            reduction="sum",
        )
        return total / (counted != IGNORED).sum().clamp(min=1)  # of none, 0 and not NaN

    return loss


class Confusion:
    """How many pixels of each class were taken for each: classes x classes, targets down."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits N x classes x h x w, targets N x H x W."""
        targets = centred(targets, logits)
        counted = targets != IGNORED
        pairs = targets[counted].long() * self.num_classes + logits.argmax(1)[counted]
        found = torch.bincount(pairs, minlength=self.num_classes**2)
        self.sums = self.sums.to(found.device) + found.view(self.num_classes, -1)


class PixelAccuracy(Confusion):
    """Fraction of pixels whose class has the highest logit; of no pixels, 0."""

    def compute(self) -> float:
        """Return the fraction for all batches so far."""
        return float(self.sums.diagonal().sum()) / max(int(self.sums.sum()), 1)


class MeanIoU(Confusion):
    """Intersection over union of each class, over the whole split; mean of the classes there.

    A class that neither targets nor predictions have counts in nothing; of no class, 0.
    """

    def compute(self) -> float:
        """Return the mean for all batches so far."""
        both = self.sums.diagonal().double()
        either = self.sums.sum(0) + self.sums.sum(1) - self.sums.diagonal()
        there = either > 0
        return float((both[there] / either[there]).mean()) if there.any() else 0.0
