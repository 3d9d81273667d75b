"""The view `features`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image, tiles

__all__ = ["features"]

CHANNELS = 10


def features(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw the maps that each stage makes of one image; stages of size 1x1 are strips."""
    image = batch.images[:1]
    stages = registry.get_spec(run.recipe.model).stages
    outputs, logits = walk(model, image, stages)
    heights = [1.0, *(1.0 if _spatial(output) else 0.5 for output in outputs.values())]
    figure = style.figure(
        10.5,
        1.0 + 1.0 * sum(heights),
        f"One image through {run.recipe.model}, stage by stage",
        f"The first {CHANNELS} channels of each stage; where a stage has no height and width, all "
        "of its values as a strip.\nEvery stage has a colour scale of its own, from minus to plus "
        "the number below its size.",
    )
    first, *rest = figure.subplots(len(heights), 1, height_ratios=heights)
    note = f"image {int(batch.indices[0]) + 1} of the test split"
    if logits.ndim == 2:
        numbers = (int(batch.targets[0]), int(logits.argmax(1)))
        names = [style.short(weights.classes[number], 30) for number in numbers]
        note += "\nis {}\npredicted {}".format(*names)
    picture = as_image(weights.preprocessing.denormalise(image)[0])
    _input(first, picture, image.shape[1:], note)
    for ax, (name, output) in zip(rest, outputs.items(), strict=True):
        _stage(ax, name, output)
    if outputs and len(weights.classes) <= CHANNELS:
        _name_cells(rest[-1], list(outputs.values())[-1], weights.classes)
    return figure


def _input(ax: Axes, picture: Pixels, shape: torch.Size, note: str) -> None:
    """Show the image, what it is, and the colour scale in the room beside."""
    height, width = picture.shape[:2]
    tiles(ax, [picture], CHANNELS)
    _label(ax, "input", shape, "")
    ax.text(width / height + 0.2, 0.5, note, va="center", fontsize=8, color=style.MUTED)
    bar = ax.figure.colorbar(
        ScalarMappable(cmap=style.DIVERGING),
        cax=ax.inset_axes((0.66, 0.42, 0.34, 0.16)),
        orientation="horizontal",
    )
    bar.set_ticks([0, 0.5, 1], labels=["\N{MINUS SIGN}1", "0", "+1"])
    bar.set_label("times the number at the left")
    bar.outline.set_visible(False)


def _name_cells(ax: Axes, logits: Tensor, classes: Sequence[str]) -> None:
    """Write the classes into the last stage's strip, if it has one value for each."""
    if logits.numel() != len(classes):
        return
    wide = ax.get_xlim()[1] / len(classes)
    shares = logits.flatten() / logits.abs().max()
    for number, (name, share) in enumerate(zip(classes, shares.tolist(), strict=True)):
        ax.text(
            (number + 0.5) * wide,
            0.25,
            style.short(name, 11),
            ha="center",
            va="center",
            fontsize=7.5,
            color="#ffffff" if abs(share) > 0.6 else "#000000",
        )


@torch.no_grad()
def walk(
    model: nn.Module, images: Tensor, stages: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each stage's output for the first image, C H W or C, and the logits, N x classes ….

    A stage that the network has not, gives no tensor, or takes no part, is left out.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    hooks = [
        modules[stage].register_forward_hook(partial(_keep, stage, outputs))
        for stage in stages
        if stage in modules
    ]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, logits


def _keep(stage: str, outputs: dict[str, Tensor], module: nn.Module, _: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        outputs[stage] = output[0].float().cpu().clone()  # later layers may work in place


def _stage(ax: Axes, name: str, output: Tensor) -> None:
    """Show one stage: its first maps, or all of its values as a strip."""
    shown = output[:CHANNELS] if _spatial(output) else output.flatten()
    limit = float(shown.abs().max()) or 1.0
    scale: dict[str, Any] = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit}
    if _spatial(output):
        tiles(ax, [np.asarray(plane) for plane in shown], CHANNELS, **scale)
    else:
        values = np.asarray(shown)[None]
        wide = CHANNELS * 1.08 - 0.08
        ax.imshow(values, extent=(0, wide, 0.45, 0.05), **scale)
        ax.set(xlim=(0, wide), ylim=(0.5, 0), aspect="equal", anchor="W")
        ax.set_axis_off()
    _label(ax, name, output.shape, f"±{limit:.3g}" if shown.any() else "all 0")


def _spatial(output: Tensor) -> bool:
    return output.ndim == 3 and output[0].numel() > 1


def _label(ax: Axes, name: str, shape: torch.Size, note: str) -> None:
    """Write the stage, its shape and a note at the left."""
    size = " x ".join(map(str, shape))
    beside: dict[str, Any] = {"transform": ax.transAxes, "va": "center"}
    ax.text(-0.02, 0.5, f"{name}\n\n", ha="right", fontweight="bold", **beside)
    below = f"\n{size}\n{note}"
    ax.text(-0.02, 0.5, below, ha="right", fontsize=8, color=style.MUTED, **beside)
