"""The view `class_scores`: precision, recall, F1, AP and ECE of each class."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.results import metrics

__all__ = ["class_scores", "column"]

MAX_CLASSES = 30  # those with the lowest F1
COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "ap": "average precision",
    "ece": "class-wise ECE",
}


def class_scores(trained: Trained, predictions: Predictions) -> Figure:
    """Draw precision, recall, F1, AP and class-wise ECE by class, lowest F1 first."""
    scores = metrics.class_scores(predictions)
    if len(scores) > MAX_CLASSES:
        # Else predicted classes without images, with an F1 of 0, would fill the figure.
        scores = [score for score in scores if score.support]
    absent = len(predictions.classes) - len(scores)
    worst = sorted(range(len(scores)), key=lambda k: _sort_key(scores[k]))[:MAX_CLASSES]
    selection = (
        f"The {MAX_CLASSES} of {len(scores):,} classes with the lowest F1"
        if len(scores) > MAX_CLASSES
        else f"All {len(scores)} classes"
    )
    if absent:
        selection += f" (not the {absent:,} without images)"
    figure = style.figure(
        10.5,
        1.55 + 0.24 * len(worst),
        f"Scores by class on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{selection}, lowest F1 first, with the number of images of each "
        f"({len(predictions.targets):,} in all). Dotted: the mean of all classes. Average "
        "precision ranks all images\nby the class's probability; class-wise ECE is the mean gap "
        "between that probability and the frequency of the class, in "
        f"{metrics.BINS} bins (Kull et al. 2019, arXiv:1910.12656).",
    )
    axes = figure.subplots(1, len(COLUMNS), sharey=True)
    for ax, (key, title) in zip(axes, COLUMNS.items(), strict=True):
        column(ax, title, [getattr(score, key) for score in scores], worst)
    names = [f"{style.short(scores[k].name, 20)}  ({scores[k].support:,})" for k in worst]
    axes[0].set_yticks(range(len(worst)), names, color=style.INK)
    axes[0].set_ylim(len(worst) - 0.4, -0.6)
    return figure


def _sort_key(score: metrics.ClassScore) -> tuple[float, float]:
    """Return the key for sorting: F1, then average precision; undefined scores come last."""
    f1, ap = (math.inf if math.isnan(value) else value for value in (score.f1, score.ap))
    return f1, ap


def column(ax: Axes, title: str, values: list[float], drawn: list[int]) -> None:
    """Draw one score of the classes in `drawn`, with the mean of all; the ECE is orange."""
    is_error = title.endswith("ECE")
    drawn_values = np.array([values[k] for k in drawn])
    limit = max(0.001, *(value for value in values if not math.isnan(value))) if is_error else 1.0
    ax.barh(
        np.arange(len(drawn)),
        np.nan_to_num(drawn_values),
        height=0.66,
        color=style.ORANGE if is_error else style.BLUE,
    )
    for row, value in enumerate(drawn_values.tolist()):
        text = "\N{EN DASH}" if math.isnan(value) else f"{100 * value:.{2 if is_error else 1}f}"
        ax.text(1.34 * limit, row, text, ha="right", va="center", fontsize=8)
    defined = [value for value in values if not math.isnan(value)]
    mean = sum(defined) / len(defined) if defined else math.nan
    if defined:
        ax.axvline(mean, color=style.INK, linewidth=1, linestyle=(0, (1, 2)))
    mean_text = style.percent(mean, 2) if defined else "undefined"
    ax.set_title(f"{title}\nmean {mean_text}")
    ax.set(xlim=(0, 1.46 * limit), xlabel="%")
    if is_error:
        ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}")
        ax.locator_params(axis="x", nbins=4)
    else:
        ax.set_xticks([0, 0.5, 1], labels=["0", "50", "100"])
    ax.grid(axis="x")
    ax.spines["bottom"].set_visible(False)
