"""Metrics for classes of unequal size: balanced accuracy, macro F1, the recall of each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnn_core.text import printable

__all__ = ["ClassCounts", "class_keys", "named_recalls"]

MAX_RECALLS = 20  # classes with a recall of their own in the log of every epoch


class ClassCounts:
    """Balanced accuracy, macro F1 and the recall of each class, from counts of images by class.

    `sums`, 3 x classes, counts the correct images, the images, and the predictions of each class;
    an image with a logit that is NaN has no prediction. `recalls` names the classes whose recall
    is returned, by number.
    """

    def __init__(self, num_classes: int, recalls: dict[int, str] | None = None) -> None:
        self.num_classes: int = num_classes
        self.recalls: dict[int, str] = recalls or {}
        self.sums: Tensor = torch.zeros(3, num_classes, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes, targets N."""
        none = logits.new_tensor(self.num_classes, dtype=torch.int64)
        predicted = logits.argmax(1).where(~logits.isnan().any(1), none)
        hits = targets.where(predicted == targets, none)
        # One bin more than classes, for "none".
        counts = [
            torch.bincount(numbers, minlength=self.num_classes + 1)[: self.num_classes]
            for numbers in (hits, targets, predicted)
        ]
        self.sums = self.sums.to(targets.device) + torch.stack(counts)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, from 0 to 1; {} without images.

        As in scikit-learn, balanced accuracy is the mean recall of the classes that have images,
        and macro F1 the mean over the classes that have images or predictions. A class without
        images has no recall: it is left out.
        """
        hits, actual, predicted = self.sums.cpu().double()
        if not actual.any():
            return {}
        recalls, either = hits / actual, actual + predicted
        return {
            "balanced_accuracy": float(recalls[actual > 0].mean()),
            "macro_f1": float((2 * hits / either)[either > 0].mean()),
            **{key: float(recalls[n]) for n, key in self.recalls.items() if actual[n]},
        }


def named_recalls(classes: Sequence[str], *, everyone: bool) -> dict[int, str]:
    """Return the metric name of each class's recall; unless `everyone`, {} for many classes."""
    if len(classes) > MAX_RECALLS and not everyone:
        return {}
    return {number: f"recall_{key}" for number, key in enumerate(class_keys(classes))}


def class_keys(classes: Sequence[str]) -> list[str]:
    """Return a distinct name for each class, safe to print: its own, or else its number."""
    names = [printable(name) for name in classes]
    return [name if names.count(name) == 1 else str(number) for number, name in enumerate(names)]
