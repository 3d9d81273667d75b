"""The view `rankings`: precision-recall and ROC curves of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.results.metrics import (
    CURVE_POINTS,
    OneVsRest,
    mean_curves,
    one_vs_rest,
    ranking_curves,
)

__all__ = ["rankings"]

MAX_COLOURED = 6  # classes, those with the lowest AP, each with a colour and a legend entry
MAX_CURVES = 40  # classes; more curves could not be told apart
UNIT = (-0.02, 1.02)  # axis limits of a fraction
STEPPED: dict[str, Any] = {"drawstyle": "steps-pre"}  # AP is the area under the steps


def rankings(trained: Trained, predictions: Predictions) -> Figure:
    """Draw one-vs-rest precision-recall and ROC curves of up to 40 classes, and their means.

    Raises:
        UsageError: the test split has images of one class only.
    """
    scores, probabilities = one_vs_rest(predictions), predictions.logits.double().softmax(1)
    defined = [k for k, score in enumerate(scores) if not np.isnan(score.auc)]
    if not defined:
        raise UsageError(f"{trained.path}: the test split has images of one class only")
    worst = sorted(defined, key=lambda k: scores[k].ap)
    coloured, others = worst[:MAX_COLOURED], worst[MAX_COLOURED:MAX_CURVES]
    figure = style.figure(
        10.5,
        6.8,
        f"Ranking of images on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{len(predictions.targets):,} images, each class against all others, at every threshold "
        f"of its probability. {_selection(len(coloured), len(others), len(defined))}\n"
        f"The mean is over the {len(defined)} classes with images, at {CURVE_POINTS} evenly "
        "spaced values of recall and false positive rate. Dotted: a random ranking.",
    )
    left, right = figure.subplots(1, 2)
    # Grey curves first, to lie below the coloured ones; reversed, so that the worst is on top.
    for k in reversed(others):
        curves = ranking_curves(probabilities, predictions.targets, k)
        options: dict[str, Any] = {"color": style.MUTED, "alpha": 0.35, "linewidth": 0.8}
        left.plot(*curves[0], **STEPPED, **options)
        right.plot(*curves[1], **options)
    for k, colour in zip(coloured, style.RUNS, strict=False):
        name, score = style.label(predictions.classes[k], 18), scores[k]
        first, second = ranking_curves(probabilities, predictions.targets, k)
        options = {"color": colour, "linewidth": 1.4}
        left.plot(*first, **STEPPED, **options, label=f"{name}, AP {style.share(score.ap, 3)}")
        right.plot(*second, **options, label=f"{name}, AUC {style.share(score.auc, 4)}")
    _means(left, right, probabilities, predictions.targets, {k: scores[k] for k in defined})
    chance: dict[str, Any] = {"color": style.MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
    right.plot([0, 1], [0, 1], **chance)
    left.axhline(1 / len(defined), **chance)
    left.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    right.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        _format_axes(ax)
    return figure


def _means(
    left: Axes, right: Axes, probabilities: Tensor, targets: Tensor, scores: dict[int, OneVsRest]
) -> None:
    """Draw the mean curves, labelled with the macro-averaged areas."""
    ap = float(np.mean([score.ap for score in scores.values()]))
    auc = float(np.mean([score.auc for score in scores.values()]))
    first, second = mean_curves(probabilities, targets, list(scores))
    options: dict[str, Any] = {"color": style.INK, "linewidth": 2.4, "linestyle": (0, (4, 1.5))}
    left.plot(*first, **STEPPED, label=f"mean of all, AP {style.share(ap, 3)}", **options)
    right.plot(*second, label=f"mean of all, AUC {style.share(auc, 4)}", **options)


def _selection(coloured: int, others: int, defined: int) -> str:
    """Describe which classes are drawn."""
    if coloured == defined:
        return f"All {defined} classes, lowest AP first."
    grey = f"grey: {'the other' if coloured + others == defined else 'the next'} {others}"
    return f"In colour: the {coloured} classes with the lowest AP; {grey}."


def _format_axes(ax: Axes) -> None:
    ticks = np.linspace(0, 1, 6).tolist()
    ax.set(xlim=UNIT, ylim=UNIT, xticks=ticks, yticks=ticks)
    ax.grid()
