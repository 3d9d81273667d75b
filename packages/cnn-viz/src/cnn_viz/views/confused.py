"""The view `confused`: the most confused pairs of classes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.drawing.image_grid import as_image, tile_height, tiles
from cnn_viz.results.metrics import confused_pairs, confusion_counts

__all__ = ["confused"]

PAIRS = 10
EXAMPLES = 6
GAP = 0.12  # relative to the height of an image
LABEL_ROOM = 0.2  # inches above each image
PAIR_WIDTH = 4.9  # inches


def confused(trained: Trained, predictions: Predictions) -> Figure:
    """Draw the most confused pairs of classes, each with its most confident mistakes."""
    recipe, counts = trained.recipe, confusion_counts(predictions)
    pairs = confused_pairs(counts, PAIRS)
    mistakes = int(counts.sum() - counts.trace())
    unit = tile_height(PAIR_WIDTH, EXAMPLES, predictions.images.shape, gap=GAP)
    rows = -(-len(pairs) // 2)
    figure = style.figure(
        10.5,
        1.1 + max(rows, 1) * (unit + LABEL_ROOM + 0.5),
        f"Most confused classes on the test split: {recipe.model} on {recipe.data}",
        _caption(len(pairs), sum(counts[pair] for pair in pairs), mistakes, int(counts.sum())),
    )
    axes = figure.subplots(max(rows, 1), 2, squeeze=False).flatten()
    for ax in axes:
        ax.set_axis_off()
    for ax, (true, predicted) in zip(axes, pairs, strict=False):
        names = [style.short(predictions.classes[k], 20) for k in (true, predicted)]
        count, total = int(counts[true, predicted]), int(counts[true].sum())
        ax.set_title(
            f"{names[0]} \N{RIGHTWARDS ARROW} {names[1]}:  {count:,} of {total:,} "
            f"({style.percent(count / total)})"
        )
        _examples(ax, predictions, _mistakes(predictions, true, predicted), LABEL_ROOM / unit)
    return figure


def _caption(pairs: int, covered: int, mistakes: int, images: int) -> str:
    if not pairs:
        return f"None of {images:,} images was misclassified."
    return (
        f"True class \N{RIGHTWARDS ARROW} predicted class, with the number and share of the true "
        f"class's images.\nThe pairs shown account for {covered:,} of {mistakes:,} mistakes in "
        f"{images:,} images. Up to {EXAMPLES} images of each pair, with the probability of the "
        "predicted class, highest first."
    )


def _mistakes(predictions: Predictions, true: int, predicted: int) -> Tensor:
    """Return the indices of up to six images of one class predicted as another.

    The most confident come first.
    """
    indices = (
        ((predictions.targets == true) & (predictions.predicted == predicted)).nonzero().squeeze(1)
    )
    confidence = predictions.probabilities[indices, predicted]
    return indices[confidence.argsort(descending=True, stable=True)[:EXAMPLES]]


def _examples(ax: Axes, predictions: Predictions, indices: Tensor, above: float) -> None:
    """Show images in a row, each below the probability of its predicted class."""
    images = [as_image(image / 255) for image in predictions.images[indices]]
    places = tiles(ax, images, EXAMPLES, gap=GAP, top_gap=above)
    probabilities = predictions.probabilities[indices].amax(1)
    for (x, y), probability in zip(places, probabilities.tolist(), strict=True):
        ax.text(x, y - 0.04, style.confidence(probability), ha="center", va="bottom", fontsize=8)
