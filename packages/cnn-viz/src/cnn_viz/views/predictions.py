"""The view `predictions`."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.drawing.image_grid import as_image, tile_height, tiles
from cnn_viz.results.inputs import round_robin_by_class

__all__ = ["predictions"]

COLUMNS = 8
SHOWN = 16  # right, and as many wrong
UNSURE = 8
VARIED = "from every class in turn"
GAP = 0.16  # in heights of an image
WORDS = 0.42  # inches over each image


def predictions(run: Run, predictions: Predictions) -> Figure:
    """Draw images that were right, right but least sure, and the most confident mistakes."""
    confidence = predictions.probabilities.amax(1)
    hit = predictions.predicted == predictions.targets
    right = hit.nonzero().squeeze(1)
    wrong = (~hit).nonzero().squeeze(1)
    by_confidence = confidence.argsort(descending=True, stable=True)
    ranked_right, ranked_wrong = (by_confidence[is_so[by_confidence]] for is_so in (hit, ~hit))
    kinds = (
        (
            "Right",
            right[round_robin_by_class(predictions.targets[right].tolist(), SHOWN)],
            right,
            VARIED,
        ),
        ("Right, but least sure", ranked_right.flip(0)[:UNSURE], right, "the least sure first"),
        ("Wrong", ranked_wrong[:SHOWN], wrong, "the most confident mistakes first"),
    )
    unit = tile_height(10.2, COLUMNS, predictions.images.shape, gap=GAP)
    heights = [
        0.4 + -(-len(shown) // COLUMNS) * (unit * (1 + GAP) + WORDS) for _, shown, *_ in kinds
    ]
    figure = style.figure(
        10.5,
        0.9 + sum(heights),
        f"Predictions on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{len(hit):,} images. Per cent are the probability that the network gives to the class "
        "it predicts.",
    )
    axes = figure.subplots(len(kinds), 1, height_ratios=heights)
    for ax, (what, shown, whole, order) in zip(axes, kinds, strict=True):
        ax.set_title(_heading(what, shown, whole, order))
        _grid(ax, predictions, shown, confidence, WORDS / unit)
    return figure


def _heading(what: str, shown: Tensor, whole: Tensor, order: str) -> str:
    return f"{what}: {len(shown)} of {len(whole):,}, {order}" if len(whole) else f"{what}: none"


def _grid(
    ax: Axes, predictions: Predictions, shown: Tensor, confidence: Tensor, above: float
) -> None:
    """Show images, each under what was said of it."""
    if not len(shown):
        ax.set_axis_off()
        return
    pictures = [as_image(picture / 255) for picture in predictions.images[shown]]
    places = tiles(ax, pictures, COLUMNS, gap=GAP, above=above)
    for (x, y), number in zip(places, shown.tolist(), strict=True):
        said = int(predictions.predicted[number])
        true = int(predictions.targets[number])
        share = style.confidence(float(confidence[number]))
        label = f"{style.short(predictions.classes[said])}\n{share}"
        if said != true:
            label = f"{style.short(predictions.classes[said], 10)}  {share}\n"
            label += f"but is {style.short(predictions.classes[true], 11)}"
        ax.text(
            x,
            y - 0.04,
            label,
            ha="center",
            va="bottom",
            fontsize=8,
            linespacing=1.15,
            color=style.INK if said == true else style.ORANGE,
        )
