"""The view `confusion`: the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results.metrics import cluster_order, confusion_counts

__all__ = ["confusion"]

FIGURE_SPACE = "\N{FIGURE SPACE}"  # as wide as a digit, to align numbers
MAX_CHARACTERS = 18  # of a class name
MAX_UNSORTED = 12  # with more classes than this, confused ones are grouped
MAX_NUMBERED = 60  # with more classes than this, the cells have no numbers
MAX_NAMED = 150  # with more classes than this, the axes have no class names
GROUPING_NOTE = (
    "\nClasses that are often confused are next to each other: average linkage on "
    f"1 {style.MINUS} the confusion rate."
)


def confusion(run: Run, predictions: Predictions) -> Figure:
    """Draw the confusion matrix, coloured by the fraction of the true class's images."""
    counts = confusion_counts(predictions)
    classes, names = len(counts), predictions.classes
    grouped = classes > MAX_UNSORTED
    if grouped:
        order = cluster_order(counts)
        counts, names = counts[np.ix_(order, order)], tuple(names[k] for k in order)
    total, correct = counts.sum(), counts.trace()
    numbered = classes <= MAX_NUMBERED
    side = min(max(5.2, 0.25 * classes), 14.0)
    margin = 0.06 * min(max(map(len, names)), MAX_CHARACTERS) if classes <= MAX_NAMED else 0.0
    figure = style.figure(
        side + margin + (2.4 if numbered else 1.3),
        side + margin + (1.2 if grouped else 1.0),
        f"Confusion on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{total:,} images, {correct:,} of them correct ({style.percent(correct / total)}). "
        + ("Numbers count images; an empty cell is 0." if numbered else f"{classes:,} classes.")
        + (GROUPING_NOTE if grouped else ""),
    )
    ax = figure.subplots()
    with np.errstate(invalid="ignore"):  # for a class without images
        rates = counts / counts.sum(1, keepdims=True)
    image = ax.imshow(rates, cmap=style.SEQUENTIAL, vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, pad=0.02, format=style.percent_tick, aspect=30)
    bar.set_label("share of the true class's images")
    bar.outline.set_visible(False)
    _name_axes(ax, names, side / classes)
    if numbered:
        _write_recall(ax, counts)
        _write_counts(ax, counts, rates, min(9.0, 72 * 0.38 * side / classes))
    return figure


def _name_axes(ax: Axes, names: tuple[str, ...], cell: float) -> None:
    """Label the axes with the classes, and draw lines between cells of `cell` inches."""
    places = range(len(names)) if len(names) <= MAX_NAMED else []
    labels = [style.short(names[k], MAX_CHARACTERS) for k in places]
    # A character is about 0.1 inches wide.
    upright = 0.1 * max(map(len, labels), default=0) < cell
    size = min(_font_size(names), 0.75 * 72 * cell)
    ax.set_xticks(places, labels, rotation=0 if upright else 90, fontsize=size)
    ax.set_yticks(places, labels, fontsize=size)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.spines[:].set_visible(False)
    if places:
        ax.set_xticks(np.arange(0.5, len(names) - 1), minor=True)
        ax.set_yticks(np.arange(0.5, len(names) - 1), minor=True)
        ax.grid(which="minor", linewidth=0.5)
        ax.tick_params(which="minor", length=0)


def _write_recall(ax: Axes, counts: Any) -> None:
    """Write the recall of each class in the right margin."""
    rows = [_recall_label(row, k) for k, row in enumerate(counts)]
    margin = ax.secondary_yaxis("right")
    margin.set_yticks(range(len(rows)), rows, fontsize=_font_size(rows))
    margin.spines[:].set_visible(False)
    ax.text(
        1.01,
        1.01,
        "recall: correct/images",
        transform=ax.transAxes,
        fontsize=_font_size(rows),
        color=style.MUTED,
        va="bottom",
    )


def _font_size(rows: Sequence[str]) -> float:
    return 9.0 if len(rows) <= 20 else 6.5


def _recall_label(row: Any, k: int) -> str:
    if not row.sum():
        return "no images"
    recall = style.percent(row[k] / row.sum())
    return f"{recall.rjust(len('100.0 %'), FIGURE_SPACE)}  {row[k]}/{row.sum()}"


def _write_counts(ax: Axes, counts: Any, rates: Any, size: float) -> None:
    """Write the non-zero counts: mistakes bold, and orange if the cell is light."""
    for row, column in np.argwhere(counts):
        light = row != column and rates[row, column] < 0.3
        ax.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold" if row != column else "normal",
            color="#ffffff" if rates[row, column] > 0.5 else style.ORANGE if light else "#000000",
        )
