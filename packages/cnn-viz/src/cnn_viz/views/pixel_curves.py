"""The views `pixel_curves` and `pixel_calibration`: ranking and calibration of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.tasks.curves import (
    CONFIDENCE_BINS,
    area_under_roc,
    average_precision,
    precision_recall,
    reliability,
    roc,
)
from cnn_core.training import Trained
from cnn_viz import style
from cnn_viz.results.segmentations import SegmentationResults
from cnn_viz.views.masks import require_scores

__all__ = ["pixel_calibration", "pixel_curves"]

UNIT = (-0.02, 1.02)  # axis limits of a fraction
LEGEND_BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 2}


def pixel_curves(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw one-vs-rest precision-recall and ROC curves of pixels, by class.

    Raises:
        UsageError: the test split has pixels of one class only, or only ignored ones.
    """
    require_scores(trained, segmented)
    sums = segmented.metrics.curves.cpu()
    drawn = _classes_to_draw(sums)
    if not drawn:
        raise UsageError(f"{trained.path}: the test split has pixels of one class only")
    selection = _selection_note(len(segmented.classes), len(drawn))
    figure = style.figure(
        10.5,
        5.0 + 0.2 * -(-len(drawn) // 2),
        f"Ranking of pixels: {trained.recipe.model} on {trained.recipe.data}",
        f"{_pixels(int(sums[0].sum()))} of the test split, each class against all others, at "
        f"every threshold of its probability.{selection}\nDotted: a random ranking; its "
        "precision is the class's share of all pixels.",
    )
    left, right = figure.subplots(1, 2)
    for index, k in enumerate(drawn):
        positives, negatives = sums[k].unbind(1)
        name, colour = style.label(segmented.classes[k]), style.RUNS[index]
        precision, recall = precision_recall(positives, negatives)
        # Of several points with equal recall, draw only the last.
        last = torch.cat([recall.diff() < 0, torch.tensor([True])])
        ap = average_precision(positives, negatives)  # the area under the steps
        label = f"{name}, AP {style.share(ap, 3)}"
        options: dict[str, Any] = {"color": colour, "label": label, "drawstyle": "steps-post"}
        left.plot(recall[last], precision[last], **options)
        prevalence = float(positives.sum() / sums[k].sum())
        left.axhline(prevalence, color=colour, linewidth=1, linestyle=(0, (1, 2)))
        auc = area_under_roc(positives, negatives)
        label = f"{name}, AUC {style.share(auc, 4)}"
        right.plot(*roc(positives, negatives), color=colour, label=label)
    right.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=(0, (1, 2)))
    left.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    right.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    for ax in (left, right):
        ax.legend(**LEGEND_BELOW)
        _format_axes(ax)
    return figure


def pixel_calibration(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw a reliability diagram of pixels, and the distribution of their confidence."""
    require_scores(trained, segmented)
    sums = segmented.metrics.calibration.cpu()
    confidence, accuracy, share = (np.asarray(x) for x in reliability(sums))
    error = float((share * np.abs(accuracy - confidence)).sum())
    figure = style.figure(
        10.5,
        4.7,
        f"Calibration of pixels: {trained.recipe.model} on {trained.recipe.data}",
        f"{_pixels(int(sums[:, 0].sum()))} of the test split in {CONFIDENCE_BINS} bins of "
        "confidence (the highest probability). ECE is the mean gap, weighted by pixels (Guo et "
        "al. 2017).\n"
        "Below the diagonal the network is overconfident.",
    )
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=(0, (1, 2)))
    left.vlines(confidence, accuracy, confidence, color=style.ORANGE, linewidth=4, alpha=0.5)
    left.plot(confidence, accuracy, "o-", color=style.BLUE, markersize=5)
    left.set(title=f"Reliability: ECE {style.percent(error, 2)}", ylabel="accuracy")
    left.set_xlabel("mean confidence in the bin")
    _format_axes(left)
    _histogram(right, sums)
    return figure


def _histogram(ax: Axes, sums: Tensor) -> None:
    """Draw the share of pixels in each bin, with lines at the mean confidence and the accuracy."""
    count, confidence, hits = (float(x) for x in sums.sum(0))
    edges = np.arange(CONFIDENCE_BINS) / CONFIDENCE_BINS
    fractions = np.asarray(sums[:, 0]) / count
    ax.bar(edges, 100 * fractions, width=0.92 / CONFIDENCE_BINS, align="edge", color=style.BLUE)
    for value, name, colour in (
        (confidence / count, "mean confidence", style.ORANGE),
        (hits / count, "accuracy", style.INK),
    ):
        label = f"{name} {style.percent(value, 2)}"
        ax.axvline(value, color=colour, linewidth=1.4, linestyle=(0, (2, 1.5)), label=label)
    ax.set(title="Confidence", xlabel="confidence", ylabel="% of pixels", xlim=UNIT)
    ax.legend(loc="upper left")
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)


def _classes_to_draw(sums: Tensor) -> list[int]:
    """Return the classes to draw: the second of two, otherwise those with the lowest AP."""
    present = [k for k, pair in enumerate(sums) if (pair.sum(0) > 0).all()]
    if len(sums) == 2:
        return present[-1:]
    ranked = sorted(present, key=lambda k: average_precision(*sums[k].unbind(1)))
    return sorted(ranked[: len(style.RUNS)])


def _selection_note(classes: int, drawn: int) -> str:
    if classes > 2 and drawn == len(style.RUNS) < classes:
        return f" The {drawn} classes with the lowest AP are shown."
    return ""


def _pixels(count: int) -> str:
    return f"{count:,} {'pixel' if count == 1 else 'pixels'}"


def _format_axes(ax: Axes) -> None:
    ticks: Sequence[float] = np.linspace(0, 1, 6).tolist()
    ax.set(xlim=UNIT, ylim=UNIT, aspect="equal", xticks=ticks, yticks=ticks)
    ax.grid()
