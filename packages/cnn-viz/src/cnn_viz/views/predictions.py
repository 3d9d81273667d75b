"""The view `predictions`: images with their predicted classes."""

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
SHOWN = 16  # correct images, and as many mistakes
UNSURE = 8
VARIED = "one of each class in turn"
GAP = 0.16  # relative to the height of an image
LABEL_ROOM = 0.42  # inches above each image


def predictions(run: Run, predictions: Predictions) -> Figure:
    """Draw correct predictions, the least confident of them, and the most confident mistakes."""
    confidence = predictions.probabilities.amax(1)
    hit = predictions.predicted == predictions.targets
    right = hit.nonzero().squeeze(1)
    wrong = (~hit).nonzero().squeeze(1)
    # Stable, so that ties keep the dataset's order and the figure is reproducible.
    by_confidence = confidence.argsort(descending=True, stable=True)
    ranked_right, ranked_wrong = (by_confidence[is_so[by_confidence]] for is_so in (hit, ~hit))
    kinds = (
        (
            "Correct",
            right[round_robin_by_class(predictions.targets[right].tolist(), SHOWN)],
            right,
            VARIED,
        ),
        (
            "Correct, but least confident",
            ranked_right.flip(0)[:UNSURE],
            right,
            "least confident first",
        ),
        ("Wrong", ranked_wrong[:SHOWN], wrong, "most confident first"),
    )
    unit = tile_height(10.2, COLUMNS, predictions.images.shape, gap=GAP)
    heights = [
        0.4 + -(-len(shown) // COLUMNS) * (unit * (1 + GAP) + LABEL_ROOM) for _, shown, *_ in kinds
    ]
    figure = style.figure(
        10.5,
        0.9 + sum(heights),
        f"Predictions on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{len(hit):,} images. Percentages are the probability of the predicted class.",
    )
    axes = figure.subplots(len(kinds), 1, height_ratios=heights)
    for ax, (kind, shown, all_of_kind, order) in zip(axes, kinds, strict=True):
        ax.set_title(_heading(kind, shown, all_of_kind, order))
        _grid(ax, predictions, shown, confidence, LABEL_ROOM / unit)
    return figure


def _heading(kind: str, shown: Tensor, all_of_kind: Tensor, order: str) -> str:
    return (
        f"{kind}: {len(shown)} of {len(all_of_kind):,}, {order}"
        if len(all_of_kind)
        else f"{kind}: none"
    )


def _grid(
    ax: Axes, predictions: Predictions, shown: Tensor, confidence: Tensor, above: float
) -> None:
    """Show images, each below its predicted class and probability."""
    if not len(shown):
        ax.set_axis_off()
        return
    images = [as_image(image / 255) for image in predictions.images[shown]]
    corners = tiles(ax, images, COLUMNS, gap=GAP, top_gap=above)
    for (x, y), number in zip(corners, shown.tolist(), strict=True):
        predicted = int(predictions.predicted[number])
        true = int(predictions.targets[number])
        probability = style.confidence(float(confidence[number]))
        label = f"{style.short(predictions.classes[predicted])}\n{probability}"
        if predicted != true:
            label = f"{style.short(predictions.classes[predicted], 10)}  {probability}\n"
            label += f"true: {style.short(predictions.classes[true], 11)}"
        ax.text(
            x,
            y - 0.04,
            label,
            ha="center",
            va="bottom",
            fontsize=8,
            linespacing=1.15,
            color=style.INK if predicted == true else style.ORANGE,
        )
