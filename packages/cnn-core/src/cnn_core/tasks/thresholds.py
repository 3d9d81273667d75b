"""Choose on validation images how high a probability must be for its class to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe

__all__ = ["CRITERIA", "ThresholdCounts", "best_threshold", "require_binary"]

CRITERIA = ("f1", "balanced_accuracy")


def best_threshold(probabilities: Tensor, positive: Tensor, criterion: str) -> float:
    """Return the threshold with the highest F1 or balanced accuracy; 0.5 if it is undefined.

    `probabilities`, float64, and `positive`, bool, have shape N. Images that reach the threshold
    are predicted positive. The threshold is halfway between two neighbouring probabilities; of
    equally good ones it is the highest.
    """
    if not positive.any() or positive.all() or probabilities.isnan().any():
        return 0.5
    distinct, places = probabilities.unique(return_inverse=True)
    positives = torch.bincount(places[positive], minlength=len(distinct)).flip(0).cumsum(0)
    predicted = torch.bincount(places, minlength=len(distinct)).flip(0).cumsum(0)
    all_positives, count = positives[-1], predicted[-1]
    if criterion == "f1":
        scores = 2 * positives / (predicted + all_positives).double()
    else:
        negatives = count - all_positives
        specificity = 1 - (predicted - positives) / negatives.double()
        scores = (positives / all_positives.double() + specificity) / 2
    best = int(scores.argmax())  # if several, the first: the highest threshold
    descending = distinct.flip(0)
    below = descending[best + 1] if best + 1 < len(descending) else descending.new_zeros(())
    return float((descending[best] + below) / 2)


def require_binary(recipe: Recipe, num_classes: int) -> None:
    """Raise UsageError if a recipe wants a threshold, but there are more than two classes."""
    if recipe.threshold in CRITERIA and num_classes != 2:
        raise UsageError(
            f"threshold = '{recipe.threshold}' is for two classes or multilabel, and there are "
            f"{num_classes} classes",
            "the most likely of them is predicted",
        )


class ThresholdCounts:
    """Accuracy, precision, recall and F1 of class 1 of two, predicted if it reaches a threshold.

    `sums` counts true positives, false positives, false negatives and true negatives.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.sums: Tensor = torch.zeros(4, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x 2, targets N."""
        predicted = logits.cpu().double().softmax(1)[:, 1] >= self.threshold
        cells = 2 * (targets.cpu() == 0) + (predicted != (targets.cpu() == 1))
        # 0: true positive, 1: false negative, 2: true negative, 3: false positive
        found = torch.bincount(cells, minlength=4)[[0, 3, 1, 2]]
        self.sums = self.sums.cpu() + found

    def compute(self) -> dict[str, float]:
        """Return the metrics; those without any image to count are left out."""
        hits, alarms, misses, rejections = self.sums.tolist()
        ratios = {
            "accuracy": (hits + rejections, sum(self.sums.tolist())),
            "precision": (hits, hits + alarms),
            "recall": (hits, hits + misses),
            "f1": (2 * hits, 2 * hits + alarms + misses),
        }
        return {f"threshold_{name}": a / b for name, (a, b) in ratios.items() if b}
