"""The view `seg_gradcam`: Seg-Grad-CAM of the largest classes."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.data.palette import background_class
from cnn_core.tasks.segmentation import two_class_logits
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import seg_grad_cam
from cnn_viz.drawing.image_grid import as_rgb, tile_height
from cnn_viz.network.graph import strides
from cnn_viz.views.gradcam import evidence_colorbar, overlay
from cnn_viz.views.masks import GAP, LABEL_ROOM, show, tile_note

__all__ = ["seg_gradcam"]

IMAGES, CLASSES_PER_IMAGE = 3, 2


def seg_gradcam(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw Seg-Grad-CAM for the largest predicted classes at an early and a late stage."""
    recipe = trained.recipe
    spec = registry.get_spec(recipe.model)
    stages = (spec.cam_stage, spec.stages[-2])
    with torch.no_grad():
        predicted = two_class_logits(model(batch.images[:IMAGES]).float()).argmax(1)
    background = background_class(weights.classes, weights.background)
    pairs = [(n, k) for n, mask in enumerate(predicted) for k in _classes(mask, background)]
    images = batch.images[[n for n, _ in pairs]]
    denormalised = weights.preprocessing.denormalise(images).cpu()
    cams = [seg_grad_cam(model, images, stage, [k for _, k in pairs]) for stage in stages]
    stride_of = strides(weights)
    heats = [cam.heat(stride=stride_of[name]) for name, cam in zip(stages, cams, strict=True)]
    unit = tile_height(4.7, 4, denormalised.shape, gap=GAP)
    rows = -(-len(pairs) // 2)
    figure = style.figure(
        10.5,
        1.2 + rows * (unit + LABEL_ROOM + 0.42),
        f"Seg-Grad-CAM at {stages[0]} and {stages[1]}: {recipe.model} on {recipe.data}",
        "The evidence for a class: the maps explain the sum of its logits over the pixels "
        "predicted as that class (Vinogradova et al. 2020).\nBrightness is relative to "
        "each map's own maximum; each value is aligned with the centre of its receptive "
        f"field.{tile_note(weights)}",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    for index, (ax, (n, k)) in enumerate(zip(axes.flat, pairs, strict=False)):
        overlays = {
            stage + (": empty map" if bool(cam.empty[index]) else ""): heat[index]
            for stage, cam, heat in zip(stages, cams, heats, strict=True)
        }
        _row(ax, denormalised[index], predicted[n].cpu() == k, overlays, unit)
        name = style.short(weights.classes[k])
        ax.set_title(f"image {int(batch.indices[n]) + 1}: {name}", fontsize=9)
    evidence_colorbar(figure, axes, min(1, 2.2 / rows))
    return figure


def _classes(mask: Tensor, background: int | None) -> list[int]:
    """Return the classes to explain: the largest predicted ones, the background last."""
    counts = mask.flatten().bincount().tolist()
    present = [k for k, count in enumerate(counts) if count]
    return sorted(present, key=lambda k: (k == background, -counts[k]))[:CLASSES_PER_IMAGE]


def _row(ax: Axes, image: Tensor, region: Tensor, heats: dict[str, Tensor], unit: float) -> None:
    """Show an image, the explained pixels, and an overlay for each labelled heat map."""
    rgb = as_rgb(image)
    # Without padding the output is smaller than the image, and describes its centre.
    top, left = ((a - b) // 2 for a, b in zip(rgb.shape[:2], region.shape, strict=True))
    region_image = np.full(rgb.shape[:2], 0.15)
    region_image[top : top + region.shape[0], left : left + region.shape[1]] = (
        0.15 + 0.7 * region.numpy()
    )
    overlays = [overlay(rgb, heat.cpu().numpy()) for heat in heats.values()]
    show(ax, [rgb, region_image, *overlays], ("image", "pixels", *heats), unit)
