"""Scores of each class of a multilabel network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cnn_core.tasks.ranking import average_precision
from cnn_core.training import LabelPredictions

__all__ = ["LabelScore", "label_scores"]


@dataclass(frozen=True)
class LabelScore:
    """The scores of one class, from 0 to 1; NaN where one is undefined.

    `support` is the number of images of the class. The class is predicted if its probability
    reaches `threshold`.
    """

    name: str
    support: int
    ap: float
    f1: float
    precision: float
    recall: float
    threshold: float


def label_scores(predictions: LabelPredictions) -> list[LabelScore]:
    """Return the scores of each class: those at its threshold, and its average precision."""
    scores = []
    for number, name in enumerate(predictions.classes):
        actual = predictions.targets[:, number].bool()
        predicted = predictions.predicted[:, number]
        hits, support, found = int((actual & predicted).sum()), int(actual.sum()), predicted.sum()
        logits = predictions.logits[:, number]
        ranked = support and not logits.isnan().any()
        scores.append(
            LabelScore(
                name=name,
                support=support,
                ap=average_precision(logits, actual) if ranked else math.nan,
                f1=_ratio(2 * hits, support + int(found)),
                precision=_ratio(hits, int(found)),
                recall=_ratio(hits, support),
                threshold=predictions.thresholds[number],
            )
        )
    return scores


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
