"""Metrics shared by the figures and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cnn_core.tasks.regions import Overlap
from cnn_core.training import Predictions

__all__ = [
    "BINS",
    "ClassScore",
    "OneVsRest",
    "PixelScore",
    "Reliability",
    "STEPS",
    "TEMPERATURES",
    "bootstrap",
    "class_scores",
    "clustered",
    "confused_pairs",
    "confusion_counts",
    "fitted_temperature",
    "mean_curves",
    "one_vs_rest",
    "pixel_scores",
    "ranking_curves",
    "reliability",
    "risk_coverage",
    "wilson",
]

STEPS = 201  # grid points of a mean curve
RESAMPLES = 2000
BINS = 15  # of confidences, as in Guo et al. 2017, Table 1
TEMPERATURES = (0.05, 20.0)  # the range that is searched
ENOUGH = 5  # values: the bootstrap underestimates the variance of fewer


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class: fractions, NaN where undefined; `support` is its number of images.

    `ap` and `ece` are as in `OneVsRest`.
    """

    name: str
    precision: float
    recall: float
    f1: float
    ap: float
    ece: float
    support: int


def confusion_counts(predictions: Predictions) -> Any:
    """Return the confusion matrix, int64, classes x classes: rows are true, columns predicted."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(
        predictions.targets.numpy(),
        predictions.predicted.numpy(),
        labels=range(len(predictions.classes)),
    )


def clustered(counts: NDArray[np.int64]) -> list[int]:
    """Order the classes so that classes confused with each other are neighbours.

    Average linkage; the distance of two classes is 1 minus the mean of their confusion rates in
    both directions. Optimal leaf ordering minimises the distances between neighbours.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    # One or two classes have no order to find.
    if len(counts) < 3:
        return list(range(len(counts)))
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distance = 1 - (rates + rates.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance), "average", optimal_ordering=True)
    return [int(number) for number in leaves_list(tree)]


def confused_pairs(counts: NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Return up to `most` pairs (true, predicted) of confused classes, the most frequent first.

    Ties are in the dataset's order; pairs without images are left out.
    """
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [pair for pair in pairs if mistakes[pair]]


def class_scores(predictions: Predictions) -> list[ClassScore]:
    """Return the scores of each class, in the dataset's order."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        predictions.targets.numpy(),
        predictions.predicted.numpy(),
        labels=range(len(predictions.classes)),
        zero_division=math.nan,
    )
    return [
        ClassScore(
            name=name,
            precision=float(p),
            recall=float(r),
            f1=float(f1),
            ap=ranked.ap,
            ece=ranked.ece,
            support=int(support),
        )
        for name, ranked, p, r, f1, support in zip(
            predictions.classes, one_vs_rest(predictions), *columns, strict=True
        )
    ]


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, by default 95 %: (low, high) in [0, 1].

    Unlike the normal approximation it stays within [0, 1], and is not empty at 0 or n hits.

    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class PixelScore:
    """Pixel scores of one class: fractions, NaN where undefined; `pixels` is its pixel count."""

    name: str
    iou: float
    dice: float
    precision: float
    recall: float
    pixels: int


def pixel_scores(classes: Sequence[str], pixels: Tensor) -> list[PixelScore]:
    """Return each class's scores from a confusion matrix of pixels; rows are targets."""
    overlap = Overlap.of(pixels)
    predicted, targets = pixels.sum(0) > 0, pixels.sum(1) > 0
    columns = (
        overlap.iou.where(overlap.present, math.nan),
        overlap.dice.where(overlap.present, math.nan),
        overlap.precision.where(predicted, math.nan),
        overlap.recall.where(targets, math.nan),
        pixels.sum(1),
    )
    rows = zip(classes, *(column.tolist() for column in columns), strict=True)
    return [PixelScore(*row) for row in rows]


def bootstrap(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % percentile interval of a mean, [low, high], or None for fewer than 5 values.

    B. Efron and R. Tibshirani (1993), An introduction to the bootstrap, chapter 13. Seeded.
    """
    if len(values) < ENOUGH:
        return None
    # Seeded, so that the same run gives the same report.
    resamples = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[resamples].mean(1), [2.5, 97.5])
    return [float(low), float(high)]


@dataclass(frozen=True)
class Reliability:
    """Calibration of confidences: C. Guo et al. (2017), arXiv:1706.04599, Eq. 2 to 5.

    For each non-empty bin: its number, mean confidence, accuracy and share of all images. `ece`
    and `mce` are in [0, 1], `brier` is in [0, 2], `nll` in nats.
    """

    bins: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]
    brier: float
    nll: float

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean gap of the bins, weighted by images."""
        return float((self.share * np.abs(self.accuracy - self.confidence)).sum())

    @property
    def mce(self) -> float:
        """The maximum calibration error: the largest gap of a bin."""
        return float(np.abs(self.accuracy - self.confidence).max())


def reliability(logits: Tensor, targets: Tensor) -> Reliability:
    """Return calibration in 15 bins ((m - 1) / 15, m / 15], from logits N x classes."""
    # In float64: in float32 confident softmax values round to 1.
    logits = logits.double()
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    bins, means, hits, counts = _binned(confidence, predicted == targets)
    truth = F.one_hot(targets, logits.shape[1])
    return Reliability(
        bins=bins,
        confidence=means,
        accuracy=hits,
        share=counts / len(targets),
        brier=float((probabilities - truth).square().sum(1).mean()),
        nll=float(F.cross_entropy(logits, targets)),
    )


def _binned(score: Tensor, event: Tensor) -> tuple[NDArray[Any], ...]:
    """Return the number, mean score, event frequency and count of each non-empty bin."""
    scores, events = np.asarray(score.double()), np.asarray(event.double())
    # right=True: a value on a border belongs to the lower bin, as in the paper.
    bin_of = np.digitize(scores, np.arange(1, BINS) / BINS, right=True)
    counts = np.bincount(bin_of, minlength=BINS)
    bins = counts.nonzero()[0]
    sums = [np.bincount(bin_of, values, minlength=BINS)[bins] for values in (scores, events)]
    return bins, sums[0] / counts[bins], sums[1] / counts[bins], counts[bins]


def fitted_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature T that minimises the mean NLL of logits / T, N x classes.

    C. Guo et al. (2017), section 4.2: one number in [0.05, 20] for all classes. The search is over
    log T, on which halving and doubling are equal steps.
    """
    from scipy.optimize import minimize_scalar

    logits64 = logits.double()

    def nll(log_temperature: float) -> float:
        return float(F.cross_entropy(logits64 / math.exp(log_temperature), targets))

    bounds = [math.log(border) for border in TEMPERATURES]
    return math.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x)


@dataclass(frozen=True)
class OneVsRest:
    """One-vs-rest scores of a class's probability; NaN where undefined.

    `ap` is average precision, `auc` the area under the ROC curve, `ece` the class-wise
    calibration error of M. Kull et al. (2019), arXiv:1910.12656, section 2. All in [0, 1].
    """

    ap: float
    auc: float
    ece: float


def one_vs_rest(predictions: Predictions) -> list[OneVsRest]:
    """Return the one-vs-rest scores of each class, in the dataset's order."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    probabilities = predictions.logits.double().softmax(1)
    rows = []
    for number, probability in enumerate(probabilities.unbind(1)):
        truth = predictions.targets == number
        _, means, frequencies, counts = _binned(probability, truth)
        ece = float((counts * np.abs(means - frequencies)).sum() / len(truth))
        ap = auc = math.nan
        if truth.any():
            ap = float(average_precision_score(truth.numpy(), probability.numpy()))
        # ROC needs both positives and negatives.
        if truth.any() and not truth.all():
            auc = float(roc_auc_score(truth.numpy(), probability.numpy()))
        rows.append(OneVsRest(ap, auc, ece))
    return rows


Curve = tuple[NDArray[Any], NDArray[Any]]  # x, ascending, and y


def ranking_curves(probabilities: Tensor, targets: Tensor, number: int) -> tuple[Curve, Curve]:
    """Return a class's precision-recall and ROC curves, one-vs-rest.

    `probabilities` are N x classes. Both x run from 0 to 1. The precision at a recall is that of
    the highest threshold that reaches it, so that average precision is the area under the steps.
    Both the class and the rest need at least one image.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    truth, score = (targets == number).numpy(), probabilities[:, number].numpy()
    precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=True)
    false, true, _ = roc_curve(truth, score)
    recall, precision = recall[::-1], precision[::-1]
    first = np.diff(recall, prepend=-1) > 0
    return (recall[first], precision[first]), (false, true)


def mean_curves(
    probabilities: Tensor, targets: Tensor, numbers: Sequence[int]
) -> tuple[Curve, Curve]:
    """Return the mean of the classes' `ranking_curves` on an even grid of recall and FPR."""
    grid = np.linspace(0, 1, STEPS)
    pairs = [ranking_curves(probabilities, targets, number) for number in numbers]
    # The tolerance keeps a recall of, say, 0.3 from missing its step by rounding.
    precisions = [y[np.searchsorted(x, grid - 1e-12)] for (x, y), _ in pairs]
    rates = [np.interp(grid, x, y) for _, (x, y) in pairs]
    return (grid, np.mean(precisions, 0)), (grid, np.mean(rates, 0))


def risk_coverage(confidence: Tensor, hit: Tensor) -> NDArray[np.float64]:
    """Return the error rate among the 1, 2, … N most confident images.

    The mean is the area under the risk-coverage curve, AURC (Y. Geifman et al. 2019,
    arXiv:1805.08206, section 2). Images of equal confidence count with their mean, so that the
    result does not depend on the order of the dataset.
    """
    _, group, counts = np.unique(-np.asarray(confidence), return_inverse=True, return_counts=True)
    mistakes = np.bincount(group, ~np.asarray(hit)) / counts
    return np.cumsum(np.repeat(mistakes, counts)) / np.arange(1, len(group) + 1)
