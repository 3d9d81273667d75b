"""The view `filters`."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core.create import create_model
from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import tiles

__all__ = ["before_training", "filters"]

SHOWN = 64
COLUMNS = 8


def filters(run: Run, weights: Weights, model: nn.Module) -> Figure:
    """Draw the kernels of the first convolution, all on one scale: RGB ones in colour.

    Beside them those that training began with, where these can be made again.
    """
    name, weight = _first_convolution(model)
    initial, why = _initial(run, weights, name, weight)
    both = [weight] if initial is None else [initial, weight]
    count, channels, height, width = weight.shape
    limit = max(float(part.abs().max()) for part in both) or 1.0
    coloured = channels == 3
    kernels = [part if coloured else part.flatten(0, 1) for part in both]
    shown, total = min(SHOWN, len(kernels[0])), len(kernels[0])
    columns = min(COLUMNS, shown)
    rows = -(-shown // columns)
    side = min(1.15, 9 / (len(both) * columns))  # inches of a kernel
    caption = (
        f"{shown} of {total} kernels of {height} x {width}: {count} outputs of "
        f"{channels} {'channel' if channels == 1 else 'channels'}. {why}"
    )
    if coloured:
        ends = f"{style.MINUS}{limit:.2g} to {limit:.2g}"
        caption += f"\nMiddle grey is 0; red, green and blue run from {ends}."
    figure = style.figure(
        max(side * columns * len(both) + (0.3 if coloured else 1.3), 6.5),
        side * rows + 1.5,
        f"Filters of {name}: {run.recipe.model} on {run.recipe.data}",
        caption,
    )
    axes = figure.subplots(1, len(both), squeeze=False)[0]
    for ax, part in zip(axes, kernels, strict=True):
        _kernels(ax, part[:shown], columns, limit)
    if len(both) > 1:
        axes[0].set_title("before training")
        axes[1].set_title("after training")
    if not coloured:
        bar = figure.colorbar(
            axes[-1].images[0], ax=axes, pad=0.02, aspect=25, shrink=min(1, 3 / rows)
        )
        bar.set_label("weight")
        bar.outline.set_visible(False)
    return figure


def before_training(run: Run, weights: Weights) -> nn.Module:
    """Return the network as training began with it, made again from the recipe's seed.

    The random state is as before.

    Raises:
        UsageError: it began with given weights, or ran with another PyTorch, whose seeds may
            mean other numbers.
    """
    recipe = run.recipe
    if recipe.weights:
        raise UsageError("training began with given weights")
    if (version := run.environment().get("torch")) != torch.__version__:
        raise UsageError(f"trained with PyTorch {version}, this is {torch.__version__}")
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(recipe.seed)
        return create_model(
            recipe.model,
            num_classes=weights.num_classes,
            in_channels=weights.in_channels,
            new_head=True,
            **recipe.options,
        )


def _initial(run: Run, weights: Weights, name: str, trained: Tensor) -> tuple[Tensor | None, str]:
    """Return the weights of the first convolution before training, or None and why not."""
    try:
        found, weight = _first_convolution(before_training(run, weights))
    except UsageError as error:
        return None, f"Those before training are left out:\n{error.message}."
    if (found, weight.shape) != (name, trained.shape):
        return None, "Those before training are left out:\nthe recipe makes another network."
    change = float((trained - weight).norm() / weight.norm())
    return weight, (
        f"Left: as training began, made again from seed {run.recipe.seed}.\nOne scale for both; "
        f"the weights moved by {style.percent(change)} of their norm before training."
    )


def _kernels(ax: Axes, kernels: Tensor, columns: int, limit: float) -> None:
    """Show kernels, N 3 H W in colour or N H W."""
    if kernels.ndim == 4:
        tiles(ax, [_rgb(kernel, limit) for kernel in kernels], columns)
        return
    images = [np.asarray(kernel) for kernel in kernels]
    tiles(ax, images, columns, cmap=style.DIVERGING, vmin=-limit, vmax=limit)


def _first_convolution(model: nn.Module) -> tuple[str, Tensor]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module.weight.detach().float().cpu()
    raise UsageError(f"{type(model).__name__} has no convolution: there are no filters to draw")


def _rgb(kernel: Tensor, limit: float) -> np.ndarray:
    """Return a kernel, 3 H W, as RGB with 0 in the middle of the scale."""
    return np.asarray((0.5 + kernel / (2 * limit)).permute(1, 2, 0))
