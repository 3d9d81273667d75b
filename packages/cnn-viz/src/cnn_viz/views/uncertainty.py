"""The view `uncertainty`."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core.data import Batch
from cnn_core.data.augment import IGNORED
from cnn_core.tasks.segmentation import centred
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image, inches
from cnn_viz.network.mc_dropout import Uncertainty, mc_dropout
from cnn_viz.views.masks import GAP, WORDS, part_shown, show

__all__ = ["uncertainty"]

IMAGES, PASSES = 4, 20
PIXELS = 2**19  # of images that are looked at so often
WRONG = "#009e73"


def uncertainty(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how uncertain the network is of each pixel, by dropout, beside where it is wrong."""
    count = min(max(PIXELS // batch.images[0, 0].numel(), 1), IMAGES, len(batch.images))
    images = batch.images[:count]
    found = mc_dropout(model, images, PASSES)
    targets = centred(batch.targets[:count], found.probabilities).cpu()
    pictures = centred(weights.preprocessing.denormalise(images), found.probabilities).cpu()
    wrong = (found.probabilities.argmax(1).cpu() != targets) & (targets != IGNORED)
    mutual, most = found.mutual.cpu(), float(np.log2(found.probabilities.shape[1]))
    top = max(float(mutual.max()), 1e-6)
    unit = inches(4.7, 4, targets.shape, gap=GAP)
    rows = -(-count // 2)
    figure = style.figure(
        10.5,
        1.45 + rows * (unit + WORDS + 0.42),
        f"Uncertainty by dropout: {run.recipe.model} on {run.recipe.data}",
        f"{PASSES} passes with dropout on (Gal and Ghahramani 2016): the entropy of their mean, "
        "and their mutual information with the weights: what the passes\ndisagree about, and more "
        f"data could settle. {_compared(found, wrong, targets)}{part_shown(weights)}",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for n, ax in zip(range(count), axes.flat, strict=False):
        maps = [
            colormaps[style.HEAT](np.asarray(found.entropy[n].cpu()) / most)[..., :3],
            colormaps["cividis"](np.asarray(mutual[n]) / top)[..., :3],
        ]
        drawn = [as_image(pictures[n]), _marked(as_image(pictures[n]), wrong[n]), *maps]
        show(ax, drawn, ("picture", "wrong pixels", "entropy", "mutual information"), unit)
        ax.set_title(f"image {int(batch.indices[n]) + 1}", fontsize=9)
    for name, label, highest in (
        ("cividis", "mutual information, bits", top),
        (style.HEAT, "entropy, bits", most),
    ):
        scale = ScalarMappable(Normalize(0, highest), name)
        bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, shrink=min(1, 2.2 / rows))
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


def _compared(found: Uncertainty, wrong: Tensor, targets: Tensor) -> str:
    """Say how much more uncertain pixels are that are wrong."""
    right = (targets != IGNORED) & ~wrong
    if not wrong.any() or not right.any():
        return (
            "No pixel that counts is wrong." if right.any() else "No pixel that counts is right."
        )
    entropy = found.entropy.cpu()
    means = [float(entropy[where].mean()) for where in (wrong, right)]
    return (
        f"Mean entropy of the {int(wrong.sum()):,} wrong pixels {means[0]:.2f} bits, of the "
        f"{int(right.sum()):,} right ones {means[1]:.2f}."
    )


def _marked(picture: Pixels, wrong: Tensor) -> Pixels:
    """Return an image, grey and dimmed, with its wrong pixels in colour."""
    grey = picture if picture.ndim == 2 else picture.mean(2)
    dimmed = np.repeat(0.75 * grey[..., None], 3, axis=2)
    colour = torch.tensor([int(WRONG[k : k + 2], 16) / 255 for k in (1, 3, 5)]).numpy()
    return np.where(wrong.numpy()[..., None], colour, dimmed)
