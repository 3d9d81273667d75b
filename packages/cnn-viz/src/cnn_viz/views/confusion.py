"""The view `confusion`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results.metrics import clustered, confusion_counts

__all__ = ["confusion"]

FIGURE_SPACE = "\N{FIGURE SPACE}"  # as wide as a digit
LONGEST = 18  # characters of a class's name
ORDERED = 12  # of more classes than this those are brought together that are confused
WRITTEN = 60  # with more classes than this the matrix has no numbers
NAMED = 150  # and with more than this no names
GROUPED = (
    "\nClasses that are taken for each other stand together: average linkage on "
    f"1 {style.MINUS} the share "
    "of images confused."
)


def confusion(run: Run, predictions: Predictions) -> Figure:
    """Draw how often each class was taken for each; colour is the share of the true class."""
    counts = confusion_counts(predictions)
    classes, names = len(counts), predictions.classes
    grouped = classes > ORDERED
    if grouped:
        order = clustered(counts)
        counts, names = counts[np.ix_(order, order)], tuple(names[k] for k in order)
    total, right = counts.sum(), counts.trace()
    written = classes <= WRITTEN
    side = min(max(5.2, 0.25 * classes), 14.0)
    margin = 0.06 * min(max(map(len, names)), LONGEST) if classes <= NAMED else 0.0
    figure = style.figure(
        side + margin + (2.4 if written else 1.3),
        side + margin + (1.2 if grouped else 1.0),
        f"Confusion on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{total:,} images, {right:,} of them right ({style.percent(right / total)}). "
        + ("Numbers are images; no number: none." if written else f"{classes:,} classes.")
        + (GROUPED if grouped else ""),
    )
    ax = figure.subplots()
    with np.errstate(invalid="ignore"):  # a class that the split lacks
        shares = counts / counts.sum(1, keepdims=True)
    image = ax.imshow(shares, cmap=style.SEQUENTIAL, vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, pad=0.02, format=style.percent_tick, aspect=30)
    bar.set_label("share of the true class's images")
    bar.outline.set_visible(False)
    _name_axes(ax, names, side / classes)
    if written:
        _write_recall(ax, counts)
        _write_counts(ax, counts, shares, min(9.0, 72 * 0.38 * side / classes))
    return figure


def _name_axes(ax: Axes, names: tuple[str, ...], cell: float) -> None:
    """Write classes left and below, and draw lines between the cells, `cell` inches wide."""
    places = range(len(names)) if len(names) <= NAMED else []
    labels = [style.short(names[place], LONGEST) for place in places]
    upright = 0.1 * max(map(len, labels), default=0) < cell
    size = min(_size(names), 0.75 * 72 * cell)
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
    """Write each class's recall at the right margin."""
    rows = [_recall(row, place) for place, row in enumerate(counts)]
    margin = ax.secondary_yaxis("right")
    margin.set_yticks(range(len(rows)), rows, fontsize=_size(rows))
    margin.spines[:].set_visible(False)
    ax.text(
        1.01,
        1.01,
        "recall: right/images",
        transform=ax.transAxes,
        fontsize=_size(rows),
        color=style.MUTED,
        va="bottom",
    )


def _size(rows: Sequence[str]) -> float:
    return 9.0 if len(rows) <= 20 else 6.5


def _recall(row: Any, place: int) -> str:
    if not row.sum():
        return "no images"
    share = style.percent(row[place] / row.sum())
    return f"{share.rjust(len('100.0 %'), FIGURE_SPACE)}  {row[place]}/{row.sum()}"


def _write_counts(ax: Axes, counts: Any, shares: Any, size: float) -> None:
    """Write the numbers that are not 0: mistakes bold, and orange where the cell is light."""
    for row, column in np.argwhere(counts):
        light = row != column and shares[row, column] < 0.3
        ax.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold" if row != column else "normal",
            color="#ffffff" if shares[row, column] > 0.5 else style.ORANGE if light else "#000000",
        )
