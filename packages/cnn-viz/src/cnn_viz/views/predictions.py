"""The view `predictions`."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnn_core.training import Predictions, Run
from cnn_viz import style
from cnn_viz.pictures import as_image, inches, tiles, varied

__all__ = ["predictions"]

COLUMNS = 8
SHOWN = 16  # of each kind
GAP = 0.16  # in heights of an image
WORDS = 0.42  # inches over each image


def predictions(run: Run, predictions: Predictions) -> Figure:
    """Draw images that were classified right, and mistakes, the most confident first."""
    confidence = predictions.probabilities.amax(1)
    hit = predictions.predicted == predictions.targets
    right = hit.nonzero().squeeze(1)
    wrong = (~hit).nonzero().squeeze(1)
    right_shown = right[varied(predictions.targets[right].tolist(), SHOWN)]
    wrong_shown = wrong[confidence[wrong].argsort(descending=True, stable=True)[:SHOWN]]
    unit = inches(10.2, COLUMNS, predictions.images.shape, gap=GAP)
    rows = [-(-len(shown) // COLUMNS) for shown in (right_shown, wrong_shown)]
    heights = [0.4 + row * (unit * (1 + GAP) + WORDS) for row in rows]
    figure = style.figure(
        10.5,
        0.9 + sum(heights),
        f"Predictions on the test split: {run.recipe.model} on {run.recipe.data}",
        f"{len(hit):,} images. Per cent are the probability that the network gives to the class "
        "it predicts.",
    )
    top, bottom = figure.subplots(2, 1, height_ratios=heights)
    top.set_title(_heading("Right", right_shown, right, "from every class in turn"))
    bottom.set_title(_heading("Wrong", wrong_shown, wrong, "the most confident mistakes first"))
    for ax, shown in ((top, right_shown), (bottom, wrong_shown)):
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
        share = style.percent(float(confidence[number]))
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
