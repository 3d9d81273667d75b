"""The view `rankings`: precision-recall and ROC curves of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results.metrics import (
    CURVE_POINTS,
    OneVsRest,
    mean_curves,
    one_vs_rest,
    ranking_curves,
)

__all__ = ["rankings"]

NAMED = 6  # classes, the worst, in colour
DRAWN = 40  # classes: more curves would only be a blot
UNIT = (-0.02, 1.02)
STEPPED: dict[str, Any] = {"drawstyle": "steps-pre"}  # AP is the area under the steps


def rankings(run: Run, predictions: Predictions) -> Figure:
    """Draw precision-recall and ROC curves of each class, one-vs-rest."""
    scores, probabilities = one_vs_rest(predictions), predictions.logits.double().softmax(1)
    defined = [k for k, score in enumerate(scores) if not np.isnan(score.auc)]
    if not defined:
        raise UsageError(f"{run.path}: the test split has images of one class only")
    worst = sorted(defined, key=lambda k: scores[k].ap)
    named, others = worst[:NAMED], worst[NAMED:DRAWN]
    figure = style.figure(
        10.5,
        6.8,
        f"Ranking of images on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{len(predictions.targets):,} images, each class against all others, at every threshold "
        f"of its probability. {_which(len(named), len(others), len(defined))}\n"
        f"The mean is over the {len(defined)} classes with images, at {CURVE_POINTS} evenly "
        "spaced values of recall and false positive rate. Dotted: a random ranking.",
    )
    left, right = figure.subplots(1, 2)
    # Drawn first, below the named classes; the worst of them on top.
    for number in reversed(others):
        curves = ranking_curves(probabilities, predictions.targets, number)
        options: dict[str, Any] = {"color": style.MUTED, "alpha": 0.35, "linewidth": 0.8}
        left.plot(*curves[0], **STEPPED, **options)
        right.plot(*curves[1], **options)
    for number, colour in zip(named, style.RUNS, strict=False):
        name, score = style.short(predictions.classes[number], 18), scores[number]
        first, second = ranking_curves(probabilities, predictions.targets, number)
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
        _unit(ax)
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


def _which(named: int, others: int, defined: int) -> str:
    """Describe which classes are drawn."""
    if named == defined:
        return f"All {defined} classes, lowest AP first."
    thin = f"grey: {'the other' if named + others == defined else 'the next'} {others}"
    return f"In colour: the {named} classes with the lowest AP; {thin}."


def _unit(ax: Axes) -> None:
    ticks = np.linspace(0, 1, 6).tolist()
    ax.set(xlim=UNIT, ylim=UNIT, xticks=ticks, yticks=ticks)
    ax.grid()
