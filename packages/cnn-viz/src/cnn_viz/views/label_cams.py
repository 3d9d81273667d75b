"""The view `label_cams`: Grad-CAM of the most likely images of each label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.tasks.multilabel import probabilities
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import grad_cam
from cnn_viz.drawing.image_grid import as_rgb, tile_height, tiles
from cnn_viz.network.graph import strides
from cnn_viz.views.gradcam import evidence_colorbar, overlay, require_spatial_maps

__all__ = ["label_cams"]

CLASSES, IMAGES = 6, 3  # rows, and pairs of an image and its map in each
GAP, BETWEEN = 0.04, 0.2  # relative to the height of an image
LABEL_ROOM = 0.24  # inches above each pair


def label_cams(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw for each class the images in which it is most likely, beside their Grad-CAM for it."""
    stage = registry.get_spec(trained.recipe.model).cam_stage
    with torch.no_grad():
        chances = probabilities(model(batch.images).float()).cpu()
    pairs = _pairs(chances)
    indices, classes = [n for n, _ in pairs], [k for _, k in pairs]
    cam = grad_cam(model, batch.images[indices], stage, classes)
    require_spatial_maps(cam, stage)
    images = weights.preprocessing.denormalise(batch.images[indices])
    heat = cam.heat(stride=strides(weights).get(stage, 0)).cpu()
    columns = 2 * min(IMAGES, len(chances))
    unit = tile_height(9.3, columns, images.shape, gap=GAP, pair_gap=BETWEEN)
    figure = style.figure(
        10.5,
        0.95 + len(pairs) / columns * 2 * (unit * (1 + GAP) + LABEL_ROOM),
        f"Grad-CAM by label at stage {stage}: {trained.recipe.model} on {trained.recipe.data}",
        f"For each class, the images in which it is most likely (of {len(chances)}), with its "
        "probability. Orange: the image does not have this label.\nA map is the evidence for "
        "that class alone. Brightness is relative to each map's own maximum.",
    )
    ax = figure.subplots()
    panels: list[Any] = []
    for image, values in zip(images, heat, strict=True):
        rgb = as_rgb(image)
        panels += [rgb, overlay(rgb, np.asarray(values))]
    top = LABEL_ROOM / unit
    places = tiles(ax, panels, columns, gap=GAP, pair_gap=BETWEEN, top_gap=top)
    for (n, k), left, right in zip(pairs, places[::2], places[1::2], strict=True):
        label = f"{style.short(weights.classes[k], 16)}  {style.confidence(float(chances[n, k]))}"
        colour = style.INK if batch.targets[n, k] else style.ORANGE
        x, y = (left[0] + right[0]) / 2, left[1]
        ax.text(x, y - 0.05, label, ha="center", va="bottom", fontsize=8, color=colour)
    evidence_colorbar(figure, ax, 0.5)
    return figure


def _pairs(chances: Tensor) -> list[tuple[int, int]]:
    """Return pairs (image, class): up to six classes, each with its most likely images."""
    likely = chances.max(0).values.argsort(descending=True, stable=True)[:CLASSES].sort().values
    count = min(IMAGES, len(chances))
    return [(n, k) for k in likely.tolist() for n in chances[:, k].topk(count).indices.tolist()]
