"""The view `calibration`: reliability diagrams, before and after temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.results.metrics import (
    BINS,
    TEMPERATURES,
    Reliability,
    fit_temperature,
    reliability,
)

__all__ = ["calibration"]

UNIT = (-0.02, 1.02)  # axis limits of a fraction


def calibration(
    trained: Trained, predictions: Predictions, validation: Predictions | None
) -> Figure:
    """Draw reliability diagrams before and, with validation images, after temperature scaling."""
    note, temperature = "There are no validation images to fit a temperature on.", None
    # Fitting on the test split would make the result look better than it is.
    if validation is not None:
        temperature = fit_temperature(validation.logits, validation.targets)
        note = _temperature_note(temperature, len(validation.targets))
    figure = style.figure(
        10.5,
        6.6,
        f"Calibration on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{len(predictions.targets):,} images in {BINS} bins of confidence (the highest "
        "probability). ECE: the mean gap, weighted by images; MCE: the largest gap; Brier:\n"
        "the mean squared distance of the probabilities from the one-hot target, 0 to 2; NLL: the "
        f"mean negative log-likelihood of the true class.\n{note}",
    )
    left, right = figure.subplots(2, 2, height_ratios=(3, 1), sharex=True).T
    before = reliability(predictions.logits, predictions.targets)
    _panel(left, "As trained", before)
    handles = left[0].get_legend_handles_labels()
    left[1].legend(*handles, loc="upper left", bbox_to_anchor=(0, -0.42), ncols=2)
    if temperature is None:
        _no_temperature(right)
        return figure
    after = reliability(predictions.logits / temperature, predictions.targets)
    _panel(right, f"Logits divided by a temperature of {temperature:.3f}", after)
    return figure


def _temperature_note(temperature: float, images: int) -> str:
    """Describe how the temperature was fitted, with a warning at the limits of the search."""
    text = (
        f"The temperature minimises the NLL on the {images:,} images of the validation split, not "
        "of the test split (Guo et al. 2017, arXiv:1706.04599)."
    )
    low, high = TEMPERATURES
    if not 1.01 * low < temperature < 0.99 * high:
        text += f"\nIt is at the limit of the search range, {low:g} to {high:g}."
    return text


def _panel(axes: Sequence[Axes], title: str, stats: Reliability) -> None:
    """Draw the accuracy and the gap of each bin, and below the share of images in it."""
    ax, histogram = axes
    edges, width = stats.bins / BINS, 1 / BINS
    lower = np.minimum(stats.accuracy, stats.confidence)
    gap = np.abs(stats.accuracy - stats.confidence)
    bar_style: dict[str, Any] = {"align": "edge", "width": width}
    ax.bar(edges, stats.accuracy, color=style.BLUE, alpha=0.75, label="accuracy", **bar_style)
    ax.bar(
        edges,
        gap,
        bottom=lower,
        facecolor="none",
        edgecolor=style.ORANGE,
        hatch="////",
        linewidth=0.8,
        label="gap to the mean confidence",
        **bar_style,
    )
    ax.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1.2, linestyle=(0, (1, 2)))
    scores = (
        f"ECE {style.percent(stats.ece, 2)},  MCE {style.percent(stats.mce, 2)},  "
        f"Brier {stats.brier:.4f},  NLL {stats.nll:.4f}"
    )
    ax.set(title=f"{title}\n{scores}", ylabel="accuracy", xlim=UNIT, ylim=UNIT)
    ax.grid(axis="y")
    histogram.bar(edges, 100 * stats.share, color=style.BLUE, **bar_style)
    histogram.set(xlabel="confidence", ylabel="% of images", ylim=(0, 100), yticks=(0, 50, 100))
    histogram.grid(axis="y")


def _no_temperature(axes: Sequence[Axes]) -> None:
    """Explain, where the second diagram would be, why there is none."""
    for ax in axes:
        ax.set_axis_off()
    ax = axes[0]
    ax.set_title("No temperature")
    ax.text(
        0.5,
        0.5,
        "No temperature could be fitted:\nthere are no validation images\n"
        "(recipe: validation = 0, or other data).",
        transform=ax.transAxes,
        ha="center",
        color=style.MUTED,
    )
