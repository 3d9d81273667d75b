"""The view `class_scores`: precision, recall, F1, AP and ECE of each class."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results import metrics

__all__ = ["class_scores"]

SHOWN = 30  # classes, the worst ones
COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "ap": "average precision",
    "ece": "class-wise ECE",
}


def class_scores(run: Run, predictions: Predictions) -> Figure:
    """Draw precision, recall, F1, AP and class-wise ECE of each class, lowest F1 first."""
    scores = metrics.class_scores(predictions)
    worst = sorted(range(len(scores)), key=lambda k: _sort_key(scores[k]))[:SHOWN]
    which = (
        f"The {SHOWN} of {len(scores)} classes with the lowest F1"
        if len(scores) > SHOWN
        else (f"All {len(scores)} classes")
    )
    figure = style.figure(
        10.5,
        1.55 + 0.24 * len(worst),
        f"Scores of the classes on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{which}, the worst first, with their numbers of images ({len(predictions.targets):,} in "
        "all). Dotted: the mean of all classes. Average precision ranks all images by the\n"
        "class's probability; class-wise ECE is the mean gap between that probability, in "
        f"{metrics.BINS} bins, and the frequency of the class (Kull et al. 2019, "
        "arXiv:1910.12656).",
    )
    axes = figure.subplots(1, len(COLUMNS), sharey=True)
    for ax, (key, title) in zip(axes, COLUMNS.items(), strict=True):
        _column(ax, title, [getattr(score, key) for score in scores], worst)
    names = [f"{style.short(scores[k].name, 20)}  ({scores[k].support:,})" for k in worst]
    axes[0].set_yticks(range(len(worst)), names, color=style.INK)
    axes[0].set_ylim(len(worst) - 0.4, -0.6)
    return figure


def _sort_key(score: metrics.ClassScore) -> tuple[float, float]:
    """Sort by F1, then by average precision; undefined scores come last."""
    f1, ap = (math.inf if math.isnan(value) else value for value in (score.f1, score.ap))
    return f1, ap


def _column(ax: Axes, title: str, values: list[float], shown: list[int]) -> None:
    """Draw one score of the classes shown and the mean of all; errors are orange."""
    error = title.endswith("ECE")
    shown_values = np.array([values[k] for k in shown])
    limit = max(0.001, *(value for value in values if not math.isnan(value))) if error else 1.0
    ax.barh(
        np.arange(len(shown)),
        np.nan_to_num(shown_values),
        height=0.66,
        color=style.ORANGE if error else style.BLUE,
    )
    for place, value in enumerate(shown_values.tolist()):
        text = "\N{EN DASH}" if math.isnan(value) else f"{100 * value:.{2 if error else 1}f}"
        ax.text(1.34 * limit, place, text, ha="right", va="center", fontsize=8)
    defined = [value for value in values if not math.isnan(value)]
    mean = sum(defined) / len(defined) if defined else math.nan
    if defined:
        ax.axvline(mean, color=style.INK, linewidth=1, linestyle=(0, (1, 2)))
    shown_mean = style.percent(mean, 2) if defined else "undefined"
    ax.set_title(f"{title}\nmean {shown_mean}")
    ax.set(xlim=(0, 1.46 * limit), xlabel="%")
    if error:
        ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}")
        ax.locator_params(axis="x", nbins=4)
    else:
        ax.set_xticks([0, 0.5, 1], labels=["0", "50", "100"])
    ax.grid(axis="x")
    ax.spines["bottom"].set_visible(False)
