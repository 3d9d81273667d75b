"""Choose on validation images how high a probability must be for its class to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from cnn_core.errors import UsageError

__all__ = [
    "BINS",
    "CRITERIA",
    "LIMIT",
    "ThresholdCounts",
    "best_threshold",
    "binned_threshold",
    "require_binary",
]

CRITERIA = ("f1", "balanced_accuracy")
BINS = 4096  # of log-odds, between -LIMIT and LIMIT
LIMIT = 16  # log-odds of 1 - 1.1e-7, about the largest float32 below 1


def best_threshold(probabilities: Tensor, positive: Tensor, criterion: str) -> float:
    """Return the threshold with the highest F1 or balanced accuracy; 0.5 if it is undefined.

    `probabilities`, float64, and `positive`, bool, have shape N. Images that reach the threshold
    are predicted positive. The threshold is halfway between two neighbouring probabilities; of
    equally good ones it is the highest.
    """
    if not positive.any() or positive.all() or probabilities.isnan().any():
        return 0.5
    distinct, places = probabilities.unique(return_inverse=True)
    positives, negatives = (
        torch.bincount(places[kind], minlength=len(distinct)) for kind in (positive, ~positive)
    )
    best = _best_place(positives, negatives, criterion)
    below = distinct[best - 1] if best else distinct.new_zeros(())
    return float((distinct[best] + below) / 2)


def binned_threshold(positives: Tensor, negatives: Tensor, criterion: str) -> float:
    """Return the best probability from which on to predict positive; 0.5 if it is undefined.

    `positives` and `negatives` are histograms of log-odds, BINS each; `criterion` is as for
    `best_threshold`. In log-odds, the threshold is halfway between two bins that are not empty.
    """
    if not positives.any() or not negatives.any():
        return 0.5
    occupied = (positives + negatives).nonzero().flatten()
    best = _best_place(positives[occupied], negatives[occupied], criterion)
    if best == 0:
        return 0.0  # the lowest bin may also hold everything below -LIMIT
    # Bins reach from `bin` to `bin + 1`: between neighbours, this is their border.
    edge = (occupied[best] + occupied[best - 1] + 1).double() / 2
    return float((edge * (2 * LIMIT / BINS) - LIMIT).sigmoid())


def _best_place(positives: Tensor, negatives: Tensor, criterion: str) -> int:
    """Return the place in two histograms from which on to predict positive, the highest of equals.

    Both have shape N and count scores, ascending; `positives` and `negatives` each have some.
    """
    positives = positives.flip(0).cumsum(0)
    predicted = positives + negatives.flip(0).cumsum(0)
    all_positives, count = positives[-1], predicted[-1]
    if criterion == "f1":
        scores = 2 * positives / (predicted + all_positives).double()
    else:
        negatives = count - all_positives
        specificity = 1 - (predicted - positives) / negatives.double()
        scores = (positives / all_positives.double() + specificity) / 2
    return len(scores) - 1 - int(scores.argmax())  # if several, the highest threshold


def require_binary(threshold: str, num_classes: int) -> None:
    """Raise UsageError if there are more than two exclusive classes, which have no threshold."""
    if num_classes != 2:
        raise UsageError(
            f"threshold = {threshold} is for two classes or multilabel, and there are "
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
        """Return the metrics; those without anything to count are left out."""
        hits, alarms, misses, rejections = self.sums.tolist()
        ratios = {
            "accuracy": (hits + rejections, sum(self.sums.tolist())),
            "precision": (hits, hits + alarms),
            "recall": (hits, hits + misses),
            "f1": (2 * hits, 2 * hits + alarms + misses),
        }
        return {f"threshold_{name}": a / b for name, (a, b) in ratios.items() if b}
