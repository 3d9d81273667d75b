"""The view `calibration`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.results.metrics import (
    BINS,
    TEMPERATURES,
    Reliability,
    fitted_temperature,
    reliability,
)

__all__ = ["calibration"]

UNIT = (-0.02, 1.02)


def calibration(run: Run, predictions: Predictions, validation: Predictions | None) -> Figure:
    """Draw how often images of each confidence are right, as trained and with a temperature."""
    how, heat = "Training held out no images: no temperature could be fitted.", None
    if validation is not None:
        heat = fitted_temperature(validation.logits, validation.targets)
        how = _fitted(heat, len(validation.targets))
    figure = style.figure(
        10.5,
        6.6,
        f"Calibration on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{len(predictions.targets):,} images in {BINS} bins of confidence, which is the highest "
        "probability. ECE: the mean gap, by images; MCE: the largest; Brier: the mean squared\n"
        "distance of the probabilities from the truth, 0 to 2; NLL: the mean negative logarithm "
        f"of the true class's probability.\n{how}",
    )
    left, right = figure.subplots(2, 2, height_ratios=(3, 1), sharex=True).T
    before = reliability(predictions.logits, predictions.targets)
    _panel(left, "As trained", before)
    handles = left[0].get_legend_handles_labels()
    left[1].legend(*handles, loc="upper left", bbox_to_anchor=(0, -0.42), ncols=2)
    if heat is None:
        _without(right)
        return figure
    after = reliability(predictions.logits / heat, predictions.targets)
    _panel(right, f"Logits divided by a temperature of {heat:.3f}", after)
    return figure


def _fitted(heat: float, images: int) -> str:
    """Say where the temperature is from, and whether it is a border of what was tried."""
    text = (
        f"The temperature is the one of the lowest NLL on the {images:,} images of the validation "
        "split, not of the test split (Guo et al. 2017, arXiv:1706.04599)."
    )
    low, high = TEMPERATURES
    if not 1.01 * low < heat < 0.99 * high:
        text += f"\nIt is at the border of what was tried, {low:g} to {high:g}."
    return text


def _panel(pair: Sequence[Axes], title: str, found: Reliability) -> None:
    """Draw the fraction that is right in each bin with its gap, and below how many are in it."""
    ax, below = pair
    edges, wide = found.bins / BINS, 1 / BINS
    low = np.minimum(found.accuracy, found.confidence)
    gap = np.abs(found.accuracy - found.confidence)
    box: dict[str, Any] = {"align": "edge", "width": wide}
    ax.bar(edges, found.accuracy, color=style.BLUE, alpha=0.75, label="fraction right", **box)
    ax.bar(
        edges,
        gap,
        bottom=low,
        facecolor="none",
        edgecolor=style.ORANGE,
        hatch="////",
        linewidth=0.8,
        label="gap to the mean confidence",
        **box,
    )
    ax.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1.2, linestyle=(0, (1, 2)))
    numbers = (
        f"ECE {style.percent(found.ece, 2)},  MCE {style.percent(found.mce, 2)},  "
        f"Brier {found.brier:.4f},  NLL {found.nll:.4f}"
    )
    ax.set(title=f"{title}\n{numbers}", ylabel="fraction right", xlim=UNIT, ylim=UNIT)
    ax.grid(axis="y")
    below.bar(edges, 100 * found.share, color=style.BLUE, **box)
    below.set(xlabel="confidence", ylabel="% of images", ylim=(0, 100), yticks=(0, 50, 100))
    below.grid(axis="y")


def _without(pair: Sequence[Axes]) -> None:
    """Say in the place of the second diagram why there is none."""
    for ax in pair:
        ax.set_axis_off()
    ax = pair[0]
    ax.set_title("No temperature")
    ax.text(
        0.5,
        0.5,
        "No temperature could be fitted:\ntraining held out no images for validation\n"
        "(recipe: validation = 0).",
        transform=ax.transAxes,
        ha="center",
        color=style.MUTED,
    )
