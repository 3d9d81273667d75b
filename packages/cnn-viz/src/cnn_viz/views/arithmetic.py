"""The view `arithmetic`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cnn_core.data import Batch
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image
from cnn_viz.network.convolution import Arithmetic, number

__all__ = ["arithmetic", "drawn"]

ROWS = 3  # channels that are shown
LEGIBLE = 7  # cells on a side whose numbers can be read
TIMES = "\N{MULTIPLICATION SIGN}"


def arithmetic(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how one number of the first feature map comes about: window, kernel, products, sum."""
    image = batch.images[:1]
    found = number(model, image)
    row, column = found.position
    what = (
        f"Row {row} and column {column} of map {found.channel} of {found.layer}, all counted "
        f"from 0, for image {int(batch.indices[0]) + 1} of the test split: the highest number of "
        "all maps."
    )
    picture = as_image(weights.preprocessing.denormalise(image)[0])
    title = f"One number of {found.layer}: {run.recipe.model} on {run.recipe.data}"
    return drawn(found, picture, title, what)


def drawn(found: Arithmetic, picture: Pixels, title: str, what: str) -> Figure:
    """Draw how a number comes about, beside the image; `what` says which one it is."""
    rows = min(len(found.kernel), ROWS)
    figure = style.figure(10.5, 1.9 + 2.5 * rows, title, _caption(found, rows, what))
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.5 * rows, 0.55])
    panels, below = parts
    panels.set_facecolor("none")
    below.set_facecolor("none")
    axes = panels.subplots(rows, 4, squeeze=False)
    _image(axes[0][0], picture, found)
    for ax in axes[1:, 0]:
        ax.set_axis_off()
    limits = [float(part.abs().max()) or 1.0 for part in _parts(found)]
    for channel in range(rows):
        of = f", channel {channel}" if len(found.kernel) > 1 else ""
        titles = (f"the image's window{of}", f"{TIMES} the kernel", "= the products")
        for ax, part, limit, head in zip(
            axes[channel, 1:], _parts(found), limits, titles, strict=True
        ):
            _cells(ax, part[channel], limit, head)
    below.text(0.01, 0.5, _sentence(found), fontsize=11, va="center", ha="left", color=style.INK)
    return figure


def _parts(found: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
    return found.window, found.kernel, found.products


def _caption(found: Arithmetic, rows: int, what: str) -> str:
    """Return which number this is, and what is not shown."""
    count = len(found.kernel)
    lines = [
        what,
        "The image is normalised, as the network sees it; colours run from minus to plus the "
        "highest magnitude, each of the three parts by itself. Numbers are rounded.",
    ]
    if count > rows:
        lines[-1] += f" {rows} of {count} channels are shown, all are added."
    if max(found.kernel.shape[1:]) > LEGIBLE:
        lines[-1] += f" Windows wider than {LEGIBLE} are shown without numbers."
    return "\n".join(lines)


def _sentence(found: Arithmetic) -> str:
    """Return the sum, the bias and the activations as one line."""
    line = f"sum {style.signed(float(found.products.sum()), '.4f')}"
    if found.bias is not None:
        line += f" + bias {style.signed(found.bias, '.4f')} = {style.signed(found.sum, '.4f')}"
    for name, value in found.steps:
        line += f"   \N{RIGHTWARDS ARROW} {name}: {style.signed(value, '.4f')}"
    return line


def _image(ax: Axes, picture: Pixels, found: Arithmetic) -> None:
    """Show the image and where the window lies."""
    height, width = picture.shape[:2]
    ax.imshow(picture, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=1)
    top, left = found.corner
    for colour, line in (("#ffffff", 3.2), (style.ORANGE, 1.8)):
        ax.add_patch(
            Rectangle(
                (left, top),
                found.span[1],
                found.span[0],
                fill=False,
                edgecolor=colour,
                linewidth=line,
                clip_on=False,
            )
        )
    ax.set_title(f"the image, {height} x {width}")
    ax.set_axis_off()


def _cells(ax: Axes, values: Tensor, limit: float, title: str) -> None:
    """Show numbers as colours, and written in the cells where they can be read."""
    array = np.asarray(values)
    ax.imshow(array, cmap=style.DIVERGING, vmin=-limit, vmax=limit)
    ax.set_title(title)
    ax.set_axis_off()
    side = max(array.shape)
    if side > LEGIBLE:
        return
    digits = 2 if limit >= 0.1 else 3
    for (row, column), value in np.ndenumerate(array):
        ax.text(
            column,
            row,
            style.signed(float(value), f".{digits}f"),
            ha="center",
            va="center",
            fontsize=min(9, 46 / side) * (6 - digits) / 4,
            color="#ffffff" if abs(value) > 0.6 * limit else "#000000",
        )
