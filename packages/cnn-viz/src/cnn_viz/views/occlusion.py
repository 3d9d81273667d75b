"""The view `occlusion`: the effect of covering a patch of the image."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor, nn

from cnn_core.data import Batch
from cnn_core.data.palette import background_class
from cnn_core.tasks.segmentation import predicted_classes, two_class_logits
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.saliency import score_drops
from cnn_viz.drawing.image_grid import Pixels, as_image, tile_height
from cnn_viz.network.inspection import eval_mode
from cnn_viz.views.masks import GAP, LABEL_ROOM, show, tile_note

__all__ = ["occlusion"]

MAX_IMAGES = 4
PIXEL_BUDGET = 2**23  # pixels that the network processes for one figure
MAX_PATCHES, MIN_PATCHES = 8, 3  # along the shorter side of an image


def occlusion(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how much a class's probability in its predicted pixels drops if a patch is occluded."""
    patches, count = _plan(batch.images)
    images = batch.images[:count]
    patch = max(min(images.shape[-2:]) // patches, 2)
    background = background_class(weights.classes, weights.background)
    maps, classes, regions = _drops(model, images, patch, background)
    # One scale for all images, so that weak and strong effects can be compared.
    limit = max(1e-6, float(maps.abs().max()))
    denormalised = weights.preprocessing.denormalise(images).cpu()
    unit = tile_height(4.9, 3, images.shape, gap=GAP)
    rows = -(-count // 2)
    figure = style.figure(
        10.5,
        1.3 + rows * (unit + LABEL_ROOM + 0.42),
        f"Occlusion: {trained.recipe.model} on {trained.recipe.data}",
        f"The drop of a class's mean probability, over the pixels predicted as that class, when a "
        f"patch of {patch} x {patch} pixels is set to the mean colour (Zeiler and Fergus 2014).\n"
        f"Patches begin every {max(patch // 2, 1)} pixels; a pixel's value is the mean over all "
        f"patches that cover it. Negative: the probability rises.{tile_note(weights)}",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    norm = Normalize(-limit, limit)
    for n, ax in zip(range(count), axes.flat, strict=False):
        drop = colormaps[style.DIVERGING](norm(maps[n].numpy()))[..., :3]
        region = _region_image(regions[n].cpu(), images.shape[2], images.shape[3])
        show(ax, [as_image(denormalised[n]), region, drop], ("image", "pixels", "drop"), unit)
        name = style.short(weights.classes[int(classes[n])])
        ax.set_title(f"image {int(batch.indices[n]) + 1}: {name}", fontsize=9)
    scale = ScalarMappable(norm, style.DIVERGING)
    bar = figure.colorbar(
        scale,
        ax=axes,
        pad=0.01,
        aspect=30,
        shrink=min(1, 2.2 / rows),
        format=FuncFormatter(style.percent_tick),
    )
    bar.set_label("drop in probability")
    bar.outline.set_visible(False)
    return figure


def _drops(
    model: nn.Module, images: Tensor, patch: int, background: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the drops in probability of each image's largest predicted foreground class, N H W.

    Also returns the classes, N, and the pixels predicted as them, bool N h w.
    """
    with torch.no_grad(), eval_mode(model):
        classes, regions = _largest(two_class_logits(model(images).float()), background)

        def score(covered: Tensor) -> Tensor:
            probabilities = two_class_logits(model(covered).float()).softmax(1)
            p = probabilities[torch.arange(len(covered)), classes]
            return (p * regions).sum((1, 2)) / regions.sum((1, 2)).clamp(min=1)

        # The network's inputs are normalised, so the default fill of 0 is the mean colour.
        maps = score_drops(score, images, patch, max(patch // 2, 1)).cpu()
    return maps, classes, regions


def _plan(images: Tensor) -> tuple[int, int]:
    """Return the numbers of patches along the shorter side and of images that the budget allows.

    Patches get coarser before images get fewer: several examples matter more than detail.
    """
    for images_drawn in range(min(MAX_IMAGES, len(images)), 0, -1):
        for patches in range(MAX_PATCHES, MIN_PATCHES - 1, -1):
            if images_drawn * (2 * patches) ** 2 * images[0, 0].numel() <= PIXEL_BUDGET:
                return patches, images_drawn
    return MIN_PATCHES, 1


def _largest(logits: Tensor, background: int | None = 0) -> tuple[Tensor, Tensor]:
    """Return each image's largest foreground class, N, and its predicted pixels, bool N h w.

    The class is the background if no foreground is predicted.
    """
    masks = predicted_classes(logits)
    counts = torch.stack([mask.flatten().bincount(minlength=logits.shape[1]) for mask in masks])
    if background is not None:
        # The background wins only if nothing else is predicted.
        counts[:, background] = (counts.sum(1) == counts[:, background]).long()
    classes = counts.argmax(1)
    return classes, masks == classes[:, None, None]


def _region_image(region: Tensor, height: int, width: int) -> Pixels:
    """Return a grey image, H W, with the bright region at its centre."""
    top, left = ((a - b) // 2 for a, b in zip((height, width), region.shape, strict=True))
    canvas = np.full((height, width), 0.15)
    inside = (slice(top, top + region.shape[0]), slice(left, left + region.shape[1]))
    canvas[inside] = 0.15 + 0.7 * region.numpy()
    return canvas
