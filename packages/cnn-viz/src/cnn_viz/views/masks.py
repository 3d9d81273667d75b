"""The views `masks` and `probability`: predicted masks and pixel probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.errors import UsageError
from cnn_core.training import SegmentationOutput, Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.drawing.image_grid import Pixels, as_image, tile_height, tiles
from cnn_viz.results.segmentations import SegmentationResults, spread_by_miou

__all__ = [
    "MISSED",
    "OUTCOMES",
    "entropy",
    "masks",
    "outcomes",
    "probability",
    "require_scores",
    "show",
    "tile_note",
]

TRUE_NEGATIVE, CORRECT, FALSE_ALARM, MISSED, WRONG_CLASS, IGNORED_PIXEL = range(6)
OUTCOMES = {  # in the colours of Okabe and Ito (2008)
    CORRECT: ("correct (TP)", "#009e73"),
    FALSE_ALARM: ("false alarm (FP)", style.ORANGE),
    MISSED: ("missed (FN)", "#56b4e9"),
    WRONG_CLASS: ("wrong class", "#cc79a7"),
}
BACKGROUND = "#30343b"
# Different from the colours of the outcomes; the last three are from P. Tol (2021).
CLASSES = ("#e69f00", "#0072b2", "#f0e442", "#aa4499", "#44aa99", "#999933")
GAP = 0.05  # relative to the height of an image
LABEL_ROOM = 0.2  # inches above each image
GROUPS = ("Best", "Median", "Worst")
PER_GROUP = 2  # images per group
MAX_LEGEND = 10  # classes in the legend, at most
LEGEND_HEIGHT = 0.32  # inches
COLOUR_MAPS = ("cividis", style.HEAT)  # of probability and entropy


def masks(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw targets and predictions for the images with the best, median and worst mIoU."""
    ranked = require_scores(trained, segmented)
    chosen = _groups(ranked)
    outputs = segmented.pick(int(scores["index"]) for group in chosen for scores in group)
    unit = tile_height(4.95, 4, outputs[0].target.shape, gap=GAP)
    row_height = unit + LABEL_ROOM + 0.42
    figure = style.figure(
        10.5,
        1.35 + LEGEND_HEIGHT + len(chosen) * row_height,
        f"Masks: {trained.recipe.model} on {trained.recipe.data}",
        f"The images with the best, median and worst mIoU of {len(ranked):,} images of the test "
        "split; the mean is over the classes present in an image or its prediction.\n"
        "Ignored pixels are striped.",
    )
    heights = [LEGEND_HEIGHT, *[row_height] * len(chosen)]
    legend_axes, *axes = figure.subplots(
        len(heights), PER_GROUP, squeeze=False, height_ratios=heights
    )
    index, seen = 0, set()
    for row, name, group in zip(axes, _group_names(len(chosen)), chosen, strict=True):
        for ax in row[len(group) :]:
            ax.set_axis_off()
        for ax, scores in zip(row, group, strict=False):
            output, index = outputs[index], index + 1
            _masks(ax, output, LABEL_ROOM / unit)
            ax.set_title(f"{name}: {_score_text(scores, segmented.classes)}", fontsize=9)
            seen |= {*output.predicted.unique().tolist(), *output.target.unique().tolist()}
    _legends(legend_axes, segmented.classes, sorted(seen - {IGNORED}))
    return figure


def probability(trained: Trained, segmented: SegmentationResults) -> Figure:
    """Draw each pixel's predicted probability and the entropy of its class probabilities."""
    binary = len(segmented.classes) == 2
    chosen = spread_by_miou(require_scores(trained, segmented), 6)[::-1]
    outputs = segmented.pick(int(scores["index"]) for scores in chosen)
    unit = tile_height(4.6, 3, outputs[0].target.shape, gap=GAP)
    rows = -(-len(outputs) // 2)
    quantity = (
        f"probability of {style.short(segmented.classes[-1])}" if binary else "highest probability"
    )
    figure = style.figure(
        10.5,
        1.15 + rows * (unit + LABEL_ROOM + 0.42),
        f"Probabilities: {trained.recipe.model} on {trained.recipe.data}",
        f"Images of the test split, evenly spaced from the highest mIoU to the lowest: the "
        f"{quantity}, and the entropy of each pixel's class probabilities.",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    max_entropy = float(np.log2(len(segmented.classes)))
    for ax in axes.flat[len(outputs) :]:
        ax.set_axis_off()
    for ax, output, scores in zip(axes.flat, outputs, chosen, strict=False):
        p = output.probabilities
        maps = (p[1] if binary else p.amax(0), entropy(p) / max_entropy)
        colours = [
            matplotlib.colormaps[m](np.asarray(x))[..., :3]
            for m, x in zip(COLOUR_MAPS, maps, strict=True)
        ]
        show(ax, [as_image(output.image), *colours], ("image", "probability", "entropy"), unit)
        ax.set_title(_score_text(scores, segmented.classes), fontsize=9)
    for name, label, top in zip(
        COLOUR_MAPS, (quantity, "entropy, bits"), (1.0, max_entropy), strict=True
    ):
        scale = ScalarMappable(matplotlib.colors.Normalize(0, top), name)
        bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, shrink=min(1, 2.2 / rows))
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in bits, H W, of class probabilities, C H W."""
    nats: Tensor = torch.special.entr(probabilities).sum(0)
    return nats / math.log(2)


def outcomes(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the outcome of each pixel, H W: `TRUE_NEGATIVE`, `CORRECT` and so on."""
    outcome = torch.full(target.shape, TRUE_NEGATIVE)
    outcome[(predicted > 0) & (target > 0)] = WRONG_CLASS
    outcome[(predicted > 0) & (target == predicted)] = CORRECT
    outcome[(predicted > 0) & (target == 0)] = FALSE_ALARM
    outcome[(predicted == 0) & (target > 0)] = MISSED
    outcome[target == IGNORED] = IGNORED_PIXEL
    return outcome


def require_scores(trained: Trained, segmented: SegmentationResults) -> list[dict[str, float]]:
    """Return the scores of each image.

    Raises:
        UsageError: all pixels of the test split are ignored.
    """
    if not segmented.scores:
        raise UsageError(f"{trained.path}: all pixels of the test split are ignored")
    return segmented.scores


def tile_note(weights: Weights) -> str:
    """Return a caption note if only the central tile of each image is shown, otherwise ""."""
    return " Only the central tile of each image is shown." if weights.preprocessing.tiled else ""


def show(ax: Axes, images: Sequence[Pixels], labels: Sequence[str], unit: float) -> None:
    """Show images of one size side by side, `unit` inches high, each below its label."""
    places = tiles(ax, images, len(images), gap=GAP, top_gap=LABEL_ROOM / unit)
    for (x, y), label in zip(places, labels, strict=True):
        ax.text(x, y - 0.03, label, ha="center", va="bottom", fontsize=7.5, color=style.MUTED)


def _groups(scores: Sequence[dict[str, float]]) -> list[list[dict[str, float]]]:
    """Return the scores of the best, median and worst images, or of all if there are under six."""
    ranked = sorted(scores, key=lambda image: -image["miou"])
    if len(ranked) < 3 * PER_GROUP:
        return [ranked[start : start + PER_GROUP] for start in range(0, len(ranked), PER_GROUP)]
    middle = len(ranked) // 2 - PER_GROUP // 2
    return [ranked[:PER_GROUP], ranked[middle : middle + PER_GROUP], ranked[-PER_GROUP:]]


def _group_names(groups: int) -> Sequence[str]:
    return GROUPS if groups == 3 else ["All"] * groups


def _score_text(scores: dict[str, float], classes: Sequence[str]) -> str:
    """Return an image's number and mIoU, and for two classes the IoU of the second."""
    text = f"image {int(scores['index']) + 1}, mIoU {style.percent(scores['miou'])}"
    if len(classes) == 2 and "iou_1" in scores:
        text += f", {style.short(classes[1])} {style.percent(scores['iou_1'])}"
    return text


def _masks(ax: Axes, output: SegmentationOutput, above: float) -> None:
    image = as_image(output.image)
    striped = (output.target == IGNORED).numpy()
    panels = [
        image,
        _class_colours(output.target.numpy(), striped),
        _class_colours(output.predicted.numpy(), striped),
        _outcome_overlay(image, outcomes(output.predicted, output.target).numpy()),
    ]
    show(ax, panels, ("image", "target", "prediction", "outcome"), LABEL_ROOM / above)


def _colour(number: int) -> tuple[float, float, float]:
    """Return a class's RGB colour: dark for 0; after six classes the colours repeat, darker."""
    if number == 0:
        return to_rgb(BACKGROUND)
    cycle, position = divmod(number - 1, len(CLASSES))
    red, green, blue = (0.7**cycle * value for value in to_rgb(CLASSES[position]))
    return red, green, blue


def _class_colours(mask: Pixels, striped: Pixels) -> Pixels:
    """Return a mask of class indices, H W, as an RGB image with striped ignored pixels."""
    table = np.array([_colour(number) for number in range(256)])
    return _stripes(table[mask], striped)


def _stripes(colours: Pixels, striped: Pixels) -> Pixels:
    rows, columns = np.indices(striped.shape)
    stripe_width = max(max(striped.shape) // 40, 1)
    light = ((rows + columns) // stripe_width % 2)[..., None]
    return np.where(striped[..., None], 0.55 + 0.25 * light, colours)


def _outcome_overlay(image: Pixels, outcome: Pixels) -> Pixels:
    """Return the image in dimmed grey, with the outcomes in colour."""
    grey = image if image.ndim == 2 else image.mean(2)
    colours = np.repeat(0.75 * grey[..., None], 3, axis=2)
    for number, (_, colour) in OUTCOMES.items():
        part = (outcome == number)[..., None]
        colours = np.where(part, 0.3 * colours + 0.7 * np.array(to_rgb(colour)), colours)
    return _stripes(colours, outcome == IGNORED_PIXEL)


def _legends(axes: Sequence[Axes], classes: Sequence[str], seen: Sequence[int]) -> None:
    """Draw the legends of the outcomes and of the classes in `seen`."""
    entries = [*OUTCOMES.values()][: 3 if len(classes) == 2 else 4]
    outcome_patches = [Patch(facecolor=colour, label=label) for label, colour in entries]
    class_patches = [
        Patch(facecolor=_colour(n), label=style.label(classes[n], 10)) for n in seen[:MAX_LEGEND]
    ]
    note = f", {len(class_patches)} of {len(seen)} classes" if len(seen) > MAX_LEGEND else ""
    titles = ("Outcome", f"Target and prediction{note}")
    options: dict[str, Any] = {"handlelength": 1.0, "columnspacing": 1.3, "borderaxespad": 0.0}
    for ax, handles, title in zip(axes, (outcome_patches, class_patches), titles, strict=True):
        ax.set_axis_off()
        ax.set_title(title, fontsize=9)
        ax.legend(handles=handles, loc="upper left", ncols=MAX_LEGEND // 2, borderpad=0, **options)
