"""The view `seg_gradcam`."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.tasks.segmentation import two_sided
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, seg_grad_cam
from cnn_viz.drawing.image_grid import as_rgb, inches
from cnn_viz.network.graph import strides
from cnn_viz.views.gradcam import evidence_bar, overlay
from cnn_viz.views.masks import GAP, WORDS, part_shown, show

__all__ = ["seg_gradcam"]

IMAGES, EACH = 3, 2  # images, and of each as many classes


def seg_gradcam(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw what speaks for the pixels of a class, at the bottleneck and late in the decoder."""
    spec = registry.get_spec(run.recipe.model)
    stages = (spec.cam_stage, spec.stages[-2])
    with torch.no_grad():
        said = two_sided(model(batch.images[:IMAGES]).float()).argmax(1)
    pairs = [(n, k) for n, mask in enumerate(said) for k in _classes(mask)]
    images = batch.images[[n for n, _ in pairs]]
    pictures = weights.preprocessing.denormalise(images).cpu()
    cams = [seg_grad_cam(model, images, stage, [k for _, k in pairs]) for stage in stages]
    pixels = strides(weights)
    heats = [cam.heat(stride=pixels[name]) for name, cam in zip(stages, cams, strict=True)]
    unit = inches(4.7, 4, pictures.shape, gap=GAP)
    rows = -(-len(pairs) // 2)
    figure = style.figure(
        10.5,
        1.2 + rows * (unit + WORDS + 0.42),
        f"Seg-Grad-CAM at {stages[0]} and {stages[1]}: {run.recipe.model} on {run.recipe.data}",
        "What speaks for a class in the pixels that the network takes for it (Vinogradova et al. "
        "2020): the sum of its logits there is explained.\nBrightness is the share of each "
        f"map's own maximum; each position lies where it looks.{part_shown(weights)}",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    for place, (ax, (n, k)) in enumerate(zip(axes.flat, pairs, strict=False)):
        _row(ax, pictures[place], said[n].cpu() == k, cams, heats, stages, place, unit)
        name = style.short(weights.classes[k])
        ax.set_title(f"image {int(batch.indices[n]) + 1}: {name}", fontsize=9)
    evidence_bar(figure, axes, min(1, 2.2 / rows))
    return figure


def _classes(mask: Tensor) -> list[int]:
    """Return the classes to explain: the largest that are there, the background last."""
    counts = mask.flatten().bincount().tolist()
    there = [k for k, count in enumerate(counts) if count]
    return sorted(there, key=lambda k: (k == 0, -counts[k]))[:EACH]


def _row(
    ax: Axes,
    picture: Tensor,
    region: Tensor,
    cams: list[Cam],
    heats: list[Tensor],
    stages: tuple[str, str],
    place: int,
    unit: float,
) -> None:
    """Show an image, the pixels explained, and the overlay of each stage."""
    plain = as_rgb(picture)
    top, left = ((a - b) // 2 for a, b in zip(plain.shape[:2], region.shape, strict=True))
    whole = np.full(plain.shape[:2], 0.15)
    whole[top : top + region.shape[0], left : left + region.shape[1]] = 0.15 + 0.7 * region.numpy()
    overlays = [overlay(plain, heat[place].cpu().numpy()) for heat in heats]
    words = [
        stage + (": empty map" if bool(cam.empty[place]) else "")
        for stage, cam in zip(stages, cams, strict=True)
    ]
    show(ax, [plain, whole, *overlays], ("picture", "pixels", *words), unit)
