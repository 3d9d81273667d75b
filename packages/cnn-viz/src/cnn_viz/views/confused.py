"""The view `confused`."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.drawing.image_grid import as_image, tile_height, tiles
from cnn_viz.results.metrics import confused_pairs, confusion_counts

__all__ = ["confused"]

PAIRS = 10
EXAMPLES = 6
GAP = 0.12  # in heights of an image
WORDS = 0.2  # inches over each image
WIDE = 4.9  # inches of a pair


def confused(run: Run, predictions: Predictions) -> Figure:
    """Draw the classes most often taken for others, each with its most confident mistakes."""
    counts = confusion_counts(predictions)
    pairs = confused_pairs(counts, PAIRS)
    mistakes = int(counts.sum() - counts.trace())
    unit = tile_height(WIDE, EXAMPLES, predictions.images.shape, gap=GAP)
    rows = -(-len(pairs) // 2)
    figure = style.figure(
        10.5,
        1.1 + max(rows, 1) * (unit + WORDS + 0.5),
        f"Most confused classes on the test split: {run.recipe.model} on {run.recipe.data}",
        _caption(len(pairs), sum(counts[pair] for pair in pairs), mistakes, int(counts.sum())),
    )
    axes = figure.subplots(max(rows, 1), 2, squeeze=False).flatten()
    for ax in axes:
        ax.set_axis_off()
    for ax, (true, said) in zip(axes, pairs, strict=False):
        names = [style.short(predictions.classes[k], 20) for k in (true, said)]
        count, of = int(counts[true, said]), int(counts[true].sum())
        ax.set_title(
            f"{names[0]} \N{RIGHTWARDS ARROW} {names[1]}:  {count:,} of {of:,} "
            f"({style.percent(count / of)})"
        )
        _examples(ax, predictions, _mistakes(predictions, true, said), WORDS / unit)
    return figure


def _caption(pairs: int, shown: int, mistakes: int, images: int) -> str:
    if not pairs:
        return f"None of {images:,} images was taken for another class."
    return (
        f"True class \N{RIGHTWARDS ARROW} what it was taken for, and how many of the true class's "
        f"images. These {pairs} {'pair has' if pairs == 1 else 'pairs have'} {shown:,} of "
        f"{mistakes:,} mistakes in {images:,} images.\n"
        f"Up to {EXAMPLES} images of each, with the probability of the predicted class, the "
        "highest first."
    )


def _mistakes(predictions: Predictions, true: int, said: int) -> Tensor:
    """Return the places of a class's images that were taken for another, most confident first."""
    places = ((predictions.targets == true) & (predictions.predicted == said)).nonzero().squeeze(1)
    confidence = predictions.probabilities[places, said]
    return places[confidence.argsort(descending=True, stable=True)[:EXAMPLES]]


def _examples(ax: Axes, predictions: Predictions, shown: Tensor, above: float) -> None:
    """Show images in a row, each under the probability of what it was taken for."""
    pictures = [as_image(picture / 255) for picture in predictions.images[shown]]
    places = tiles(ax, pictures, EXAMPLES, gap=GAP, above=above)
    shares = predictions.probabilities[shown].amax(1)
    for (x, y), share in zip(places, shares.tolist(), strict=True):
        ax.text(x, y - 0.04, style.confidence(share), ha="center", va="bottom", fontsize=8)
