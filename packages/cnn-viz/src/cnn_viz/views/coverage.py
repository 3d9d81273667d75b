"""The view `coverage`."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results.metrics import risk_coverage

__all__ = ["coverage"]

SHARES = (0.7, 0.8, 0.9)  # of the images, about: there the accuracy is written
POINTS = 1000  # of a curve, at most


def coverage(run: Run, predictions: Predictions) -> Figure:
    """Draw the accuracy on the images that the network is surest of, by how many these are."""
    confidence = predictions.logits.double().softmax(1).amax(1)
    hit = predictions.predicted == predictions.targets
    risk, ideal = risk_coverage(confidence, hit), risk_coverage(hit.double(), hit)
    count = len(hit)
    places = np.unique(np.linspace(0, count - 1, POINTS).round().astype(int))
    shares = (places + 1) / count
    figure = style.figure(
        10.5,
        5.0,
        f"Accuracy by coverage on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{count:,} images, of which the network answers for those with the highest probability "
        f"of the predicted class, and leaves the rest. AURC is the mean of 1 {style.MINUS} "
        "accuracy:\nthe smaller the better (Geifman et al. 2019, arXiv:1805.08206). Ideal order: "
        "every image that is right comes before every mistake.\n"
        f"{_ties(confidence.unique().numel(), count)}",
    )
    ax = figure.subplots()
    for values, label, look in (
        (ideal, "ideal order", {"color": style.MUTED, "linestyle": (0, (1, 1.5))}),
        (risk, "by confidence", {"color": style.BLUE}),
    ):
        text = f"{label}, AURC {values.mean():.4f}"
        ax.plot(100 * shares, 100 * (1 - values[places]), label=text, **look)
    whole = 1 - risk[-1]
    text = f"all images, {style.percent(whole)}"
    ax.axhline(100 * whole, color=style.ORANGE, linewidth=1, linestyle=(0, (4, 2)), label=text)
    between = (100 * (1 - values[places]) for values in (risk, ideal))
    ax.fill_between(100 * shares, *between, color=style.BLUE, alpha=0.12)
    low = min(float((1 - risk).min()), whole)
    for surest in sorted({round(share * count) for share in SHARES} - {0, count}):
        accuracy = float(1 - risk[surest - 1])
        point = (100 * surest / count, 100 * accuracy)
        ax.plot(*point, "o", color=style.BLUE, markersize=5)
        ax.annotate(
            f"{style.percent(accuracy)} of the\nsurest {point[0]:.0f} %",
            point,
            (0, -8),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 1},
        )
    room = max(100 * (1 - low) * 0.35, 0.5)
    ax.set(xlabel="coverage: % of the images, the surest first", ylabel="accuracy, %")
    ax.set(xlim=(0, 101), ylim=(max(100 * low - room, 0), 100 + room / 10))
    ax.grid()
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def _ties(different: int, count: int) -> str:
    """Say how images as sure as each other are ordered, where there are any."""
    if different == count:
        return ""
    return "Images that are equally sure count as their mean."
