"""The view `weights`: histograms of weights and activations."""

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
from cnn_core.training import Trained
from cnn_viz import style

__all__ = ["ValueHistogram", "value_histograms", "weights"]

BINS = 60


@dataclass(frozen=True)
class ValueHistogram:
    """A histogram of values in 60 equal bins, with their mean and standard deviation.

    `zeros` is the fraction of values that are 0. For a stage's output, `units` is the number of
    channels and `dead` the number of channels that are 0 everywhere.
    """

    counts: NDArray[Any]
    edges: NDArray[Any]
    mean: float
    std: float
    zeros: float
    units: int = 0
    dead: int = 0


def weights(trained: Trained, model: nn.Module, batch: Batch) -> Figure:
    """Draw histograms of each stage's weights and outputs on a batch, and count dead units.

    Raises:
        UsageError: the network uses none of its stages.
    """
    histograms = value_histograms(
        model, batch.images, registry.get_spec(trained.recipe.model).stages
    )
    if not histograms:
        raise UsageError(
            f"{trained.recipe.model} declares no stages that its network uses: nothing to draw"
        )
    dead, units = (
        sum(getattr(output, key) for _, output in histograms.values()) for key in ("dead", "units")
    )
    figure = style.figure(
        10.5,
        1.2 + 1.15 * len(histograms),
        f"Weights and activations: {trained.recipe.model} on {trained.recipe.data}",
        f"Left: weights of convolutions and linear layers; right: outputs of each stage for "
        f"{len(batch.images)} images of the test split. Each histogram has its own scale;\nsd: "
        f"standard deviation. A unit (a channel of a stage) is dead if it is 0 everywhere on "
        f"these images: {dead:,} of {units:,}.",
    )
    axes = figure.subplots(len(histograms), 2, squeeze=False)
    for (left, right), (name, (weight_histogram, output_histogram)) in zip(
        axes, histograms.items(), strict=True
    ):
        left.set_ylabel(name, rotation=0, ha="right", va="center", color=style.INK)
        _draw_histogram(left, weight_histogram, style.BLUE)
        _draw_histogram(right, output_histogram, style.ORANGE)
    axes[0][0].set_title("weights")
    axes[0][1].set_title("activations")
    return figure


@torch.no_grad()
def value_histograms(
    model: nn.Module, images: Tensor, stages: Sequence[str]
) -> dict[str, tuple[ValueHistogram | None, ValueHistogram]]:
    """Return two histograms for each stage: of its weights, and of its outputs for N C H W.

    The first is None for a stage without weights. Stages that the network lacks or does not
    use, or that output no tensor, are left out.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, ValueHistogram] = {}
    hooks = [
        modules[stage].register_forward_hook(partial(_record_output, stage, outputs))
        for stage in stages
        if stage in modules
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: (_weight_histogram(modules[name]), output_histogram)
        for name, output_histogram in outputs.items()
    }


def _weight_histogram(module: nn.Module) -> ValueHistogram | None:
    """Return a histogram of a module's weights, without biases and normalisation."""
    # Biases and batch norm have one dimension. Their few values would not show in the histogram.
    kernels = [p.detach().float().cpu().flatten() for p in module.parameters() if p.ndim > 1]
    return _value_histogram(torch.cat(kernels)) if kernels else None


def _record_output(
    stage: str, outputs: dict[str, ValueHistogram], module: nn.Module, _: Any, output: Any
) -> None:
    if isinstance(output, Tensor) and output.ndim > 1:
        units = output.transpose(0, 1).flatten(1)
        outputs[stage] = _value_histogram(
            output.float().cpu(), units=len(units), dead=int((units == 0).all(1).sum())
        )


def _value_histogram(values: Tensor, units: int = 0, dead: int = 0) -> ValueHistogram:
    array = np.asarray(values).ravel()
    counts, edges = np.histogram(array, bins=BINS)
    zeros = float((array == 0).mean())
    # Sums of millions of float32 values lose digits in float32.
    mean, std = (float(f(array, dtype=np.float64)) for f in (np.mean, np.std))
    return ValueHistogram(
        counts=counts,
        edges=edges,
        mean=mean,
        std=std,
        zeros=zeros,
        units=units,
        dead=dead,
    )


def _draw_histogram(ax: Axes, histogram: ValueHistogram | None, colour: str) -> None:
    """Draw one histogram with its statistics, or a note that there are no weights."""
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if histogram is None:
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
    ax.stairs(histogram.counts, histogram.edges, fill=True, color=colour, alpha=0.85)
    ax.axvline(0, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_ylim(0, 1.05 * max(int(histogram.counts.max()), 1))
    ax.locator_params(axis="x", nbins=5)
    lines = [f"mean {style.signed(histogram.mean, '.3g')}", f"sd {histogram.std:.3g}"]
    if histogram.units:
        lines += [
            f"zero {style.percent(histogram.zeros)}",
            f"dead {histogram.dead:,} of {histogram.units:,}",
        ]
    text = "\n".join(lines)
    ax.text(1.01, 0.5, text, transform=ax.transAxes, va="center", fontsize=7.5, color=style.INK)
