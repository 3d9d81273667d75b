"""The view `filters`."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_viz import style
from cnn_viz.pictures import tiles

__all__ = ["filters"]

SHOWN = 64
COLUMNS = 8


def filters(run: Run, model: nn.Module) -> Figure:
    """Draw the kernels of the first convolution, all on one scale: RGB ones in colour."""
    name, weight = _first_convolution(model)
    count, channels, height, width = weight.shape
    limit = float(weight.abs().max()) or 1.0
    coloured = channels == 3
    kernels = weight if coloured else weight.flatten(0, 1)
    shown = kernels[:SHOWN]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = style.figure(
        max(1.15 * columns + (0.2 if coloured else 1.2), 6.5),
        1.15 * rows + 1.15,
        f"Filters of {name}: {run.recipe.model} on {run.recipe.data}",
        f"{len(shown)} of {len(kernels)} kernels of {height} x {width}: {count} outputs of "
        f"{channels} {'channel' if channels == 1 else 'channels'}."
        + (
            f"\nMiddle grey is 0; red, green and blue run from -{limit:.2g} to {limit:.2g}."
            if coloured
            else ""
        ),
    )
    ax = figure.subplots()
    if coloured:
        tiles(ax, [_rgb(kernel, limit) for kernel in shown], columns)
        return figure
    images = [np.asarray(kernel) for kernel in shown]
    tiles(ax, images, columns, cmap=style.DIVERGING, vmin=-limit, vmax=limit)
    bar = figure.colorbar(ax.images[0], ax=ax, pad=0.02, aspect=25, shrink=min(1, 3 / rows))
    bar.set_label("weight")
    bar.outline.set_visible(False)
    return figure


def _first_convolution(model: nn.Module) -> tuple[str, Tensor]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module.weight.detach().float().cpu()
    raise UsageError(f"{type(model).__name__} has no convolution: there are no filters to draw")


def _rgb(kernel: Tensor, limit: float) -> np.ndarray:
    """Return a kernel, 3 H W, as RGB with 0 in the middle of the scale."""
    return np.asarray((0.5 + kernel / (2 * limit)).permute(1, 2, 0))
