"""The view `features`: the feature maps of one image, stage by stage."""

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
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image, tiles

__all__ = ["features"]

CHANNELS = 10  # drawn per stage


def features(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw one image's feature maps at each stage; outputs without height and width are strips."""
    image = batch.images[:1]
    stages = registry.get_spec(trained.recipe.model).stages
    outputs, logits = stage_outputs(model, image, stages)
    # A strip needs only half the height of a row of maps.
    heights = [1.0, *(1.0 if _is_spatial(output) else 0.5 for output in outputs.values())]
    figure = style.figure(
        10.5,
        1.0 + 1.0 * sum(heights),
        f"Feature maps of one image, stage by stage: {trained.recipe.model}",
        f"The first {CHANNELS} channels of each stage; stages without height and width are shown "
        "as a strip of all their values.\nEvery stage has its own colour scale, symmetric around "
        "0, up to the number below its size.",
    )
    first, *rest = figure.subplots(len(heights), 1, height_ratios=heights)
    note = f"image {int(batch.indices[0]) + 1} of the test split"
    if logits.ndim == 2:
        class_indices = (int(batch.targets[0]), int(logits.argmax(1)))
        names = [style.short(weights.classes[k], 30) for k in class_indices]
        note += "\ntrue: {}\npredicted: {}".format(*names)
    pixels = as_image(weights.preprocessing.denormalise(image)[0])
    _input(first, pixels, image.shape[1:], note)
    for ax, (name, output) in zip(rest, outputs.items(), strict=True):
        _stage(ax, name, output)
    if outputs and len(weights.classes) <= CHANNELS:
        _name_cells(rest[-1], list(outputs.values())[-1], weights.classes)
    return figure


def _input(ax: Axes, pixels: Pixels, shape: torch.Size, note: str) -> None:
    """Show the image with its classes, and the colour scale in the free space beside it."""
    height, width = pixels.shape[:2]
    tiles(ax, [pixels], CHANNELS)
    _label(ax, "input", shape, "")
    ax.text(width / height + 0.2, 0.5, note, va="center", fontsize=8, color=style.MUTED)
    bar = ax.figure.colorbar(
        ScalarMappable(cmap=style.DIVERGING),
        cax=ax.inset_axes((0.66, 0.42, 0.34, 0.16)),
        orientation="horizontal",
    )
    bar.set_ticks([0, 0.5, 1], labels=["\N{MINUS SIGN}1", "0", "+1"])
    bar.set_label("relative to the number on the left")
    bar.outline.set_visible(False)


def _name_cells(ax: Axes, logits: Tensor, classes: Sequence[str]) -> None:
    """Write class names into the last stage's strip, if it has one value per class."""
    if logits.numel() != len(classes):
        return
    cell_width = ax.get_xlim()[1] / len(classes)
    relative = logits.flatten() / logits.abs().max()
    for number, (name, value) in enumerate(zip(classes, relative.tolist(), strict=True)):
        ax.text(
            (number + 0.5) * cell_width,
            0.25,
            style.short(name, 11),
            ha="center",
            va="center",
            fontsize=7.5,
            color="#ffffff" if abs(value) > 0.6 else "#000000",
        )


@torch.no_grad()
def stage_outputs(
    model: nn.Module, images: Tensor, stages: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each stage's output for the first image, C H W or C, and all images' logits.

    Stages that the network lacks or does not use, or that output no tensor, are left out.
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
        # A copy, since a later in-place layer would overwrite the original.
        outputs[stage] = output[0].float().cpu().clone()


def _stage(ax: Axes, name: str, output: Tensor) -> None:
    """Show one stage: its first maps, or a strip of all its values."""
    shown = output[:CHANNELS] if _is_spatial(output) else output.flatten()
    limit = float(shown.abs().max()) or 1.0
    scale: dict[str, Any] = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit}
    if _is_spatial(output):
        tiles(ax, [np.asarray(plane) for plane in shown], CHANNELS, **scale)
    else:
        values = np.asarray(shown)[None]
        strip_width = CHANNELS * 1.08 - 0.08
        ax.imshow(values, extent=(0, strip_width, 0.45, 0.05), **scale)
        ax.set(xlim=(0, strip_width), ylim=(0.5, 0), aspect="equal", anchor="W")
        ax.set_axis_off()
    _label(ax, name, output.shape, f"±{limit:.3g}" if shown.any() else "all 0")


def _is_spatial(output: Tensor) -> bool:
    return output.ndim == 3 and output[0].numel() > 1


def _label(ax: Axes, name: str, shape: torch.Size, note: str) -> None:
    """Write the stage's name, shape and a note to the left."""
    size = " x ".join(map(str, shape))
    text_style: dict[str, Any] = {"transform": ax.transAxes, "va": "center"}
    ax.text(-0.02, 0.5, f"{name}\n\n", ha="right", fontweight="bold", **text_style)
    details = f"\n{size}\n{note}"
    ax.text(-0.02, 0.5, details, ha="right", fontsize=8, color=style.MUTED, **text_style)
