"""The view `filters`: the kernels of the first convolution."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core.create import create_model
from cnn_core.errors import UsageError
from cnn_core.training import Run, Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import tiles

__all__ = ["filters", "initial_model"]

MAX_KERNELS = 64
COLUMNS = 8


def filters(trained: Trained, weights: Weights, model: nn.Module) -> Figure:
    """Draw the kernels of the first convolution, in colour if it has three input channels.

    The initial kernels are drawn beside them, on the same scale, if they can be reproduced.
    """
    name, weight = _first_convolution(model)
    initial, note = _initial_weights(trained, weights, name, weight)
    versions = [weight] if initial is None else [initial, weight]
    count, channels, height, width = weight.shape
    limit = max(float(version.abs().max()) for version in versions) or 1.0
    coloured = channels == 3
    kernels = [version if coloured else version.flatten(0, 1) for version in versions]
    shown, total = min(MAX_KERNELS, len(kernels[0])), len(kernels[0])
    columns = min(COLUMNS, shown)
    rows = -(-shown // columns)
    side = min(1.15, 9 / (len(versions) * columns))  # of a kernel, in inches
    caption = (
        f"{shown} of {total} kernels of {height} x {width}: {count} output and "
        f"{channels} input {'channel' if channels == 1 else 'channels'}. {note}"
    )
    if coloured:
        limits = f"{style.MINUS}{limit:.2g} to {limit:.2g}"
        caption += f"\nGrey is 0; red, green and blue each run from {limits}."
    figure = style.figure(
        max(side * columns * len(versions) + (0.3 if coloured else 1.3), 6.5),
        side * rows + 1.5,
        f"Filters of {name}: {_title(trained, weights)}",
        caption,
    )
    axes = figure.subplots(1, len(versions), squeeze=False)[0]
    for ax, version in zip(axes, kernels, strict=True):
        _kernels(ax, version[:shown], columns, limit)
    if len(versions) > 1:
        axes[0].set_title("before training")
        axes[1].set_title("after training")
    if not coloured:
        bar = figure.colorbar(
            axes[-1].images[0], ax=axes, pad=0.02, aspect=25, shrink=min(1, 3 / rows)
        )
        bar.set_label("weight")
        bar.outline.set_visible(False)
    return figure


def _title(trained: Trained, weights: Weights) -> str:
    """Name the network and, for a run, its training data. The kernels depend on no other data."""
    return f"{weights.model} on {trained.run.recipe.data}" if trained.is_run else weights.model


def initial_model(run: Run, weights: Weights) -> nn.Module:
    """Return the network before training, rebuilt from the recipe's seed.

    The random state is left unchanged.

    Raises:
        UsageError: training started from existing weights, or used another version of PyTorch,
            which may draw other numbers from the same seed.
    """
    recipe = run.recipe
    if recipe.weights:
        raise UsageError("training started from existing weights")
    if (version := run.environment().get("torch")) != torch.__version__:
        raise UsageError(f"trained with PyTorch {version}, this is version {torch.__version__}")
    # Preserve the state of all devices, since manual_seed seeds every one.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(recipe.seed)
        return create_model(
            recipe.model,
            num_classes=weights.num_classes,
            in_channels=weights.in_channels,
            new_head=True,
            **recipe.options,
        )


def _initial_weights(
    trained: Trained, weights: Weights, name: str, final: Tensor
) -> tuple[Tensor | None, str]:
    """Return the first convolution's initial weights, or None, and a note for the caption."""
    if not trained.is_run:
        return None, "Weights without a run: the initial kernels are not known."
    try:
        initial_name, weight = _first_convolution(initial_model(trained.run, weights))
    except UsageError as error:
        return None, f"The initial kernels are not shown:\n{error.message}."
    if (initial_name, weight.shape) != (name, final.shape):
        return None, "The initial kernels are not shown:\nthe recipe builds a different network."
    change, seed = float((final - weight).norm() / weight.norm()), trained.run.recipe.seed
    return weight, (
        f"Left: before training, rebuilt from seed {seed}.\nBoth share one scale; "
        f"training changed the weights by {style.percent(change)} of their initial norm."
    )


def _kernels(ax: Axes, kernels: Tensor, columns: int, limit: float) -> None:
    """Show kernels: N 3 H W as RGB, or N H W with a colour map."""
    if kernels.ndim == 4:
        tiles(ax, [_rgb(kernel, limit) for kernel in kernels], columns)
        return
    images = [np.asarray(kernel) for kernel in kernels]
    tiles(ax, images, columns, cmap=style.DIVERGING, vmin=-limit, vmax=limit)


def _first_convolution(model: nn.Module) -> tuple[str, Tensor]:
    """Return the name and the weight of the first convolution."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module.weight.detach().float().cpu()
    raise UsageError(f"{type(model).__name__} has no convolution: no filters to draw")


def _rgb(kernel: Tensor, limit: float) -> np.ndarray:
    """Return a kernel, 3 H W, as an RGB image, H W 3, in which 0 is mid-grey."""
    return np.asarray((0.5 + kernel / (2 * limit)).permute(1, 2, 0))
