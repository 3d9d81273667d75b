"""Segmentation: how well scores rank pixels, and whether a confidence is a frequency.

All from histograms that add up over batches and processes. A ranking is of log-odds, not of
probabilities: BINS equal steps between -LIMIT and LIMIT tell 1e-6 from 2e-6, and 1 - 1e-6 from
1 - 2e-6, as well as 0.3 from 0.5. A step is 1 / 128, 0.8 % of the odds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.tasks.segmentation import centred, two_sided

__all__ = [
    "Calibration",
    "Curves",
    "area_under_roc",
    "average_precision",
    "precision_recall",
    "reliability",
    "roc",
    "rounded",
]

BINS = 4096
LIMIT = 16  # log-odds of 1 - 1.1e-7: the nearest to 1 that float32 can tell from it
GROUPS = 15  # of confidences, as in Guo et al. 2017, Table 1


def _pixels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits, pixels x classes, float64, and targets, of the pixels that count."""
    logits = two_sided(logits)
    targets = centred(targets, logits)
    counted = targets != IGNORED
    logits = logits.movedim(1, -1)
    if counted.all():  # which is many times faster
        logits, targets = logits.reshape(-1, logits.shape[-1]), targets.flatten()
    else:
        logits, targets = logits[counted], targets[counted]
    if logits.device.type == "mps":  # which has no float64
        logits, targets = logits.cpu(), targets.cpu()
    return logits.double(), targets


def rounded(logits: Tensor) -> Tensor:
    """Return bins of each class's log-odds against all others, from logits … x classes.

    log(p / (1 - p)) with p the softmax, in float64; bins from 0 to BINS - 1, the outermost with
    all that is beyond -LIMIT or LIMIT. NaN is in the lowest.
    """
    logits = logits.double()
    if logits.shape[-1] == 2:  # what is below comes to this
        odds = logits - logits.flip(-1)
    else:
        log_p = logits.log_softmax(-1)
        odds = log_p - (-log_p.expm1()).log()
    steps = (odds.nan_to_num(nan=-LIMIT) + LIMIT) * (BINS / (2 * LIMIT))
    return steps.clamp(0, BINS - 1).long()


def _descending(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of either are at least as high as each score there is, highest first."""
    there = (positives + negatives).flip(0) > 0
    hits, alarms = (counts.flip(0)[there].cumsum(0) for counts in (positives, negatives))
    return hits.double(), alarms.double()


def precision_recall(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall at each score, from the lowest to the highest, then (1, 0).

    `positives` and `negatives` are histograms of scores, ascending; without positives recall is 0.
    """
    hits, alarms = _descending(positives, negatives)
    precision, recall = hits / (hits + alarms), hits / positives.sum().clamp(min=1)
    one, zero = hits.new_ones(1), hits.new_zeros(1)
    return torch.cat([precision.flip(0), one]), torch.cat([recall.flip(0), zero])


def roc(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return false and true positive rates, (0, 0), then at each score from the highest.

    `positives` and `negatives` are histograms of scores, ascending; the rate of none is 0.
    """
    hits, alarms = _descending(positives, negatives)
    zero = hits.new_zeros(1)
    false = torch.cat([zero, alarms / negatives.sum().clamp(min=1)])
    true = torch.cat([zero, hits / positives.sum().clamp(min=1)])
    return false, true


def average_precision(positives: Tensor, negatives: Tensor) -> float:
    """Return the sum of precisions by the steps of recall, from 0 to 1; no interpolation."""
    precision, recall = precision_recall(positives, negatives)
    return float(-(recall.diff() * precision[:-1]).sum())


def area_under_roc(positives: Tensor, negatives: Tensor) -> float:
    """Return how often a positive scores more than a negative, from 0 to 1; ties are a half."""
    false, true = roc(positives, negatives)
    return float(torch.trapezoid(true, false))


class Curves:
    """Average precision and area under the ROC curve of pixels, each class against all others.

    `sums` are histograms of `rounded` scores, classes x BINS x 2: pixels of the class, others.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(num_classes, BINS, 2, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits N x classes x h x w, or N x 1 x h x w; targets N x H x W."""
        logits, targets = _pixels(logits, targets)
        classes = torch.arange(self.num_classes, device=logits.device)
        others = targets[:, None] != classes
        cells = (classes * BINS + rounded(logits)) * 2 + others
        found = torch.bincount(cells.flatten(), minlength=self.sums.numel())
        self.sums = self.sums.to(found.device) + found.view_as(self.sums)

    def compute(self) -> dict[str, float]:
        """Return "ap" and "auc", means of the classes with pixels and with others; of none, 0."""
        both = [pair for pair in self.sums.cpu().unbind() if (pair.sum(0) > 0).all()]
        pairs = [pair.unbind(1) for pair in both]
        count = max(len(pairs), 1)
        return {
            "ap": sum(average_precision(*pair) for pair in pairs) / count,
            "auc": sum(area_under_roc(*pair) for pair in pairs) / count,
        }


class Calibration:
    """Expected calibration error of pixels (Guo et al. 2017, arXiv:1706.04599, Eq. 3 and 5).

    The confidence is the highest probability, and a group ((m - 1) / 15, m / 15] of it. `sums` is
    15 x 3: pixels, their confidences, hits. A NaN is a confidence of 0.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(GROUPS, 3, dtype=torch.float64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits N x classes x h x w, or N x 1 x h x w; targets N x H x W."""
        logits, targets = _pixels(logits, targets)
        highest, said = logits.max(1)
        confidence = 1 / (logits - highest[:, None]).exp().sum(1)  # of the softmax the highest
        confidence, hits = confidence.nan_to_num(nan=0.0), (said == targets).double()
        borders = torch.arange(1, GROUPS, dtype=torch.float64, device=logits.device) / GROUPS
        group = torch.bucketize(confidence, borders)
        columns = [
            logits.new_zeros(GROUPS).index_add(0, group, values)
            for values in (torch.ones_like(hits), confidence, hits)
        ]
        self.sums = self.sums.to(logits.device) + torch.stack(columns, 1)

    def compute(self) -> dict[str, float]:
        """Return "ece", from 0 to 1, for all batches so far; of no pixels, 0."""
        count, confidence, hits = self.sums.unbind(1)
        return {"ece": float((hits - confidence).abs().sum() / count.sum().clamp(min=1))}


def reliability(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean confidence, accuracy and fraction of pixels of each group that has some.

    `sums` are those of `Calibration`: the points of a reliability diagram (Guo et al. 2017,
    Fig. 1).
    """
    count, confidence, hits = sums[sums[:, 0] > 0].unbind(1)
    return confidence / count, hits / count, count / count.sum()
