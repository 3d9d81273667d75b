"""Segmentation: how regions overlap, over all pixels of a split, and image by image.

Targets are uint8, N H W; pixels of 255 count in nothing. With TP, FP and FN the pixels of a class
that were found, taken for it, and missed: IoU = TP / (TP + FP + FN) (Everingham et al. 2010,
section 4.2), Dice = 2 TP / (2 TP + FP + FN), precision = TP / (TP + FP), recall = TP / (TP + FN).
A class that neither targets nor predictions have counts in no mean; a mean of nothing is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.tasks.segmentation import Confusion, centred, classes_of, confusion, two_sided

__all__ = ["Means", "Overlap", "PerImage", "Regions", "image_scores"]


class Overlap(NamedTuple):
    """Ratios of each class, from 0 to 1; 0 for one that is not `there`."""

    there: Tensor
    iou: Tensor
    dice: Tensor
    precision: Tensor
    recall: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> Overlap:
        """Take them from what `confusion` counts."""
        counts = counts.cpu()  # there are devices without float64
        both = counts.diagonal().double()
        predicted, targets = counts.sum(0), counts.sum(1)
        either = predicted + targets
        return cls(
            there=either > 0,
            iou=both / (either - both).clamp(min=1),
            dice=2 * both / either.clamp(min=1),
            precision=both / predicted.clamp(min=1),
            recall=both / targets.clamp(min=1),
        )

    def mean(self, ratios: Tensor) -> float:
        """Return the mean over the classes that are there."""
        return float(ratios.sum() / self.there.sum().clamp(min=1))

    def ious(self) -> dict[str, float]:
        """Return "iou_0", "iou_1", … of the classes that are there, and no key for others."""
        return {f"iou_{k}": float(self.iou[k]) for k in self.there.nonzero().flatten().tolist()}


def image_scores(predicted: Tensor, target: Tensor, num_classes: int) -> dict[str, float]:
    """Return "pixel_accuracy", "miou", "dice" and "iou_k" of one image: classes, each H x W."""
    counts = confusion(predicted, target, num_classes)
    overlap = Overlap.of(counts)
    return {
        "pixel_accuracy": int(counts.diagonal().sum()) / max(int(counts.sum()), 1),
        "miou": overlap.mean(overlap.iou),
        "dice": overlap.mean(overlap.dice),
        **overlap.ious(),
    }


class Regions(Confusion):
    """Dice, precision and recall, means over the classes that are there; IoU of each of them.

    A class that is nowhere predicted has precision 0, one that no target has, recall 0.
    """

    def compute(self) -> dict[str, float]:
        """Return "dice", "precision", "recall" and "iou_k" for all batches so far."""
        overlap = Overlap.of(self.sums)
        return {
            "dice": overlap.mean(overlap.dice),
            "precision": overlap.mean(overlap.precision),
            "recall": overlap.mean(overlap.recall),
            **overlap.ious(),
        }


class Means:
    """Means of numbers that single images have: their sums by `names`, then of how many."""

    names: ClassVar[tuple[str, ...]]

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(len(self.names) + 1, dtype=torch.float64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits N x classes x h x w, or N x 1 x h x w; targets N x H x W."""
        logits = two_sided(logits)
        targets = centred(targets, logits)
        for mask, target in zip(classes_of(logits), targets, strict=True):
            for scores in self.scores(mask, target):
                row = [*(scores[name] for name in self.names), 1.0]
                self.sums = self.sums.cpu() + torch.tensor(row, dtype=torch.float64)

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Return what counts of one image, none or several times; classes, each H x W."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Return the mean of each for all batches so far; of nothing, 0."""
        *totals, count = self.sums.tolist()
        return {
            name: total / max(count, 1.0) for name, total in zip(self.names, totals, strict=True)
        }


class PerImage(Means):
    """Means over images of each image's own mIoU and Dice (Csurka et al. 2013, section 3).

    An image without a pixel that counts is left out.
    """

    names: ClassVar[tuple[str, ...]] = ("image_miou", "image_dice")

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Return the image's mIoU and Dice."""
        if (target != IGNORED).any():
            found = image_scores(predicted, target, self.num_classes)
            yield {"image_miou": found["miou"], "image_dice": found["dice"]}
