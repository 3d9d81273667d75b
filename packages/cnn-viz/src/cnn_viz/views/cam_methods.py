"""The view `cam_methods`: six CAM methods side by side."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, cams_by_method
from cnn_viz.drawing.image_grid import as_rgb, tile_height, tiles
from cnn_viz.network.graph import strides
from cnn_viz.results.inputs import round_robin_by_class
from cnn_viz.views.gradcam import evidence_colorbar, overlay, require_spatial_maps

__all__ = ["NAMES", "cam_methods"]

NAMES = {
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "hires-cam": "HiRes-CAM",
    "xgrad-cam": "XGrad-CAM",
    "layer-cam": "Layer-CAM",
    "eigen-cam": "Eigen-CAM",
}
IMAGES = 6
GAP = 0.05  # relative to the height of an image
LABEL_ROOM = 0.22  # inches above each row


def cam_methods(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw images beside six methods' class activation maps for the predicted class."""
    recipe = trained.recipe
    stage = registry.get_spec(recipe.model).cam_stage
    indices = round_robin_by_class(batch.targets.tolist(), IMAGES)
    images = batch.images[indices]
    cams = {
        method: stages[stage] for method, stages in cams_by_method(model, images, stage).items()
    }
    require_spatial_maps(next(iter(cams.values())), stage)
    denormalised = weights.preprocessing.denormalise(images)
    unit = tile_height(9.3, 1 + len(cams), denormalised.shape, gap=GAP)
    height, width = next(iter(cams.values())).raw.shape[1:]
    figure = style.figure(
        10.5,
        1.25 + len(indices) * (unit * (1 + GAP) + LABEL_ROOM),
        f"Six class activation maps at stage {stage}: {recipe.model} on {recipe.data}",
        f"{len(indices)} images of the test split and the evidence for the predicted class. Each "
        f"map has {height} x {width} values, aligned with the centres of\ntheir receptive fields "
        "and interpolated bilinearly to the image. Brightness is relative to each map's own "
        "maximum. Eigen-CAM does not depend on the class.",
    )
    ax = figure.subplots()
    targets = batch.targets[indices].tolist()
    stride = strides(weights).get(stage, 0)
    _rows(
        ax,
        denormalised,
        cams,
        classes=weights.classes,
        targets=targets,
        stride=stride,
        above=LABEL_ROOM / unit,
    )
    evidence_colorbar(figure, ax, 0.4)
    return figure


def _rows(
    ax: Axes,
    images: Tensor,
    cams: dict[str, Cam],
    *,
    classes: tuple[str, ...],
    targets: list[int],
    stride: int,
    above: float,
) -> None:
    """Show one row per image, labelled with its predicted class, and one column per method."""
    heats = {method: cam.heat(stride=stride).cpu().numpy() for method, cam in cams.items()}
    panels: list[Any] = []
    for number, image in enumerate(images):
        rgb = as_rgb(image)
        panels += [rgb, *(overlay(rgb, heat[number]) for heat in heats.values())]
    columns = 1 + len(cams)
    places = tiles(ax, panels, columns, gap=GAP, top_gap=above)
    titles = ["image", *(NAMES[method] for method in cams)]
    for (x, y), title in zip(places, titles, strict=False):
        ax.text(x, y - above, title, ha="center", va="bottom", fontsize=9, weight="bold")
    first = next(iter(cams.values()))
    probabilities = first.logits.softmax(1).gather(1, first.classes[:, None]).squeeze(1)
    left = images.shape[-1] / images.shape[-2] / 2
    for number, target in enumerate(targets):
        predicted, probability = int(first.classes[number]), float(probabilities[number])
        label = f"{style.short(classes[predicted], 30)}  {style.confidence(probability)}"
        if predicted != target:
            label += f"  (true: {style.short(classes[target], 30)})"
        colour = style.INK if predicted == target else style.ORANGE
        x, y = places[number * columns]
        ax.text(x - left, y - 0.05, label, va="bottom", fontsize=8, color=colour)
        for column, cam in enumerate(cams.values(), 1):
            if cam.empty[number]:
                x, y = places[number * columns + column]
                _mark_empty(ax, x, y + 0.5)


def _mark_empty(ax: Axes, x: float, y: float) -> None:
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
