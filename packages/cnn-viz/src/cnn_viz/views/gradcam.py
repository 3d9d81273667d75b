"""The view `gradcam`."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, grad_cam
from cnn_viz.drawing.image_grid import as_rgb, inches, tiles
from cnn_viz.network.graph import strides
from cnn_viz.results.inputs import round_robin_by_class

__all__ = ["evidence_bar", "gradcam", "overlay", "require_places"]

PAIRS = 4  # a row
SHOWN = 12
GAP, BETWEEN = 0.04, 0.2  # in heights of an image
WORDS = 0.24  # inches over each pair


def gradcam(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw images beside what in them speaks for the class that the network predicts."""
    stage = registry.get_spec(run.recipe.model).cam_stage
    shown = round_robin_by_class(batch.targets.tolist(), SHOWN)
    cam = grad_cam(model, batch.images[shown], stage)
    require_places(cam, stage)
    pictures = weights.preprocessing.denormalise(batch.images[shown])
    rows = -(-len(shown) // PAIRS)
    unit = inches(9.3, 2 * PAIRS, pictures.shape, gap=GAP, between=BETWEEN)
    height, width = cam.raw.shape[1:]
    figure = style.figure(
        10.5,
        0.95 + rows * (unit * (1 + GAP) + WORDS),
        f"Grad-CAM at stage {stage}: {run.recipe.model} on {run.recipe.data}",
        f"{len(shown)} images of the test split, as the network sees them, and the class it "
        f"predicts.\nA map has {height} x {width} values at this stage, each where it looks, "
        "enlarged bilinearly; brightness is the share of its own maximum.",
    )
    ax = figure.subplots()
    targets = batch.targets[shown].tolist()
    heat = cam.heat(stride=strides(weights).get(stage, 0)).cpu()
    _pairs(ax, pictures, cam, heat, weights.classes, targets, above=WORDS / unit)
    evidence_bar(figure, ax, 0.5)
    return figure


def require_places(
    cam: Cam, stage: str, hint: str = "larger images (recipe: image_size) give larger maps"
) -> None:
    """Raise UsageError, with a hint, for maps of one value, which say nothing of where."""
    if cam.raw[0].numel() == 1:
        height, width = cam.size
        raise UsageError(
            f"stage {stage} has maps of 1 x 1 for images of {height} x {width}: no place in them "
            "stands out",
            hint,
        )


def _pairs(
    ax: Axes,
    pictures: Tensor,
    cam: Cam,
    heat: Tensor,
    classes: tuple[str, ...],
    targets: list[int],
    *,
    above: float,
) -> None:
    """Show each image and beside it the overlay, under the class and its probability."""
    images: list[Any] = []
    for picture, values in zip(pictures, heat, strict=True):
        plain = as_rgb(picture)
        images += [plain, overlay(plain, np.asarray(values))]
    places = tiles(ax, images, 2 * PAIRS, gap=GAP, between=BETWEEN, above=above)
    probabilities = cam.logits.softmax(1).gather(1, cam.classes[:, None]).squeeze(1)
    for number, (left, right) in enumerate(zip(places[::2], places[1::2], strict=True)):
        said, true = int(cam.classes[number]), targets[number]
        sure = style.confidence(float(probabilities[number]))
        label = f"{style.short(classes[said], 12)}  {sure}"
        if said != true:
            label += f"  (is {style.short(classes[true], 12)})"
        x, y = (left[0] + right[0]) / 2, left[1]
        colour = style.INK if said == true else style.ORANGE
        ax.text(x, y - 0.05, label, ha="center", va="bottom", fontsize=8, color=colour)
        if cam.empty[number]:
            ax.text(
                right[0],
                right[1] + 0.5,
                "empty map:\nnothing speaks\nfor this class",
                ha="center",
                va="center",
                fontsize=6.5,
                color="#ffffff",
                bbox={"facecolor": "#000000", "alpha": 0.6, "edgecolor": "none", "pad": 1.5},
            )


def evidence_bar(figure: Figure, axes: Any, shrink: float) -> None:
    """Draw the scale of maps that are shares of their own maximum, at the right of axes."""
    scale = ScalarMappable(cmap=style.HEAT)
    look: dict[str, Any] = {
        "format": style.percent_tick,
        "pad": 0.01,
        "aspect": 25,
        "shrink": shrink,
    }
    bar = figure.colorbar(scale, ax=axes, **look)
    bar.set_label("evidence for the class")
    bar.outline.set_visible(False)


def overlay(picture: Any, heat: Any) -> Any:
    """Let a map (H W in [0, 1]) shine on a dimmed image (H W 3): screen blending."""
    light = matplotlib.colormaps[style.HEAT](heat)[..., :3]
    return 1 - (1 - 0.55 * picture) * (1 - light)
