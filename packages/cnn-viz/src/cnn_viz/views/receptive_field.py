"""The view `receptive_field`: theoretical and effective receptive fields."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image
from cnn_viz.network.graph import trace_stages
from cnn_viz.network.receptive_field import ReceptiveField, pick_evenly, receptive_fields

__all__ = ["receptive_field"]

MAX_STAGES = 6
PIXEL_BUDGET = 2**18  # over all images that the gradient is averaged over


def receptive_field(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw the theoretical and effective receptive fields at the centre of up to six stages.

    Raises:
        UsageError: the network uses no stage with feature maps.
    """
    maps = {stage.name: stage for stage in trace_stages(weights).stages if len(stage.output) == 3}
    if not maps:
        raise UsageError(
            f"{trained.recipe.model} declares no stages with feature maps: nothing to draw"
        )
    names = pick_evenly(list(maps), MAX_STAGES)
    count = max(PIXEL_BUDGET // batch.images[0, 0].numel(), 1)
    images = batch.images[:count]
    fields = receptive_fields(
        model, images, {name: (maps[name].receptive_field, maps[name].stride) for name in names}
    )
    height, width = images.shape[-2:]
    figure = style.figure(
        10.5,
        1.75 + 2 * 10.1 / max(len(names), 4) * min(height / width, 1.5),
        f"Receptive fields: {trained.recipe.model} on {trained.recipe.data}",
        f"Receptive fields of the middle position of each stage's maps, for images of {height} x "
        f"{width}. Frame: the theoretical field, from kernel sizes and strides, cropped to the "
        "image.\n"
        f"Below: the effective field, the absolute gradient averaged over {len(images)} images, "
        "relative to its maximum. Its size is the side of a square with the area of the\npixels "
        "above 4.55 % of the maximum (Luo et al. 2016, arXiv:1701.04128).",
    )
    axes = figure.subplots(2, max(len(names), 4), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    pixels = as_image(weights.preprocessing.denormalise(images[:1])[0])
    for (upper, lower), (name, field) in zip(axes.T, fields.items(), strict=False):
        _theoretical_panel(upper, pixels, field, name, maps[name].output)
        _effective_panel(lower, field)
    return figure


def _theoretical_panel(
    ax: Axes, pixels: Pixels, field: ReceptiveField, name: str, output: tuple[int, ...]
) -> None:
    """Show the image with the frame of the theoretical field."""
    height, width = pixels.shape[:2]
    ax.imshow(pixels, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=1)
    _frame(ax, field)
    y, x = field.position
    size = (
        f"{field.size} x {field.size} px" if field.size < max(height, width) else "the whole image"
    )
    ax.set_title(
        f"{style.short(name)}\n{' x '.join(map(str, output))}, at ({y}, {x})\ntheoretical: {size}",
        fontsize=8.5,
    )


def _effective_panel(ax: Axes, field: ReceptiveField) -> None:
    """Show the effective field with the same frame."""
    heat = np.asarray(field.effective)
    height, width = heat.shape
    highest = float(heat.max()) or 1.0
    ax.imshow(heat / highest, extent=(0, width, height, 0), cmap=style.HEAT, vmin=0, vmax=1)
    _frame(ax, field)
    title = f"effective: {field.side:.1f} px" if heat.any() else "no gradient: dead unit"
    ax.set_title(title, fontsize=8.5)


def _frame(ax: Axes, field: ReceptiveField) -> None:
    """Frame the theoretical field, cropped to the image, in two colours that any image shows."""
    height, width = field.effective.shape
    top, left = (max(start, 0) for start in field.start)
    bottom, right = (
        min(start + field.size, n) for start, n in zip(field.start, (height, width), strict=True)
    )
    for colour, linewidth in (("#ffffff", 3.2), (style.BLUE, 1.8)):
        ax.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=linewidth,
                clip_on=False,
            )
        )
