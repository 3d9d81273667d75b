"""The view `arithmetic`: how one value of a feature map is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cnn_core.data import Batch
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image
from cnn_viz.network.convolution import ConvolutionStep, convolution_step

__all__ = ["arithmetic", "draw_step"]

MAX_ROWS = 3  # one per channel
MAX_NUMBERED = 7  # cells along a side; numbers in smaller cells would be unreadable
TIMES = "\N{MULTIPLICATION SIGN}"


def arithmetic(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how one value of the first feature map is computed: window, kernel, products, sum."""
    image = batch.images[:1]
    step = convolution_step(model, image)
    row, column = step.position
    description = (
        f"Row {row} and column {column} of map {step.channel} of {step.layer}, all counted "
        f"from 0, for image {int(batch.indices[0]) + 1} of the test split: the highest value of "
        "all maps."
    )
    image_pixels = as_image(weights.preprocessing.denormalise(image)[0])
    title = f"One value of {step.layer}: {trained.recipe.model} on {trained.recipe.data}"
    return draw_step(step, image_pixels, title, description)


def draw_step(step: ConvolutionStep, image_pixels: Pixels, title: str, description: str) -> Figure:
    """Draw how one output value, named by `description`, is computed, beside the image."""
    rows = min(len(step.kernel), MAX_ROWS)
    figure = style.figure(10.5, 1.9 + 2.5 * rows, title, _caption(step, rows, description))
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.5 * rows, 0.55])
    panels, footer = parts
    panels.set_facecolor("none")
    footer.set_facecolor("none")
    axes = panels.subplots(rows, 4, squeeze=False)
    _image(axes[0][0], image_pixels, step)
    for ax in axes[1:, 0]:
        ax.set_axis_off()
    # All channels share a scale, since their products are added.
    limits = [float(part.abs().max()) or 1.0 for part in _parts(step)]
    for channel in range(rows):
        suffix = f", channel {channel}" if len(step.kernel) > 1 else ""
        titles = (f"the image's window{suffix}", f"{TIMES} the kernel", "= the products")
        for ax, part, limit, part_title in zip(
            axes[channel, 1:], _parts(step), limits, titles, strict=True
        ):
            _cells(ax, part[channel], limit, part_title)
    footer.text(0.01, 0.5, _sentence(step), fontsize=11, va="center", ha="left", color=style.INK)
    return figure


def _parts(step: ConvolutionStep) -> tuple[Tensor, Tensor, Tensor]:
    return step.window, step.kernel, step.products


def _caption(step: ConvolutionStep, rows: int, description: str) -> str:
    """Return the caption: the output value, the colour scale, and any omitted channels."""
    count = len(step.kernel)
    lines = [
        description,
        "The window is from the normalised image. Window, kernel and products each have their own "
        "colour scale, symmetric around 0. Numbers are rounded.",
    ]
    if count > rows:
        lines[-1] += f" {rows} of {count} channels are shown; the sum includes all."
    if max(step.kernel.shape[1:]) > MAX_NUMBERED:
        lines[-1] += f" Windows wider than {MAX_NUMBERED} cells are shown without numbers."
    return "\n".join(lines)


def _sentence(step: ConvolutionStep) -> str:
    """Return the sum, the bias and the following steps, such as ReLU, as one line of text."""
    line = f"sum {style.signed(float(step.products.sum()), '.4f')}"
    if step.bias is not None:
        line += f" + bias {style.signed(step.bias, '.4f')} = {style.signed(step.sum, '.4f')}"
    for name, value in step.steps:
        line += f"   \N{RIGHTWARDS ARROW} {name}: {style.signed(value, '.4f')}"
    return line


def _image(ax: Axes, image_pixels: Pixels, step: ConvolutionStep) -> None:
    """Show the image with a frame around the window."""
    height, width = image_pixels.shape[:2]
    ax.imshow(image_pixels, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=1)
    top, left = step.corner
    for colour, linewidth in (("#ffffff", 3.2), (style.ORANGE, 1.8)):
        ax.add_patch(
            Rectangle(
                (left, top),
                step.span[1],
                step.span[0],
                fill=False,
                edgecolor=colour,
                linewidth=linewidth,
                clip_on=False,
            )
        )
    ax.set_title(f"the image, {height} x {width}")
    ax.set_axis_off()


def _cells(ax: Axes, values: Tensor, limit: float, title: str) -> None:
    """Show values as colours, and as numbers if the cells are large enough."""
    array = np.asarray(values)
    ax.imshow(array, cmap=style.DIVERGING, vmin=-limit, vmax=limit)
    ax.set_title(title)
    ax.set_axis_off()
    side = max(array.shape)
    if side > MAX_NUMBERED:
        return
    # Small kernels need a third digit to differ from 0.
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
