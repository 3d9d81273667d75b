"""The view `gradcam`: images beside their Grad-CAM."""

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
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, grad_cam
from cnn_viz.drawing.image_grid import as_rgb, tile_height, tiles
from cnn_viz.network.graph import strides
from cnn_viz.results.inputs import round_robin_by_class

__all__ = ["evidence_colorbar", "gradcam", "overlay", "require_spatial_maps"]

PAIRS_PER_ROW = 4
IMAGES = 12
GAP, BETWEEN = 0.04, 0.2  # relative to the height of an image
LABEL_ROOM = 0.24  # inches above each pair


def gradcam(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw images beside their Grad-CAM for the predicted class."""
    stage = registry.get_spec(trained.recipe.model).cam_stage
    # Take classes in turn: twelve images of one class would show little.
    indices = round_robin_by_class(batch.targets.tolist(), IMAGES)
    cam = grad_cam(model, batch.images[indices], stage)
    require_spatial_maps(cam, stage)
    denormalised = weights.preprocessing.denormalise(batch.images[indices])
    rows = -(-len(indices) // PAIRS_PER_ROW)
    unit = tile_height(9.3, 2 * PAIRS_PER_ROW, denormalised.shape, gap=GAP, pair_gap=BETWEEN)
    height, width = cam.raw.shape[1:]
    figure = style.figure(
        10.5,
        0.95 + rows * (unit * (1 + GAP) + LABEL_ROOM),
        f"Grad-CAM at stage {stage}: {trained.recipe.model} on {trained.recipe.data}",
        f"{len(indices)} images of the test split, as the network sees them, with the predicted "
        f"class.\nEach map has {height} x {width} values, aligned with the centres of their "
        "receptive fields and interpolated bilinearly. Brightness is relative to its own maximum.",
    )
    ax = figure.subplots()
    targets = batch.targets[indices].tolist()
    heat = cam.heat(stride=strides(weights).get(stage, 0)).cpu()
    _pairs(
        ax,
        denormalised,
        cam,
        heat,
        classes=weights.classes,
        targets=targets,
        above=LABEL_ROOM / unit,
    )
    evidence_colorbar(figure, ax, 0.5)
    return figure


def require_spatial_maps(
    cam: Cam, stage: str, hint: str = "larger images (recipe: image_size) give larger maps"
) -> None:
    """Raise UsageError for maps of a single value, which cannot localise anything."""
    if cam.raw[0].numel() == 1:
        height, width = cam.size
        raise UsageError(
            f"stage {stage} has maps of 1 x 1 for images of {height} x {width}: they cannot show "
            "where the evidence is",
            hint,
        )


def _pairs(
    ax: Axes,
    images: Tensor,
    cam: Cam,
    heat: Tensor,
    *,
    classes: tuple[str, ...],
    targets: list[int],
    above: float,
) -> None:
    """Show each image beside its overlay, labelled with the predicted class."""
    panels: list[Any] = []
    for image, values in zip(images, heat, strict=True):
        rgb = as_rgb(image)
        panels += [rgb, overlay(rgb, np.asarray(values))]
    places = tiles(ax, panels, 2 * PAIRS_PER_ROW, gap=GAP, pair_gap=BETWEEN, top_gap=above)
    probabilities = cam.logits.softmax(1).gather(1, cam.classes[:, None]).squeeze(1)
    for index, (left, right) in enumerate(zip(places[::2], places[1::2], strict=True)):
        predicted, true = int(cam.classes[index]), targets[index]
        probability = style.confidence(float(probabilities[index]))
        label = f"{style.short(classes[predicted], 12)}  {probability}"
        if predicted != true:
            label += f"  (true: {style.short(classes[true], 12)})"
        x, y = (left[0] + right[0]) / 2, left[1]
        colour = style.INK if predicted == true else style.ORANGE
        ax.text(x, y - 0.05, label, ha="center", va="bottom", fontsize=8, color=colour)
        if cam.empty[index]:
            ax.text(
                right[0],
                right[1] + 0.5,
                "empty map:\nno evidence for\nthis class",
                ha="center",
                va="center",
                fontsize=6.5,
                color="#ffffff",
                bbox={"facecolor": "#000000", "alpha": 0.6, "edgecolor": "none", "pad": 1.5},
            )


def evidence_colorbar(figure: Figure, axes: Any, shrink: float) -> None:
    """Add a colour bar for maps relative to their own maximum, to the right of the axes."""
    scale = ScalarMappable(cmap=style.HEAT)
    options: dict[str, Any] = {
        "format": style.percent_tick,
        "pad": 0.01,
        "aspect": 25,
        "shrink": shrink,
    }
    bar = figure.colorbar(scale, ax=axes, **options)
    bar.set_label("evidence for the class")
    bar.outline.set_visible(False)


def overlay(image: Any, heat: Any) -> Any:
    """Return a map, H W in [0, 1], screen-blended over a dimmed image, H W 3.

    Unlike alpha blending, screen blending never darkens the image, so details stay visible.
    """
    light = matplotlib.colormaps[style.HEAT](heat)[..., :3]
    return 1 - (1 - 0.55 * image) * (1 - light)
