"""Metrics of the order of scores: area under the ROC curve and average precision, both exact.

They need the scores of all images at once: there are no sums that could be added up. The state of
these metrics is a table with a row for each image, and processes join their rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Auc", "Rows", "area_under_roc", "average_precision"]


def _counts(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of positives and negatives at each distinct score, ascending."""
    distinct, places = scores.unique(return_inverse=True)
    positives = torch.bincount(places[positive], minlength=len(distinct))
    return positives, torch.bincount(places, minlength=len(distinct)) - positives


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """Return the probability that a positive scores higher than a negative; ties count half.

    `scores` and `positive`, bool, have shape N, with at least one positive and one negative.
    """
    positives, negatives = _counts(scores, positive)
    below = negatives.cumsum(0) - negatives
    # In integers, which are exact: twice the number of pairs in the right order.
    doubled = int((positives * (2 * below + negatives)).sum())
    return doubled / (2 * int(positives.sum()) * int(negatives.sum()))


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Return the sum of precision times increase in recall over the distinct scores.

    `scores` and `positive`, bool, have shape N, with at least one positive.
    """
    positives, negatives = (counts.flip(0) for counts in _counts(scores, positive))
    hits = positives.cumsum(0).double()
    precision = hits / (hits + negatives.cumsum(0))
    return float((precision * positives).sum() / positives.sum())


class Rows:
    """Collects the logits and targets of all images; `sums`, N x columns, has a row for each.

    `gathers` says that processes join the rows of their `sums` instead of adding them up.
    """

    gathers = True

    def __init__(self, columns: int) -> None:
        self._parts = [torch.zeros(0, columns)]

    @property
    def sums(self) -> Tensor:
        """All rows so far: logits, then targets."""
        if len(self._parts) > 1:
            self._parts = [torch.cat([part.to(self._parts[-1].device) for part in self._parts])]
        return self._parts[0]

    @sums.setter
    def sums(self, rows: Tensor) -> None:
        """Replace all rows."""
        self._parts = [rows]

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes; targets N, or N x classes."""
        columns = targets[:, None] if targets.ndim == 1 else targets
        # float32 has all integers up to 2^24, so class numbers are exact.
        self._parts.append(torch.cat([logits.float(), columns.float()], 1))


class Auc(Rows):
    """Area under the ROC curve, each class against all others, averaged over classes.

    Scores are the probabilities, in float64. With two classes it is the area of class 1. Classes
    that no image or every image belongs to are left out of the mean.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes + 1)

    def compute(self) -> dict[str, float]:
        """Return "auc", from 0 to 1; {} if no class has both, or a probability is NaN."""
        found = [area_under_roc(*column) for column in self._columns()]
        return {"auc": sum(found) / len(found)} if found else {}

    def _columns(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the scores, and whether an image is of the class, for each class to count."""
        rows = self.sums.cpu()
        scores, targets = rows[:, :-1].double().softmax(1), rows[:, -1].long()
        if scores.isnan().any():
            return
        for number in (1,) if scores.shape[1] == 2 else range(scores.shape[1]):
            positive = targets == number
            if positive.any() and not positive.all():
                yield scores[:, number], positive
