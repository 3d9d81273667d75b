"""Metrics that the figures and the report share."""

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
    "CURVE_POINTS",
    "ClassScore",
    "ConfusionTable",
    "OneVsRest",
    "PixelScore",
    "Reliability",
    "TEMPERATURES",
    "bootstrap",
    "class_scores",
    "cluster_order",
    "confused_pairs",
    "confusion_counts",
    "confusion_table",
    "fit_temperature",
    "mean_curves",
    "one_vs_rest",
    "pixel_scores",
    "ranking_curves",
    "reliability",
    "risk_coverage",
    "top_k_accuracy",
]

CURVE_POINTS = 201  # of a mean curve
RESAMPLES = 2000
BINS = 15  # of the confidence, as in Guo et al. 2017, Table 1
TEMPERATURES = (0.05, 20.0)  # the search range of `fit_temperature`
MAX_UNSORTED = 12  # with more classes than this, confused ones are grouped
MAX_ROWS = 40  # of a confusion matrix of which only a part is displayed
MIN_VALUES = 5  # with fewer, the bootstrap underestimates the variance


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class as fractions, NaN if undefined; `support` is its number of images.

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
    """Return the confusion matrix, int64, classes x classes; rows are true classes."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(
        predictions.targets.numpy(),
        predictions.predicted.numpy(),
        labels=range(len(predictions.classes)),
    )


def cluster_order(counts: NDArray[np.int64]) -> list[int]:
    """Return the classes in an order where classes confused with each other are neighbours.

    The classes are clustered by average linkage. The distance of two classes is 1 minus the mean
    of their confusion rates in both directions. Optimal leaf ordering minimises the distances
    between neighbours.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    # The order of one or two classes does not matter.
    if len(counts) < 3:
        return list(range(len(counts)))
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distance = 1 - (rates + rates.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]


@dataclass(frozen=True)
class ConfusionTable:
    """The part of a confusion matrix to display: counts, rows x columns.

    `rows` and `columns` are class indices; the columns begin with the rows. With `others`, a last
    column counts the images that were predicted as any other class. `selection` says which rows
    were selected, if not all are there.
    """

    rows: list[int]
    columns: list[int]
    counts: NDArray[np.int64]
    others: bool = False
    selection: str = ""


def confusion_table(counts: NDArray[np.int64], limit: int) -> ConfusionTable:
    """Return the whole confusion matrix if it has up to `limit` classes, else a part of it.

    The part has the 40 classes with the most mistakes, as true or predicted class, among those
    with images. If fewer classes have images, it has further columns for the most frequent
    predictions.
    """
    if len(counts) <= limit:
        # Few classes stay in their own order, which readers know.
        few = len(counts) <= MAX_UNSORTED
        order = list(range(len(counts))) if few else cluster_order(counts)
        return ConfusionTable(order, order, counts[np.ix_(order, order)])
    images, predicted, correct = counts.sum(1), counts.sum(0), np.diag(counts)
    ranked = np.argsort(-(images + predicted - 2 * correct), kind="stable")
    ranked = ranked[images[ranked] > 0]
    rows, selection = (
        ranked[:MAX_ROWS],
        f"the {len(ranked)} of {len(counts):,} classes with images",
    )
    if len(rows) < len(ranked):
        selection = f"the {len(rows)} of {len(ranked):,} classes with the most mistakes"
    rows = rows[cluster_order(counts[np.ix_(rows, rows)])]
    ranked = np.argsort(-predicted, kind="stable")
    more = ranked[(predicted[ranked] > 0) & (images[ranked] == 0)][: MAX_ROWS - len(rows)]
    columns = np.concatenate([rows, more])
    part = counts[np.ix_(rows, columns)]
    rest = counts[rows].sum(1) - part.sum(1)
    if others := bool(rest.any()):
        part = np.column_stack([part, rest])
    return ConfusionTable(rows.tolist(), columns.tolist(), part, others, selection)


def confused_pairs(counts: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """Return up to `limit` pairs (true, predicted) of confused classes, most frequent first.

    Ties keep the dataset's order. Pairs without images are left out.
    """
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(cell), len(counts)) for cell in order]
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


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Return the fraction of images whose true class is among the k with the highest logits."""
    best = predictions.logits.topk(min(k, len(predictions.classes))).indices
    return float((best == predictions.targets[:, None]).any(1).double().mean())


@dataclass(frozen=True)
class PixelScore:
    """Pixel scores of one class as fractions, NaN if undefined; `pixels` is its pixel count."""

    name: str
    iou: float
    dice: float
    precision: float
    recall: float
    pixels: int


def pixel_scores(classes: Sequence[str], pixels: Tensor) -> list[PixelScore]:
    """Return the scores of each class, given a confusion matrix of pixels with targets as rows."""
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
    """Return the 95 % bootstrap interval of the mean, [low, high]; None for fewer than 5 values.

    Percentile method: B. Efron and R. Tibshirani (1993), An introduction to the bootstrap,
    chapter 13.
    """
    if len(values) < MIN_VALUES:
        return None
    # The seed is fixed, so that the same run gives the same report.
    resamples = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[resamples].mean(1), [2.5, 97.5])
    return [float(low), float(high)]


@dataclass(frozen=True)
class Reliability:
    """Calibration of confidences: C. Guo et al. (2017), arXiv:1706.04599, Eq. 2 to 5.

    The arrays have one value for each non-empty bin: its index, mean confidence, accuracy, and
    share of all images. `ece` and `mce` are in [0, 1], `brier` is in [0, 2], `nll` is in nats.
    """

    bins: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]
    brier: float
    nll: float

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean gap of the bins, weighted by their images."""
        return float((self.share * np.abs(self.accuracy - self.confidence)).sum())

    @property
    def mce(self) -> float:
        """The maximum calibration error: the largest gap of a bin."""
        return float(np.abs(self.accuracy - self.confidence).max())


def reliability(logits: Tensor, targets: Tensor) -> Reliability:
    """Return the calibration of logits, N x classes, in 15 bins ((m - 1) / 15, m / 15]."""
    # In float64: in float32, confident probabilities would round to 1.
    logits = logits.double()
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    bins, means, hits, counts = _bin(confidence, predicted == targets)
    # The sum of (p - one-hot target)^2, without a second matrix: there may be 1,000 classes.
    brier = probabilities.square().sum(1) - 2 * probabilities.gather(1, targets[:, None])[:, 0] + 1
    return Reliability(
        bins=bins,
        confidence=means,
        accuracy=hits,
        share=counts / len(targets),
        brier=float(brier.mean()),
        nll=float(F.cross_entropy(logits, targets)),
    )


def _bin(score: Tensor, event: Tensor) -> tuple[NDArray[Any], ...]:
    """Return the index, mean score, event frequency and count of each non-empty bin."""
    scores, events = np.asarray(score.double()), np.asarray(event.double())
    # right=True: a value on an edge belongs to the lower bin, as in the paper.
    bin_of = np.digitize(scores, np.arange(1, BINS) / BINS, right=True)
    counts = np.bincount(bin_of, minlength=BINS)
    bins = counts.nonzero()[0]
    sums = [np.bincount(bin_of, values, minlength=BINS)[bins] for values in (scores, events)]
    return bins, sums[0] / counts[bins], sums[1] / counts[bins], counts[bins]


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature T in [0.05, 20] that minimises the mean NLL of logits / T.

    `logits` are N x classes; one T serves all classes: C. Guo et al. (2017), section 4.2. The
    search is over log T, where halving and doubling are steps of equal size.
    """
    from scipy.optimize import minimize_scalar

    logits64 = logits.double()

    def nll(log_temperature: float) -> float:
        return float(F.cross_entropy(logits64 / math.exp(log_temperature), targets))

    bounds = [math.log(bound) for bound in TEMPERATURES]
    return math.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x)


@dataclass(frozen=True)
class OneVsRest:
    """One-vs-rest scores of one class, in [0, 1]; NaN if undefined.

    `ap` is the average precision, `auc` the area under the ROC curve, and `ece` the class-wise
    calibration error of M. Kull et al. (2019), arXiv:1910.12656, section 2.
    """

    ap: float
    auc: float
    ece: float


def one_vs_rest(predictions: Predictions) -> list[OneVsRest]:
    """Return the one-vs-rest scores of each class, in the dataset's order."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    probabilities = predictions.logits.double().softmax(1)
    rows = []
    for class_index, probability in enumerate(probabilities.unbind(1)):
        truth = predictions.targets == class_index
        _, means, frequencies, counts = _bin(probability, truth)
        ece = float((counts * np.abs(means - frequencies)).sum() / len(truth))
        ap = auc = math.nan
        if truth.any():
            ap = float(average_precision_score(truth.numpy(), probability.numpy()))
        # The ROC curve needs both positives and negatives.
        if truth.any() and not truth.all():
            auc = float(roc_auc_score(truth.numpy(), probability.numpy()))
        rows.append(OneVsRest(ap, auc, ece))
    return rows


Curve = tuple[NDArray[Any], NDArray[Any]]  # x, ascending, and y


def ranking_curves(
    probabilities: Tensor, targets: Tensor, class_index: int
) -> tuple[Curve, Curve]:
    """Return the one-vs-rest precision-recall and ROC curves of a class.

    `probabilities` are N x classes. Recall and false positive rate run from 0 to 1. For each
    recall, the precision is taken at the highest threshold that reaches it, so that the area under
    the step curve is the average precision. Both the class and the rest need at least one image.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    truth, score = (targets == class_index).numpy(), probabilities[:, class_index].numpy()
    precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=True)
    false, true, _ = roc_curve(truth, score)
    recall, precision = recall[::-1], precision[::-1]
    first = np.diff(recall, prepend=-1) > 0
    return (recall[first], precision[first]), (false, true)


def mean_curves(
    probabilities: Tensor, targets: Tensor, class_indices: Sequence[int]
) -> tuple[Curve, Curve]:
    """Return the mean `ranking_curves` of several classes, on an even grid of recall and FPR."""
    grid = np.linspace(0, 1, CURVE_POINTS)
    pairs = [ranking_curves(probabilities, targets, class_index) for class_index in class_indices]
    # The tolerance is for rounding: without it, a recall of, say, 0.3 could miss its step.
    precisions = [y[np.searchsorted(x, grid - 1e-12)] for (x, y), _ in pairs]
    rates = [np.interp(grid, x, y) for _, (x, y) in pairs]
    return (grid, np.mean(precisions, 0)), (grid, np.mean(rates, 0))


def risk_coverage(confidence: Tensor, hit: Tensor) -> NDArray[np.float64]:
    """Return the error rate among the n most confident images, for n = 1 to N.

    The mean of these values is the area under the risk-coverage curve, AURC (Y. Geifman et al.
    2019, arXiv:1805.08206, section 2). Images with equal confidence share their mean error, so
    that the result does not depend on the order of the dataset.
    """
    _, group, counts = np.unique(-np.asarray(confidence), return_inverse=True, return_counts=True)
    mistakes = np.bincount(group, ~np.asarray(hit)) / counts
    return np.cumsum(np.repeat(mistakes, counts)) / np.arange(1, len(group) + 1)
