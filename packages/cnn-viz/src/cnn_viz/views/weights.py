"""The view `weights`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_viz import style

__all__ = ["ValueHistogram", "value_histograms", "weights"]

BINS = 60


@dataclass(frozen=True)
class ValueHistogram:
    """How values are spread: counts in 60 even bins between `edges`, mean, deviation, zeros.

    `zeros` is a fraction; of an output `dead` of its `units` (channels) are 0 everywhere.
    """

    counts: NDArray[Any]
    edges: NDArray[Any]
    mean: float
    deviation: float
    zeros: float
    units: int = 0
    dead: int = 0


def weights(run: Run, model: nn.Module, batch: Batch) -> Figure:
    """Draw how each stage's weights, and its outputs on a batch, are spread; count dead units."""
    found = value_histograms(model, batch.images, registry.get_spec(run.recipe.model).stages)
    if not found:
        raise UsageError(f"{run.recipe.model} names no stages that take part: nothing to draw")
    dead, units = (sum(getattr(o, key) for _, o in found.values()) for key in ("dead", "units"))
    figure = style.figure(
        10.5,
        1.2 + 1.15 * len(found),
        f"Weights and activations of {run.recipe.model}, trained on {run.recipe.data}",
        f"Left: weights of convolutions and linear layers; right: what each stage gives for "
        f"{len(batch.images)} images of the test split. Heights are counts, each from 0 to its "
        f"own highest;\nsd: standard deviation. A unit, one channel of a stage, is dead if it is "
        f"0 everywhere on these images: {dead:,} of {units:,}.",
    )
    axes = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), (name, (inside, outside)) in zip(axes, found.items(), strict=True):
        left.set_ylabel(name, rotation=0, ha="right", va="center", color=style.INK)
        _histogram(left, inside, style.BLUE)
        _histogram(right, outside, style.ORANGE)
    axes[0][0].set_title("weights")
    axes[0][1].set_title("activations")
    return figure


@torch.no_grad()
def value_histograms(
    model: nn.Module, images: Tensor, stages: Sequence[str]
) -> dict[str, tuple[ValueHistogram | None, ValueHistogram]]:
    """Return each stage's weights, None without any, and outputs for images N C H W.

    A stage that the network has not, gives no tensor, or takes no part, is left out.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, ValueHistogram] = {}
    hooks = [
        modules[stage].register_forward_hook(partial(_measure, stage, outputs))
        for stage in stages
        if stage in modules
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (_inside(modules[name]), outside) for name, outside in outputs.items()}


def _inside(module: nn.Module) -> ValueHistogram | None:
    """Return how the weights of a module's convolutions and linear layers are spread."""
    matrices = [p.detach().float().cpu().flatten() for p in module.parameters() if p.ndim > 1]
    return _spread(torch.cat(matrices)) if matrices else None


def _measure(
    stage: str, outputs: dict[str, ValueHistogram], module: nn.Module, _: Any, output: Any
) -> None:
    if isinstance(output, Tensor) and output.ndim > 1:
        units = output.transpose(0, 1).flatten(1)
        outputs[stage] = _spread(
            output.float().cpu(), units=len(units), dead=int((units == 0).all(1).sum())
        )


def _spread(values: Tensor, units: int = 0, dead: int = 0) -> ValueHistogram:
    array = np.asarray(values).ravel()
    counts, edges = np.histogram(array, bins=BINS)
    zeros = float((array == 0).mean())
    mean, deviation = (float(f(array, dtype=np.float64)) for f in (np.mean, np.std))
    return ValueHistogram(counts, edges, mean, deviation, zeros, units, dead)


def _histogram(ax: Axes, spread: ValueHistogram | None, colour: str) -> None:
    """Draw one histogram with its numbers beside, or say that there is nothing."""
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if spread is None:
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.text(
            0.5,
            0.5,
            "no convolution or linear layer",
            transform=ax.transAxes,
            ha="center",
            color=style.MUTED,
        )
        return
    ax.stairs(spread.counts, spread.edges, fill=True, color=colour, alpha=0.85)
    ax.axvline(0, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_ylim(0, 1.05 * max(int(spread.counts.max()), 1))
    ax.locator_params(axis="x", nbins=5)
    lines = [f"mean {style.signed(spread.mean, '.3g')}", f"sd {spread.deviation:.3g}"]
    if spread.units:
        lines += [
            f"zero {style.percent(spread.zeros)}",
            f"dead {spread.dead:,} of {spread.units:,}",
        ]
    text = "\n".join(lines)
    ax.text(1.01, 0.5, text, transform=ax.transAxes, va="center", fontsize=7.5, color=style.INK)
