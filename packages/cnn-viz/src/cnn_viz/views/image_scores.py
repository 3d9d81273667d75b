"""The view `image_scores`: the distribution of per-image scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cnn_core.training import Trained
from cnn_viz import style
from cnn_viz.results.segmentations import SegmentationResults
from cnn_viz.views.masks import require_scores

__all__ = ["image_scores"]

NAMES = {"miou": "mIoU", "dice": "Dice", "boundary_f1": "Boundary F1, 2 pixels"}
MIN_HISTOGRAM = 12  # images; with fewer, draw a point for each


def image_scores(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw the distribution of mIoU, Dice and boundary F1 over the test images."""
    scores = require_scores(trained, segmented)
    figure = style.figure(
        10.5,
        3.2,
        f"Scores of each image: {trained.recipe.model} on {trained.recipe.data}",
        f"{len(scores):,} images of the test split. mIoU and Dice are means over the classes in "
        "the image or its prediction. Boundary F1, with a tolerance of 2 pixels, "
        "is the mean\nover the foreground classes. The dotted line is the median.",
    )
    for ax, (key, name) in zip(figure.subplots(1, len(NAMES)), NAMES.items(), strict=True):
        _distribution(ax, [image[key] for image in scores if key in image], name)
    return figure


def _distribution(ax: Axes, values: Sequence[float], name: str) -> None:
    percentages = 100 * np.array(values)
    if not len(percentages):
        ax.set_title(f"{name}: undefined for every image")
        ax.set_axis_off()
        return
    low = min(10 * np.floor(percentages.min() / 10), 90.0)
    if len(percentages) < MIN_HISTOGRAM:
        ax.plot(
            percentages, np.zeros(len(percentages)), "o", color=style.BLUE, markersize=8, alpha=0.6
        )
        ax.set(ylim=(-1, 1), yticks=[])
    else:
        ax.hist(
            percentages, bins=np.linspace(low, 100, 26).tolist(), color=style.BLUE, rwidth=0.92
        )
        ax.set_ylabel("images")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10]))
        ax.grid(axis="y")
    median = float(np.median(percentages))
    ax.axvline(median, color=style.ORANGE, linewidth=1.4, linestyle=(0, (2, 1.5)))
    ax.set_title(f"{name}: median {style.percent(median / 100)}")
    margin = 0.02 * (100 - low)
    ax.set(xlabel="%", xlim=(low - margin, 100 + margin))
    ax.spines["left"].set_visible(False)
