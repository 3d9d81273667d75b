"""The view `uncertainty`: Monte Carlo dropout."""

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
from cnn_core.tasks.segmentation import center_crop
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image, tile_height
from cnn_viz.network.mc_dropout import Uncertainty, mc_dropout
from cnn_viz.views.masks import GAP, LABEL_ROOM, OUTCOMES, WRONG_CLASS, show, tile_note

__all__ = ["uncertainty"]

MAX_IMAGES, PASSES = 4, 20
PIXEL_BUDGET = 2**19  # over all images, each of which is run `PASSES` times
ERROR_COLOUR = OUTCOMES[WRONG_CLASS][1]  # green would say that they are right


def uncertainty(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw the uncertainty of each pixel, by Monte Carlo dropout, beside the errors."""
    count = min(max(PIXEL_BUDGET // batch.images[0, 0].numel(), 1), MAX_IMAGES, len(batch.images))
    images = batch.images[:count]
    result = mc_dropout(model, images, PASSES)
    # Without padding the output describes only the centre of the image.
    targets = center_crop(batch.targets[:count], result.probabilities).cpu()
    denormalised = center_crop(
        weights.preprocessing.denormalise(images), result.probabilities
    ).cpu()
    wrong = (result.probabilities.argmax(1).cpu() != targets) & (targets != IGNORED)
    # log2 of the number of classes is the entropy of a uniform prediction.
    mutual, max_entropy = result.mutual.cpu(), float(np.log2(result.probabilities.shape[1]))
    max_mutual = max(float(mutual.max()), 1e-6)
    unit = tile_height(4.7, 4, targets.shape, gap=GAP)
    rows = -(-count // 2)
    figure = style.figure(
        10.5,
        1.45 + rows * (unit + LABEL_ROOM + 0.42),
        f"Uncertainty by dropout: {trained.recipe.model} on {trained.recipe.data}",
        f"{PASSES} passes with dropout active (Gal and Ghahramani 2016). The entropy is "
        "that of the mean prediction. The mutual information of prediction and\nweights is the "
        "part due to disagreement between passes, which more data could reduce. "
        f"{_entropy_comparison(result, wrong, targets)}{tile_note(weights)}",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for n, ax in zip(range(count), axes.flat, strict=False):
        maps = [
            colormaps[style.HEAT](np.asarray(result.entropy[n].cpu()) / max_entropy)[..., :3],
            colormaps["cividis"](np.asarray(mutual[n]) / max_mutual)[..., :3],
        ]
        panels = [
            as_image(denormalised[n]),
            _highlight_errors(as_image(denormalised[n]), wrong[n]),
            *maps,
        ]
        show(ax, panels, ("image", "wrong pixels", "entropy", "mutual information"), unit)
        ax.set_title(f"image {int(batch.indices[n]) + 1}", fontsize=9)
    for name, label, highest in (
        ("cividis", "mutual information, bits", max_mutual),
        (style.HEAT, "entropy, bits", max_entropy),
    ):
        scale = ScalarMappable(Normalize(0, highest), name)
        bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, shrink=min(1, 2.2 / rows))
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


def _entropy_comparison(result: Uncertainty, wrong: Tensor, targets: Tensor) -> str:
    """Return a sentence that compares the mean entropies of wrong and correct pixels."""
    correct = (targets != IGNORED) & ~wrong
    if not wrong.any() and not correct.any():
        return "All pixels are ignored."
    if not wrong.any() or not correct.any():
        return "All pixels are correct." if correct.any() else "All pixels are wrong."
    entropy = result.entropy.cpu()
    means = [float(entropy[mask].mean()) for mask in (wrong, correct)]
    return (
        f"Mean entropy: {means[0]:.2f} bits over the {int(wrong.sum()):,} wrong pixels, "
        f"{means[1]:.2f} over the {int(correct.sum()):,} correct ones."
    )


def _highlight_errors(image: Pixels, wrong: Tensor) -> Pixels:
    """Return the image, grey and dimmed, with wrong pixels in colour."""
    grey = image if image.ndim == 2 else image.mean(2)
    dimmed = np.repeat(0.75 * grey[..., None], 3, axis=2)
    colour = torch.tensor([int(ERROR_COLOUR[k : k + 2], 16) / 255 for k in (1, 3, 5)]).numpy()
    return np.where(wrong.numpy()[..., None], colour, dimmed)
