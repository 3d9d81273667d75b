"""The view `predictions`: images with their predicted classes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.training import Predictions, Trained
from cnn_viz import style
from cnn_viz.drawing.image_grid import as_image, tile_height, tiles
from cnn_viz.results.inputs import round_robin_by_class

__all__ = ["predictions"]

COLUMNS = 8
EXAMPLES = 16  # correct images, and as many mistakes
LEAST_CONFIDENT = 8  # correct images
GAP = 0.16  # relative to the height of an image
LABEL_ROOM = 0.42  # inches above each image


def predictions(trained: Trained, predictions: Predictions) -> Figure:
    """Draw correct predictions, the least confident of them, and the most confident mistakes."""
    confidence = predictions.probabilities.amax(1)
    hit = predictions.predicted == predictions.targets
    correct = hit.nonzero().squeeze(1)
    wrong = (~hit).nonzero().squeeze(1)
    # Stable, so that ties keep the dataset's order and the figure is reproducible.
    by_confidence = confidence.argsort(descending=True, stable=True)
    ranked_correct, ranked_wrong = (by_confidence[kind[by_confidence]] for kind in (hit, ~hit))
    kinds = (
        (
            "Correct",
            correct[round_robin_by_class(predictions.targets[correct].tolist(), EXAMPLES)],
            correct,
            "one of each class in turn",
        ),
        (
            "Correct, but least confident",
            ranked_correct.flip(0)[:LEAST_CONFIDENT],
            correct,
            "least confident first",
        ),
        ("Wrong", ranked_wrong[:EXAMPLES], wrong, "most confident first"),
    )
    unit = tile_height(10.2, COLUMNS, predictions.images.shape, gap=GAP)
    heights = [
        0.4 + -(-len(indices) // COLUMNS) * (unit * (1 + GAP) + LABEL_ROOM)
        for _, indices, *_ in kinds
    ]
    figure = style.figure(
        10.5,
        0.9 + sum(heights),
        f"Predictions on the test split: {trained.recipe.model} on {trained.recipe.data}",
        f"{len(hit):,} images. Percentages are the probability of the predicted class.",
    )
    axes = figure.subplots(len(kinds), 1, height_ratios=heights)
    for ax, (kind, indices, all_of_kind, order) in zip(axes, kinds, strict=True):
        ax.set_title(_heading(kind, indices, all_of_kind, order))
        _grid(ax, predictions, indices, confidence, LABEL_ROOM / unit)
    return figure


def _heading(kind: str, indices: Tensor, all_of_kind: Tensor, order: str) -> str:
    return (
        f"{kind}: {len(indices)} of {len(all_of_kind):,}, {order}"
        if len(all_of_kind)
        else f"{kind}: none"
    )


def _grid(
    ax: Axes, predictions: Predictions, indices: Tensor, confidence: Tensor, above: float
) -> None:
    """Show images, each below its predicted class and probability."""
    if not len(indices):
        ax.set_axis_off()
        return
    images = [as_image(image / 255) for image in predictions.images[indices]]
    corners = tiles(ax, images, COLUMNS, gap=GAP, top_gap=above)
    for (x, y), index in zip(corners, indices.tolist(), strict=True):
        predicted = int(predictions.predicted[index])
        target = int(predictions.targets[index])
        probability = style.confidence(float(confidence[index]))
        label = f"{style.short(predictions.classes[predicted])}\n{probability}"
        if predicted != target:
            label = f"{style.short(predictions.classes[predicted], 10)}  {probability}\n"
            label += f"true: {style.short(predictions.classes[target], 11)}"
        ax.text(
            x,
            y - 0.04,
            label,
            ha="center",
            va="bottom",
            fontsize=8,
            linespacing=1.15,
            color=style.INK if predicted == target else style.ORANGE,
        )
