"""Segmentation: precision-recall curves, ROC curves and calibration, over pixels.

A split has too many pixels to sort, so everything is computed from histograms, which add up over
batches and processes. The curves bin log-odds, not probabilities: BINS equal steps between -LIMIT
and LIMIT separate 1e-6 from 2e-6, and 1 - 1e-6 from 1 - 2e-6, as well as 0.3 from 0.5. A step of
1 / 128 changes the odds by 0.8 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnn_core.tasks.segmentation import counted_pixels
from cnn_core.tasks.thresholds import BINS, LIMIT

__all__ = [
    "Calibration",
    "Curves",
    "area_under_roc",
    "average_precision",
    "log_odds_bins",
    "precision_recall",
    "reliability",
    "roc",
]

CONFIDENCE_BINS = 15  # as in Guo et al. 2017, Table 1


def log_odds_bins(logits: Tensor) -> Tensor:
    """Return the bin of each class's log-odds against all others, for logits … x classes.

    The log-odds are log(p / (1 - p)), where p is the softmax, in float64. Bins are 0 to BINS - 1;
    the first and last also hold everything beyond -LIMIT and LIMIT, and the first holds NaN.
    """
    logits = logits.double()
    if logits.shape[-1] == 2:  # the general case reduces to this, at a fraction of the cost
        odds = logits - logits.flip(-1)
    else:
        log_p = logits.log_softmax(-1)
        odds = log_p - (-log_p.expm1()).log()
    steps = (odds.nan_to_num(nan=-LIMIT) + LIMIT) * (BINS / (2 * LIMIT))
    return steps.clamp(0, BINS - 1).long()


def _descending(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of true and false positives at each occupied bin, highest bin first."""
    occupied = (positives + negatives).flip(0) > 0
    hits, alarms = (counts.flip(0)[occupied].cumsum(0) for counts in (positives, negatives))
    return hits.double(), alarms.double()


def precision_recall(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall at each threshold, from the lowest to the highest, then (1, 0).

    `positives` and `negatives` are histograms of scores, ascending. Without positives, recall is
    0. The points are those of scikit-learn's `precision_recall_curve`.
    """
    hits, alarms = _descending(positives, negatives)
    precision, recall = hits / (hits + alarms), hits / positives.sum().clamp(min=1)
    one, zero = hits.new_ones(1), hits.new_zeros(1)
    return torch.cat([precision.flip(0), one]), torch.cat([recall.flip(0), zero])


def roc(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return false and true positive rates: (0, 0), then one pair per threshold from the highest.

    `positives` and `negatives` are histograms of scores, ascending. A rate is 0 if its histogram
    is empty.
    """
    hits, alarms = _descending(positives, negatives)
    zero = hits.new_zeros(1)
    false = torch.cat([zero, alarms / negatives.sum().clamp(min=1)])
    true = torch.cat([zero, hits / positives.sum().clamp(min=1)])
    return false, true


def average_precision(positives: Tensor, negatives: Tensor) -> float:
    """Return average precision, from 0 to 1: the sum of precision times increase in recall.

    There is no interpolation between thresholds, which would be too optimistic.
    """
    precision, recall = precision_recall(positives, negatives)
    return float(-(recall.diff() * precision[:-1]).sum())


def area_under_roc(positives: Tensor, negatives: Tensor) -> float:
    """Return the probability that a positive scores higher than a negative; ties count half."""
    false, true = roc(positives, negatives)
    return float(torch.trapezoid(true, false))


class Curves:
    """Average precision and area under the ROC curve of pixels, each class against all others.

    `sums`, classes x BINS x 2, counts pixels by class, bin, and whether they are of another class.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(num_classes, BINS, 2, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes x h x w, or N x 1 x h x w; targets N x H x W."""
        logits, targets = counted_pixels(logits, targets)
        classes = torch.arange(self.num_classes, device=logits.device)
        others = targets[:, None] != classes
        # Count all histograms at once: each (class, bin, positive or negative) is a cell.
        cells = (classes * BINS + log_odds_bins(logits)) * 2 + others
        found = torch.bincount(cells.flatten(), minlength=self.sums.numel())
        self.sums = self.sums.to(found.device) + found.view_as(self.sums)

    def compute(self) -> dict[str, float]:
        """Return "ap" and "auc", the means over classes that have both positives and negatives.

        Both are 0 if there is no such class.
        """
        both = [pair for pair in self.sums.cpu().unbind() if (pair.sum(0) > 0).all()]
        pairs = [pair.unbind(1) for pair in both]
        count = max(len(pairs), 1)
        return {
            "ap": sum(average_precision(*pair) for pair in pairs) / count,
            "auc": sum(area_under_roc(*pair) for pair in pairs) / count,
        }


class Calibration:
    """Expected calibration error of pixels (Guo et al. 2017, arXiv:1706.04599, Eq. 3 and 5).

    Confidence is the highest probability. Bin m of 15 is ((m - 1) / 15, m / 15]. `sums`, 15 x 3,
    has the number of pixels in each bin, the sum of their confidences, and the number of correct
    ones. NaN counts as confidence 0.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(CONFIDENCE_BINS, 3, dtype=torch.float64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes x h x w, or N x 1 x h x w; targets N x H x W."""
        logits, targets = counted_pixels(logits, targets)
        highest, predicted = logits.max(1)
        confidence = 1 / (logits - highest[:, None]).exp().sum(1)  # the softmax's maximum
        confidence, hits = confidence.nan_to_num(nan=0.0), (predicted == targets).double()
        borders = (
            torch.arange(1, CONFIDENCE_BINS, dtype=torch.float64, device=logits.device)
            / CONFIDENCE_BINS
        )
        bins = torch.bucketize(confidence, borders)
        columns = [
            logits.new_zeros(CONFIDENCE_BINS).index_add(0, bins, values)
            for values in (torch.ones_like(hits), confidence, hits)
        ]
        self.sums = self.sums.to(logits.device) + torch.stack(columns, 1)

    def compute(self) -> dict[str, float]:
        """Return "ece", from 0 to 1, over all batches so far; 0 without pixels."""
        count, confidence, hits = self.sums.unbind(1)
        return {"ece": float((hits - confidence).abs().sum() / count.sum().clamp(min=1))}


def reliability(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean confidence, accuracy and fraction of pixels of each bin that has pixels.

    These are the points of a reliability diagram (Guo et al. 2017, Fig. 1), from the `sums` of
    `Calibration`.
    """
    count, confidence, hits = sums[sums[:, 0] > 0].unbind(1)
    return confidence / count, hits / count, count / count.sum()
