"""The views `confusion` and `pixel_confusion`: confusion matrices of images and of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.results.metrics import (
    MAX_UNSORTED,
    ConfusionTable,
    confusion_counts,
    confusion_table,
)
from cnn_viz.results.segmentations import SegmentationResults

__all__ = ["confusion", "pixel_confusion"]

FIGURE_SPACE = "\N{FIGURE SPACE}"  # as wide as a digit, to align numbers
MAX_CHARACTERS = 18  # of a class name
MAX_NUMBERED = 60  # with more classes than this, the cells have no numbers
MAX_WHOLE = 150  # with more classes than this, only a part of the matrix is drawn
OTHERS = "other classes"
GROUPING_NOTE = (
    "\nClasses that are often confused are next to each other: average linkage on "
    f"1 {style.MINUS} the confusion rate."
)


def confusion(trained: Trained, predictions: Predictions) -> Figure:
    """Draw the confusion matrix, coloured by the fraction of the true class's images.

    With more than 150 classes, only the 40 with the most mistakes are drawn.
    """
    counts = confusion_counts(predictions)
    table = confusion_table(counts, MAX_WHOLE)
    rows, columns = table.counts.shape
    names = [style.short(predictions.classes[k], MAX_CHARACTERS) for k in table.columns]
    names += [OTHERS] * table.others
    total, correct = counts.sum(), counts.trace()
    numbered, grouped = columns <= MAX_NUMBERED, rows > MAX_UNSORTED
    side = min(max(5.2, 0.25 * columns), 14.0)
    cell, margin = side / columns, 0.06 * max(map(len, names))
    figure = style.figure(
        side + margin + (2.4 if numbered else 1.3),
        max(cell * rows, 2.0) + margin + (1.2 if grouped else 1.0) + 0.2 * (rows < columns),
        f"Confusion on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{total:,} images, {correct:,} of them correct ({style.percent(correct / total)}). "
        + ("Numbers count images; an empty cell is 0." if numbered else f"{rows:,} classes.")
        + _selection_note(table)
        + (GROUPING_NOTE if grouped else ""),
    )
    ax = figure.subplots()
    with np.errstate(invalid="ignore"):  # for a class without images
        rates = table.counts / table.counts.sum(1, keepdims=True)
    image = ax.imshow(rates, cmap=style.SEQUENTIAL, vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, pad=0.02, format=style.percent_tick, aspect=30)
    bar.set_label("share of the true class's images")
    bar.outline.set_visible(False)
    _name_axes(ax, names, rows, cell)
    if numbered:
        _write_recall(ax, table.counts)
        _write_counts(ax, table.counts, rates, min(9.0, 72 * 0.38 * cell))
    return figure


def pixel_confusion(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw the confusion matrix of pixels, each row in per cent of the true class's pixels."""
    counts = segmented.metrics.pixels.cpu().numpy()
    table = confusion_table(counts, MAX_WHOLE)
    rows, columns = table.counts.shape
    names = [style.short(segmented.classes[k], MAX_CHARACTERS) for k in table.columns]
    names += [OTHERS] * table.others
    total, correct = counts.sum(), counts.trace()
    side = min(max(4.2, 0.36 * columns), 14.0)
    cell, margin = side / columns, 0.06 * max(map(len, names))
    figure = style.figure(
        side + margin + 1.6,
        max(cell * rows, 2.0) + margin + 1.1,
        f"Confusion of pixels: {trained.recipe.model} on {trained.recipe.data}",
        f"{total:,} pixels of the test split, {style.percent(correct / max(total, 1))} of them "
        "correct. Numbers: per cent of the true class's pixels; an empty cell is below 0.5."
        + _selection_note(table),
    )
    ax = figure.subplots()
    rates = table.counts / np.maximum(table.counts.sum(1, keepdims=True), 1)
    image = ax.imshow(rates, cmap=style.SEQUENTIAL, vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=ax, shrink=0.5, pad=0.02, format=style.percent_tick, aspect=30)
    bar.set_label("share of the true class's pixels")
    bar.outline.set_visible(False)
    _name_axes(ax, names, rows, cell)
    if columns <= MAX_NUMBERED:
        for row, column in np.argwhere(rates >= 0.005):
            light = "#ffffff" if rates[row, column] > 0.5 else "#000000"
            text, size = f"{100 * rates[row, column]:.0f}", min(9.0, 72 * 0.38 * cell)
            ax.text(column, row, text, ha="center", va="center", fontsize=size, color=light)
    return figure


def _selection_note(table: ConfusionTable) -> str:
    """Say which classes are drawn, if not all are."""
    if not table.selection:
        return ""
    note = f"\nRows: {table.selection}."
    return f"{note} Last column: all other classes." if table.others else note


def _name_axes(ax: Axes, names: Sequence[str], rows: int, cell: float) -> None:
    """Label the axes with the classes, and draw lines between cells of `cell` inches.

    `names` are the names of the columns; the first `rows` of them are also those of the rows.
    """
    # A character is about 0.1 inches wide.
    upright = 0.1 * max(map(len, names), default=0) < cell
    size = min(_font_size(names), 0.75 * 72 * cell)
    ax.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=size)
    ax.set_yticks(range(rows), names[:rows], fontsize=size)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(0.5, len(names) - 1), minor=True)
    ax.set_yticks(np.arange(0.5, rows - 1), minor=True)
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
