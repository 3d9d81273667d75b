"""The view `rankings`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results.metrics import STEPS, OneVsRest, mean_curves, one_vs_rest, ranking_curves

__all__ = ["rankings"]

NAMED = 6  # classes, the worst
DRAWN = 40  # classes, the worst: more curves are a stain
UNIT = (-0.02, 1.02)
STEPPED: dict[str, Any] = {"drawstyle": "steps-pre"}  # AP is the area below the steps


def rankings(run: Run, predictions: Predictions) -> Figure:
    """Draw precision against recall, and the ROC curve, of each class against all others."""
    scores, shares = one_vs_rest(predictions), predictions.logits.double().softmax(1)
    there = [k for k, score in enumerate(scores) if not np.isnan(score.auc)]
    if not there:
        raise UsageError(f"{run.path}: the test split has images of one class only")
    worst = sorted(there, key=lambda k: scores[k].ap)
    named, others = worst[:NAMED], worst[NAMED:DRAWN]
    figure = style.figure(
        10.5,
        6.8,
        f"Ranking of images on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{len(predictions.targets):,} images, each class against all others, at every threshold "
        f"of its probability. {_which(len(named), len(others), len(there))}\n"
        f"The mean is of {len(there)} classes that have images, at {STEPS} even steps of "
        "recall and rate. Dotted: a ranking by chance.",
    )
    left, right = figure.subplots(1, 2)
    for number in reversed(others):
        curves = ranking_curves(shares, predictions.targets, number)
        look: dict[str, Any] = {"color": style.MUTED, "alpha": 0.35, "linewidth": 0.8}
        left.plot(*curves[0], **STEPPED, **look)
        right.plot(*curves[1], **look)
    for number, colour in zip(named, style.RUNS, strict=False):
        name, score = style.short(predictions.classes[number], 18), scores[number]
        first, second = ranking_curves(shares, predictions.targets, number)
        look = {"color": colour, "linewidth": 1.4}
        left.plot(*first, **STEPPED, **look, label=f"{name}, AP {style.share(score.ap, 3)}")
        right.plot(*second, **look, label=f"{name}, AUC {style.share(score.auc, 4)}")
    _means(left, right, shares, predictions.targets, {k: scores[k] for k in there})
    chance: dict[str, Any] = {"color": style.MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
    right.plot([0, 1], [0, 1], **chance)
    left.axhline(1 / len(there), **chance)
    left.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    right.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        _unit(ax)
    return figure


def _means(
    left: Axes, right: Axes, shares: Tensor, targets: Tensor, scores: dict[int, OneVsRest]
) -> None:
    """Draw the mean curves, and say the macro means of the areas."""
    ap = float(np.mean([score.ap for score in scores.values()]))
    auc = float(np.mean([score.auc for score in scores.values()]))
    first, second = mean_curves(shares, targets, list(scores))
    look: dict[str, Any] = {"color": style.INK, "linewidth": 2.4, "linestyle": (0, (4, 1.5))}
    left.plot(*first, **STEPPED, label=f"mean of all, AP {style.share(ap, 3)}", **look)
    right.plot(*second, label=f"mean of all, AUC {style.share(auc, 4)}", **look)


def _which(named: int, others: int, there: int) -> str:
    """Say which classes are drawn."""
    if named == there:
        return f"All {there} classes, the lowest AP first."
    thin = f"grey: {'the other' if named + others == there else 'the next'} {others}"
    return f"In colour: the {named} classes of the lowest AP; {thin}."


def _unit(ax: Axes) -> None:
    ticks = np.linspace(0, 1, 6).tolist()
    ax.set(xlim=UNIT, ylim=UNIT, xticks=ticks, yticks=ticks)
    ax.grid()
