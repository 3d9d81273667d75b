"""Segmentation: overlap of regions, over all pixels of a split or per image.

Targets are uint8, N H W; pixels with value 255 are ignored. TP, FP and FN are the numbers of true
positive, false positive and false negative pixels of a class. IoU = TP / (TP + FP + FN)
(Everingham et al. 2010, section 4.2), Dice = 2 TP / (2 TP + FP + FN), precision = TP / (TP + FP),
recall = TP / (TP + FN). Classes that are in neither targets nor predictions are left out of means;
the mean over no classes is 0.

Over pixels, one image with a large object outweighs many with small ones. `PerImage` gives each
image the same weight, so it reveals failures on small objects that pixel metrics hide. Neither
metric can be computed from the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.tasks.segmentation import (
    Confusion,
    center_crop,
    confusion_matrix,
    predicted_classes,
    two_class_logits,
)

__all__ = ["Means", "Overlap", "PerImage", "Regions", "image_scores"]


class Overlap(NamedTuple):
    """Overlap scores of each class, from 0 to 1; 0 for classes that are not `present`."""

    present: Tensor
    iou: Tensor
    dice: Tensor
    precision: Tensor
    recall: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> Overlap:
        """Return the scores for a confusion matrix, classes x classes."""
        counts = counts.cpu()  # some devices have no float64
        both = counts.diagonal().double()
        predicted, targets = counts.sum(0), counts.sum(1)
        either = predicted + targets
        return cls(
            present=either > 0,
            iou=both / (either - both).clamp(min=1),
            dice=2 * both / either.clamp(min=1),
            precision=both / predicted.clamp(min=1),
            recall=both / targets.clamp(min=1),
        )

    def mean(self, scores: Tensor) -> float:
        """Return the mean over the classes that are present."""
        return float(scores.sum() / self.present.sum().clamp(min=1))

    def ious(self, classes: Sequence[str] = ()) -> dict[str, float]:
        """Return the IoU of each present class: "iou/road", …; without names "iou/0", …"""
        present = self.present.nonzero().flatten().tolist()
        return {f"iou/{classes[k] if classes else k}": float(self.iou[k]) for k in present}


def image_scores(
    predicted: Tensor, target: Tensor, num_classes: int, classes: Sequence[str] = ()
) -> dict[str, float]:
    """Return "pixel_accuracy", "miou", "dice" and "iou/CLASS" for the masks of one image, H x W.

    `classes` are the names of the classes; without them their numbers are used.
    """
    counts = confusion_matrix(predicted, target, num_classes)
    overlap = Overlap.of(counts)
    return {
        "pixel_accuracy": int(counts.diagonal().sum()) / max(int(counts.sum()), 1),
        "miou": overlap.mean(overlap.iou),
        "dice": overlap.mean(overlap.dice),
        **overlap.ious(classes),
    }


class Regions(Confusion):
    """Mean Dice, precision and recall over the present classes, and the IoU of each class.

    A class that is never predicted has precision 0; one that is in no target has recall 0.
    `classes` are the names of the classes, set by `metrics_of`.
    """

    classes: tuple[str, ...] = ()

    def compute(self) -> dict[str, float]:
        """Return "dice", "precision", "recall" and "iou/CLASS" over all batches so far."""
        overlap = Overlap.of(self.sums)
        return {
            "dice": overlap.mean(overlap.dice),
            "precision": overlap.mean(overlap.precision),
            "recall": overlap.mean(overlap.recall),
            **overlap.ious(self.classes),
        }


class Means:
    """Means of scores of single images. `sums` has the total of each score, then their number.

    Subclasses set `names`, the names of the scores. Sums are float64, since scores are fractions,
    unlike counts of pixels. Their order can change the last bits of a mean, but no more.
    """

    names: ClassVar[tuple[str, ...]]

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(len(self.names) + 1, dtype=torch.float64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes x h x w, or N x 1 x h x w; targets N x H x W."""
        logits = two_class_logits(logits)
        targets = center_crop(targets, logits)
        # Image by image: a mean over images needs the score of each one.
        for mask, target in zip(predicted_classes(logits), targets, strict=True):
            for scores in self.scores(mask, target):
                row = [*(scores[name] for name in self.names), 1.0]
                self.sums = self.sums.cpu() + torch.tensor(row, dtype=torch.float64)

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Return the sets of scores of one image, none or more, from masks, H x W."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Return the mean of each score over all batches so far, or 0 if there are no scores."""
        *totals, count = self.sums.tolist()
        return {
            name: total / max(count, 1.0) for name, total in zip(self.names, totals, strict=True)
        }


class PerImage(Means):
    """The means over images of the mIoU and Dice of each image (Csurka et al. 2013, section 3).

    An image with only ignored pixels is left out.
    """

    names: ClassVar[tuple[str, ...]] = ("image_miou", "image_dice")

    def scores(self, predicted: Tensor, target: Tensor) -> Iterable[Mapping[str, float]]:
        """Yield the mIoU and Dice of the image, unless all its pixels are ignored."""
        if (target != IGNORED).any():
            found = image_scores(predicted, target, self.num_classes)
            yield {"image_miou": found["miou"], "image_dice": found["dice"]}
