"""The view `receptive_field`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image
from cnn_viz.network.graph import traced
from cnn_viz.network.receptive_field import Receptive, evenly, receptive_fields

__all__ = ["receptive_field"]

SHOWN = 6
PIXELS = 2**18  # of the images that the gradient is averaged over


def receptive_field(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how much of an image the middle position of each stage sees, and how strongly."""
    maps = {stage.name: stage for stage in traced(weights).stages if len(stage.output) == 3}
    if not maps:
        raise UsageError(f"{run.recipe.model} names no stages with maps: nothing to draw")
    names = evenly(list(maps), SHOWN)
    count = max(PIXELS // batch.images[0, 0].numel(), 1)
    images = batch.images[:count]
    found = receptive_fields(
        model, images, {name: (maps[name].receptive_field, maps[name].stride) for name in names}
    )
    height, width = images.shape[-2:]
    figure = style.figure(
        10.5,
        1.75 + 2 * 10.1 / max(len(names), 4) * min(height / width, 1.5),
        f"Receptive fields of {run.recipe.model}, trained on {run.recipe.data}",
        f"What the position at the middle of each stage's maps sees of {height} x {width} pixels. "
        "Frame: its theoretical receptive field, from the layers' sizes, as far as it is in the\n"
        f"image. Below: its effective one, the mean over {len(images)} images of the absolute "
        "gradient of its value, from 0 to each one's highest; its side: of a\nsquare as large as "
        "the pixels above 4.55 % of the highest (Luo et al. 2016, arXiv:1701.04128).",
    )
    axes = figure.subplots(2, max(len(names), 4), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    picture = as_image(weights.preprocessing.denormalise(images[:1])[0])
    for (above, below), (name, field) in zip(axes.T, found.items(), strict=False):
        _above(above, picture, field, name, maps[name].output)
        _below(below, field)
    return figure


def _above(
    ax: Axes, picture: Pixels, field: Receptive, name: str, output: tuple[int, ...]
) -> None:
    """Show the image under the theoretical field."""
    height, width = picture.shape[:2]
    ax.imshow(picture, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=1)
    _frame(ax, field)
    y, x = field.position
    seen = (
        f"{field.size} x {field.size} px" if field.size < max(height, width) else "up to all of it"
    )
    ax.set_title(
        f"{style.short(name)}\n{' x '.join(map(str, output))}, at ({y}, {x})\nsees {seen}",
        fontsize=8.5,
    )


def _below(ax: Axes, field: Receptive) -> None:
    """Show the effective field, in the same frame."""
    heat = np.asarray(field.effective)
    height, width = heat.shape
    highest = float(heat.max()) or 1.0
    ax.imshow(heat / highest, extent=(0, width, height, 0), cmap=style.HEAT, vmin=0, vmax=1)
    _frame(ax, field)
    said = f"effective: {field.side:.1f} px" if heat.any() else "no gradient: it is dead"
    ax.set_title(said, fontsize=8.5)


def _frame(ax: Axes, field: Receptive) -> None:
    """Draw the theoretical field, cut at the image's borders, light on dark and dark on light."""
    height, width = field.effective.shape
    top, left = (max(start, 0) for start in field.start)
    bottom, right = (
        min(start + field.size, n) for start, n in zip(field.start, (height, width), strict=True)
    )
    for colour, line in (("#ffffff", 3.2), (style.BLUE, 1.8)):
        ax.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=line,
                clip_on=False,
            )
        )
