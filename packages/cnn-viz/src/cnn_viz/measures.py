"""The numbers of a run that figures and report share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cnn_core.training import Predictions

__all__ = ["ClassScore", "class_scores", "confusion_counts", "wilson"]


@dataclass(frozen=True)
class ClassScore:
    """How one class fares: fractions, NaN where undefined; `support` in images."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def confusion_counts(predictions: Predictions) -> Any:
    """Return how often each class (row) was taken for each (column): int64, classes x classes."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(
        predictions.targets.numpy(),
        predictions.predicted.numpy(),
        labels=range(len(predictions.classes)),
    )


def class_scores(predictions: Predictions) -> list[ClassScore]:
    """Return precision, recall, F1 and support of each class, in the data set's order."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        predictions.targets.numpy(),
        predictions.predicted.numpy(),
        labels=range(len(predictions.classes)),
        zero_division=math.nan,
    )
    return [
        ClassScore(name, float(p), float(r), float(f1), int(support))
        for name, p, r, f1, support in zip(predictions.classes, *columns, strict=True)
    ]


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval of a proportion, 95 % by default: (low, high) in [0, 1].

    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)
