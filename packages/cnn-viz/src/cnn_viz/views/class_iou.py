"""The view `class_iou`: the IoU of each class over the pixels of the test split."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from cnn_core.tasks.regions import Overlap
from cnn_core.training import Trained
from cnn_viz import style
from cnn_viz.results.segmentations import SegmentationResults
from cnn_viz.views.masks import require_scores

__all__ = ["class_iou"]

MAX_CLASSES = 60  # bars; with more, those with the lowest IoU
ROW = 0.24  # inches


def class_iou(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw the IoU of each class, in its colour, with its share of the pixels; the best first."""
    require_scores(trained, segmented)
    overlap = Overlap.of(segmented.metrics.pixels)
    present = overlap.present.nonzero().flatten().tolist()
    ranked = sorted(present, key=lambda k: -float(overlap.iou[k]))[-MAX_CLASSES:]
    absent = len(segmented.classes) - len(present)
    left_out = len(present) - len(ranked)
    notes = [f" {absent} classes are neither present nor predicted." if absent else ""]
    notes += [f" Without the {left_out} classes with the highest IoU." if left_out else ""]
    figure = style.figure(
        8.0,
        1.5 + ROW * len(ranked),
        f"IoU of each class: {trained.recipe.model} on {trained.recipe.data}",
        "TP / (TP + FP + FN) over all pixels of the test split that are not ignored; the dotted "
        f"line is the mean.{''.join(notes)}",
    )
    ax = figure.subplots()
    rows, values = range(len(ranked)), [float(overlap.iou[k]) for k in ranked]
    colours = [segmented.colours[k] for k in ranked]
    ax.barh(rows, values, color=colours, edgecolor=style.MUTED, linewidth=0.5, height=0.7)
    ax.axvline(overlap.mean(overlap.iou), color=style.INK, linewidth=1, linestyle=(0, (1, 2)))
    ax.set_yticks(rows, [style.short(segmented.classes[k], 18) for k in ranked])
    ax.invert_yaxis()
    shares = segmented.metrics.pixels.cpu().sum(1) / max(int(segmented.metrics.pixels.sum()), 1)
    for row, k, value in zip(rows, ranked, values, strict=True):
        text = f"{style.percent(value)}  ({style.percent(float(shares[k]))} of the pixels)"
        ax.text(value + 0.01, row, text, va="center", fontsize=8, color=style.MUTED)
    ax.set(xlim=(0, 1.45), xlabel="IoU", xticks=np.linspace(0, 1, 6).tolist())
    ax.spines[["bottom"]].set_visible(False)
    return figure
