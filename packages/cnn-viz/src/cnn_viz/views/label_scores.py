"""The view `label_scores`: average precision, F1, precision and recall of each label."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from cnn_core.training import LabelPredictions, Trained
from cnn_viz import style
from cnn_viz.results.labels import label_scores as scores_of
from cnn_viz.views.class_scores import column

__all__ = ["label_scores"]

MAX_CLASSES = 30  # those with the lowest average precision
COLUMNS = {
    "ap": "average precision",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
}


def label_scores(trained: Trained, labelled: LabelPredictions) -> Figure:
    """Draw average precision, F1, precision and recall by class, lowest AP first."""
    scores = scores_of(labelled)
    order = sorted(range(len(scores)), key=lambda k: _undefined_last(scores[k].ap))
    worst = order[:MAX_CLASSES]
    few = len(worst) == len(scores)
    selection = f"All {len(scores)}" if few else f"The worst {len(worst)} of {len(scores):,}"
    figure = style.figure(
        10.5,
        1.55 + 0.24 * len(worst),
        f"Scores by label on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{selection} classes, lowest average precision first, with the number of images of each "
        f"({len(labelled.targets):,} in all) and the threshold. Dotted: the mean of all classes.\n"
        "Average precision ranks all images by the class's probability; the others count the "
        "images whose probability reaches the threshold.",
    )
    axes = figure.subplots(1, len(COLUMNS), sharey=True, squeeze=False)[0]
    for ax, (key, title) in zip(axes, COLUMNS.items(), strict=True):
        column(ax, title, [getattr(score, key) for score in scores], worst)
    names = [
        f"{style.short(scores[k].name, 20)}  ({scores[k].support:,}; {scores[k].threshold:.2f})"
        for k in worst
    ]
    axes[0].set_yticks(range(len(worst)), names, color=style.INK)
    axes[0].set_ylim(len(worst) - 0.4, -0.6)
    return figure


def _undefined_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
