"""The view `coverage`: accuracy on the most confident images."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.results.metrics import risk_coverage

__all__ = ["coverage"]

LABELLED = (0.7, 0.8, 0.9)  # coverages at which the curve is labelled with its accuracy
MAX_POINTS = 1000  # per curve, to keep the SVG small


def coverage(trained: Trained, predictions: Predictions) -> Figure:
    """Draw the accuracy on the most confident images against their share, the coverage."""
    confidence = predictions.logits.double().softmax(1).amax(1)
    hit = predictions.predicted == predictions.targets
    risk, ideal = risk_coverage(confidence, hit), risk_coverage(hit.double(), hit)
    count = len(hit)
    indices = np.unique(np.linspace(0, count - 1, MAX_POINTS).round().astype(int))
    coverages = (indices + 1) / count
    figure = style.figure(
        10.5,
        5.0,
        f"Accuracy by coverage on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{count:,} images. The network answers only for the most confident images and abstains "
        "on the rest. AURC is the area under the risk-coverage\ncurve, the mean of "
        f"1 {style.MINUS} accuracy; lower is better (Geifman et al. 2019, arXiv:1805.08206). "
        "Ideal order: all correct images come before all mistakes.\n"
        f"{_tie_note(confidence.unique().numel(), count)}",
    )
    ax = figure.subplots()
    for values, label, line_style in (
        (ideal, "ideal order", {"color": style.MUTED, "linestyle": (0, (1, 1.5))}),
        (risk, "by confidence", {"color": style.BLUE}),
    ):
        text = f"{label}, AURC {values.mean():.4f}"
        ax.plot(100 * coverages, 100 * (1 - values[indices]), label=text, **line_style)
    overall = 1 - risk[-1]
    text = f"all images, {style.percent(overall)}"
    ax.axhline(100 * overall, color=style.ORANGE, linewidth=1, linestyle=(0, (4, 2)), label=text)
    curves = (100 * (1 - values[indices]) for values in (risk, ideal))
    ax.fill_between(100 * coverages, *curves, color=style.BLUE, alpha=0.12)
    lowest = min(float((1 - risk).min()), overall)
    _label_points(ax, risk)
    margin = max(100 * (1 - lowest) * 0.35, 0.5)
    ax.set(xlabel="coverage: % of images, most confident first", ylabel="accuracy, %")
    ax.set(xlim=(0, 101), ylim=(max(100 * lowest - margin, 0), 100 + margin / 10))
    ax.grid()
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def _label_points(ax: Axes, risk: NDArray[np.float64]) -> None:
    """Mark the accuracy at each coverage in `LABELLED`, rounded to whole images."""
    count = len(risk)
    for answered in sorted({round(share * count) for share in LABELLED} - {0, count}):
        accuracy = float(1 - risk[answered - 1])
        point = (100 * answered / count, 100 * accuracy)
        ax.plot(*point, "o", color=style.BLUE, markersize=5)
        ax.annotate(
            f"{style.percent(accuracy)} of the\ntop {point[0]:.0f} %",
            point,
            (0, -8),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 1},
        )


def _tie_note(distinct: int, count: int) -> str:
    """Return a caption line about images of equal confidence, or "" if there are none."""
    if distinct == count:
        return ""
    return "Images of equal confidence each count with their mean accuracy."
