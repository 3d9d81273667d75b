"""The view `occlusion`."""

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
from cnn_core.tasks.segmentation import classes_of, two_sided
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.saliency import falls
from cnn_viz.drawing.image_grid import Pixels, as_image, inches
from cnn_viz.network.inspection import evaluating
from cnn_viz.views.masks import GAP, WORDS, part_shown, show

__all__ = ["occlusion"]

IMAGES = 4
PIXELS = 2**23  # that the network may be given for one figure
FINEST, COARSEST = 8, 3  # patches along an image's side


def occlusion(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how far the probability of a class falls, in its own pixels, where a patch is grey."""
    sides, count = _plan(batch.images)
    images = batch.images[:count]
    patch = max(min(images.shape[-2:]) // sides, 2)
    with torch.no_grad(), evaluating(model):
        classes, regions = _largest(two_sided(model(images).float()))

        def score(covered: Tensor) -> Tensor:
            said = two_sided(model(covered).float()).softmax(1)
            p = said[torch.arange(len(covered)), classes]
            return (p * regions).sum((1, 2)) / regions.sum((1, 2)).clamp(min=1)

        maps = falls(score, images, patch, max(patch // 2, 1)).cpu()
    top = max(1e-6, float(maps.abs().max()))
    pictures = weights.preprocessing.denormalise(images).cpu()
    unit = inches(4.9, 3, images.shape, gap=GAP)
    rows = -(-count // 2)
    figure = style.figure(
        10.5,
        1.3 + rows * (unit + WORDS + 0.42),
        f"Occlusion: {run.recipe.model} on {run.recipe.data}",
        f"Where a patch of {patch} x {patch} pixels has the mean colour, how far does the mean "
        "probability of a class fall, in the pixels taken for it (Zeiler and Fergus 2014)?\n"
        f"Patches begin every {max(patch // 2, 1)} pixels; a pixel's value is the mean over all "
        f"patches that cover it. Below 0: the class gains.{part_shown(weights)}",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    norm = Normalize(-top, top)
    for n, ax in zip(range(count), axes.flat, strict=False):
        drawn = colormaps[style.DIVERGING](norm(maps[n].numpy()))[..., :3]
        whole = _framed(regions[n].cpu(), images.shape[2], images.shape[3])
        show(ax, [as_image(pictures[n]), whole, drawn], ("picture", "pixels", "fall"), unit)
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
    bar.set_label("fall of the probability")
    bar.outline.set_visible(False)
    return figure


def _plan(images: Tensor) -> tuple[int, int]:
    """Return how many patches fit along a side, and of how many images: what the budget allows."""
    for count in range(min(IMAGES, len(images)), 0, -1):
        for sides in range(FINEST, COARSEST - 1, -1):
            if count * (2 * sides) ** 2 * images[0, 0].numel() <= PIXELS:
                return sides, count
    return COARSEST, 1


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's largest class but the background, N, and the pixels of it, N h w."""
    masks = classes_of(logits)
    counts = torch.stack([mask.flatten().bincount(minlength=logits.shape[1]) for mask in masks])
    counts = counts[:, 1:]
    classes = torch.where(counts.amax(1) > 0, counts.argmax(1) + 1, 0)
    return classes, masks == classes[:, None, None]


def _framed(region: Tensor, height: int, width: int) -> Pixels:
    """Return a region as an image of a size, at its centre: bright where it is."""
    top, left = ((a - b) // 2 for a, b in zip((height, width), region.shape, strict=True))
    whole = np.full((height, width), 0.15)
    inside = (slice(top, top + region.shape[0]), slice(left, left + region.shape[1]))
    whole[inside] = 0.15 + 0.7 * region.numpy()
    return whole
