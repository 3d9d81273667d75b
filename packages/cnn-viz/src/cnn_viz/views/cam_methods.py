"""The view `cam_methods`."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, cams_by_method
from cnn_viz.drawing.image_grid import as_rgb, inches, tiles
from cnn_viz.network.graph import strides
from cnn_viz.results.inputs import round_robin_by_class
from cnn_viz.views.gradcam import evidence_bar, overlay, require_places

__all__ = ["NAMES", "cam_methods"]

NAMES = {
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "hires-cam": "HiRes-CAM",
    "xgrad-cam": "XGrad-CAM",
    "layer-cam": "Layer-CAM",
    "eigen-cam": "Eigen-CAM",
}
SHOWN = 6  # images
GAP = 0.05  # in heights of an image
WORDS = 0.22  # inches over each row


def cam_methods(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw images beside what six methods say that speaks for the predicted class."""
    stage = registry.get_spec(run.recipe.model).cam_stage
    shown = round_robin_by_class(batch.targets.tolist(), SHOWN)
    images = batch.images[shown]
    found = {
        method: stages[stage] for method, stages in cams_by_method(model, images, stage).items()
    }
    require_places(next(iter(found.values())), stage)
    pictures = weights.preprocessing.denormalise(images)
    unit = inches(9.3, 1 + len(found), pictures.shape, gap=GAP)
    height, width = next(iter(found.values())).raw.shape[1:]
    figure = style.figure(
        10.5,
        1.25 + len(shown) * (unit * (1 + GAP) + WORDS),
        f"Six ways to a class activation map, at stage {stage}: "
        f"{run.recipe.model} on {run.recipe.data}",
        f"{len(shown)} images of the test split, and what speaks for the class that the network "
        f"predicts; a map has {height} x {width} values, each where it looks, enlarged bilinearly."
        "\nBrightness is the share of each map's own maximum. Eigen-CAM does not look at the "
        "class.",
    )
    ax = figure.subplots()
    targets = batch.targets[shown].tolist()
    stride = strides(weights).get(stage, 0)
    _rows(ax, pictures, found, weights.classes, targets, stride=stride, above=WORDS / unit)
    evidence_bar(figure, ax, 0.4)
    return figure


def _rows(
    ax: Axes,
    pictures: Tensor,
    found: dict[str, Cam],
    classes: tuple[str, ...],
    targets: list[int],
    *,
    stride: int,
    above: float,
) -> None:
    """Show a row for each image, under the class and its probability, a column a method."""
    heats = {method: cam.heat(stride=stride).cpu().numpy() for method, cam in found.items()}
    images: list[Any] = []
    for number, picture in enumerate(pictures):
        plain = as_rgb(picture)
        images += [plain, *(overlay(plain, heat[number]) for heat in heats.values())]
    columns = 1 + len(found)
    places = tiles(ax, images, columns, gap=GAP, above=above)
    titles = ["picture", *(NAMES[method] for method in found)]
    for (x, y), title in zip(places, titles, strict=False):
        ax.text(x, y - above, title, ha="center", va="bottom", fontsize=9, weight="bold")
    said = next(iter(found.values()))
    probabilities = said.logits.softmax(1).gather(1, said.classes[:, None]).squeeze(1)
    left = pictures.shape[-1] / pictures.shape[-2] / 2
    for number, target in enumerate(targets):
        name, share = int(said.classes[number]), float(probabilities[number])
        label = f"{style.short(classes[name], 30)}  {style.confidence(share)}"
        if name != target:
            label += f"  (is {style.short(classes[target], 30)})"
        colour = style.INK if name == target else style.ORANGE
        x, y = places[number * columns]
        ax.text(x - left, y - 0.05, label, va="bottom", fontsize=8, color=colour)
        for column, cam in enumerate(found.values(), 1):
            if cam.empty[number]:
                x, y = places[number * columns + column]
                _empty(ax, x, y + 0.5)


def _empty(ax: Axes, x: float, y: float) -> None:
    ax.text(
        x,
        y,
        "empty map",
        ha="center",
        va="center",
        fontsize=6.5,
        color="#ffffff",
        bbox={"facecolor": "#000000", "alpha": 0.6, "edgecolor": "none", "pad": 1.5},
    )
