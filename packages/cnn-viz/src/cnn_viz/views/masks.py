"""The views `masks` and `probability`."""

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
from cnn_core.training import Run, SegmentationOutput
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

NOTHING, RIGHT, FALSE_ALARM, MISSED, WRONG_CLASS, IGNORED_PIXEL = range(6)
OUTCOMES = {  # as Okabe and Ito (2008) tell them apart
    RIGHT: ("right (TP)", "#009e73"),
    FALSE_ALARM: ("false alarm (FP)", style.ORANGE),
    MISSED: ("missed (FN)", "#56b4e9"),
    WRONG_CLASS: ("another class", "#cc79a7"),
}
GROUND = "#30343b"
# None of the outcomes; the last three of P. Tol (2021).
CLASSES = ("#e69f00", "#0072b2", "#f0e442", "#aa4499", "#44aa99", "#999933")
GAP = 0.05  # in heights of an image
WORDS = 0.2  # inches over each image
GROUPS = ("Best", "Middling", "Worst")
EACH = 2  # of a group
NAMED = 10  # classes in the legend
KEY = 0.32  # inches of the legends


def masks(run: Run, segmented: SegmentationResults) -> Figure:
    """Draw the images of the highest, middling and lowest mIoU: what is there, what was said."""
    ranked = require_scores(run, segmented)
    chosen = _groups(ranked)
    found = segmented.pick(int(line["index"]) for group in chosen for line in group)
    unit = tile_height(4.95, 4, found[0].target.shape, gap=GAP)
    row_height = unit + WORDS + 0.42
    figure = style.figure(
        10.5,
        1.35 + KEY + len(chosen) * row_height,
        f"Masks: {run.recipe.model} on {run.recipe.data}",
        f"Of {len(ranked):,} images of the test split those of the highest, middling and lowest "
        "mIoU, a mean over the classes that an image or its prediction has.\n"
        "Pixels that count in nothing are striped.",
    )
    heights = [KEY, *[row_height] * len(chosen)]
    keys, *axes = figure.subplots(len(heights), EACH, squeeze=False, height_ratios=heights)
    place, seen = 0, set()
    for row, name, group in zip(axes, _names(len(chosen)), chosen, strict=True):
        for ax in row[len(group) :]:
            ax.set_axis_off()
        for ax, line in zip(row, group, strict=False):
            one, place = found[place], place + 1
            _masks(ax, one, WORDS / unit)
            ax.set_title(f"{name}: {_words(line, segmented.classes)}", fontsize=9)
            seen |= {*one.predicted.unique().tolist(), *one.target.unique().tolist()}
    _legends(keys, segmented.classes, sorted(seen - {IGNORED}))
    return figure


def probability(run: Run, segmented: SegmentationResults) -> Figure:
    """Draw how probable the foreground is in each pixel, and how uncertain the network is."""
    binary = len(segmented.classes) == 2
    lines = spread_by_miou(require_scores(run, segmented), 6)[::-1]
    found = segmented.pick(int(line["index"]) for line in lines)
    unit = tile_height(4.6, 3, found[0].target.shape, gap=GAP)
    rows = -(-len(found) // 2)
    what = (
        f"probability of {style.short(segmented.classes[-1])}" if binary else "highest probability"
    )
    figure = style.figure(
        10.5,
        1.15 + rows * (unit + WORDS + 0.42),
        f"Probabilities: {run.recipe.model} on {run.recipe.data}",
        f"Images of the test split from the highest mIoU to the lowest in even steps: the "
        f"{what}, and the entropy of all of a pixel's probabilities.",
    )
    axes = figure.subplots(rows, 2, squeeze=False)
    most = float(np.log2(len(segmented.classes)))
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax, one, line in zip(axes.flat, found, lines, strict=False):
        p = one.probabilities
        maps = (p[1] if binary else p.amax(0), entropy(p) / most)
        colours = [
            matplotlib.colormaps[m](np.asarray(x))[..., :3]
            for m, x in zip(MAPS, maps, strict=True)
        ]
        show(ax, [as_image(one.image), *colours], ("picture", "probability", "entropy"), unit)
        ax.set_title(_words(line, segmented.classes), fontsize=9)
    for name, label, top in zip(MAPS, (what, "entropy, bits"), (1.0, most), strict=True):
        scale = ScalarMappable(matplotlib.colors.Normalize(0, top), name)
        bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, shrink=min(1, 2.2 / rows))
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


MAPS = ("cividis", style.HEAT)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in bits of probabilities, classes x H x W: H x W, from 0."""
    nats: Tensor = torch.special.entr(probabilities).sum(0)
    return nats / math.log(2)


def outcomes(predicted: Tensor, target: Tensor) -> Tensor:
    """Return what became of each pixel, H x W, by the names of this module; class 0 is ground."""
    found = torch.full(target.shape, NOTHING)
    found[(predicted > 0) & (target > 0)] = WRONG_CLASS
    found[(predicted > 0) & (target == predicted)] = RIGHT
    found[(predicted > 0) & (target == 0)] = FALSE_ALARM
    found[(predicted == 0) & (target > 0)] = MISSED
    found[target == IGNORED] = IGNORED_PIXEL
    return found


def require_scores(run: Run, segmented: SegmentationResults) -> list[dict[str, float]]:
    """Return the numbers of images; raises UsageError if none has a pixel that counts."""
    if not segmented.scores:
        raise UsageError(f"{run.path}: no image of the test split has a pixel that counts")
    return segmented.scores


def tile_note(weights: Weights) -> str:
    """Say which part of an image a batch shows, if it is seen in tiles."""
    return " Of each image the tile at its centre." if weights.preprocessing.tiled else ""


def show(ax: Axes, images: Sequence[Pixels], words: Sequence[str], unit: float) -> None:
    """Show images of one size side by side, `unit` inches high, each below its word."""
    places = tiles(ax, images, len(images), gap=GAP, above=WORDS / unit)
    for (x, y), word in zip(places, words, strict=True):
        ax.text(x, y - 0.03, word, ha="center", va="bottom", fontsize=7.5, color=style.MUTED)


def _groups(scores: Sequence[dict[str, float]]) -> list[list[dict[str, float]]]:
    """Return images' numbers: the best, the middling, the worst; no image twice."""
    ranked = sorted(scores, key=lambda line: -line["miou"])
    if len(ranked) < 3 * EACH:
        return [ranked[start : start + EACH] for start in range(0, len(ranked), EACH)]
    middle = len(ranked) // 2 - EACH // 2
    return [ranked[:EACH], ranked[middle : middle + EACH], ranked[-EACH:]]


def _names(groups: int) -> Sequence[str]:
    return GROUPS if groups == 3 else ["All"] * groups


def _words(line: dict[str, float], classes: Sequence[str]) -> str:
    """Say which image it is and its mIoU; of two classes also the IoU of the second."""
    words = f"image {int(line['index']) + 1}, mIoU {style.percent(line['miou'])}"
    if len(classes) == 2 and "iou_1" in line:
        words += f", {style.short(classes[1])} {style.percent(line['iou_1'])}"
    return words


def _masks(ax: Axes, one: SegmentationOutput, above: float) -> None:
    picture = as_image(one.image)
    striped = (one.target == IGNORED).numpy()
    images = [
        picture,
        _coloured(one.target.numpy(), striped),
        _coloured(one.predicted.numpy(), striped),
        _judged(picture, outcomes(one.predicted, one.target).numpy()),
    ]
    show(ax, images, ("picture", "target", "prediction", "outcome"), WORDS / above)


def _colour(number: int) -> tuple[float, float, float]:
    """Return a class's colour: 0 is dark; beyond six others the colours come again, darker."""
    if number == 0:
        return to_rgb(GROUND)
    turn, place = divmod(number - 1, len(CLASSES))
    red, green, blue = (0.7**turn * value for value in to_rgb(CLASSES[place]))
    return red, green, blue


def _coloured(mask: Pixels, striped: Pixels) -> Pixels:
    """Return classes, H W, as colours, and stripes where pixels count in nothing."""
    table = np.array([_colour(number) for number in range(256)])
    return _stripes(table[mask], striped)


def _stripes(colours: Pixels, where: Pixels) -> Pixels:
    rows, columns = np.indices(where.shape)
    wide = max(max(where.shape) // 40, 1)
    light = ((rows + columns) // wide % 2)[..., None]
    return np.where(where[..., None], 0.55 + 0.25 * light, colours)


def _judged(picture: Pixels, found: Pixels) -> Pixels:
    """Let outcomes shine on an image, grey and dimmed."""
    grey = picture if picture.ndim == 2 else picture.mean(2)
    colours = np.repeat(0.75 * grey[..., None], 3, axis=2)
    for number, (_, colour) in OUTCOMES.items():
        part = (found == number)[..., None]
        colours = np.where(part, 0.3 * colours + 0.7 * np.array(to_rgb(colour)), colours)
    return _stripes(colours, found == IGNORED_PIXEL)


def _legends(axes: Sequence[Axes], classes: Sequence[str], seen: Sequence[int]) -> None:
    """Say what colours mean: of outcomes, and of the classes seen."""
    shown = [*OUTCOMES.values()][: 3 if len(classes) == 2 else 4]
    outcomes = [Patch(facecolor=colour, label=label) for label, colour in shown]
    named = [Patch(facecolor=_colour(n), label=style.short(classes[n], 10)) for n in seen[:NAMED]]
    some = f", {len(named)} of {len(seen)}" if len(seen) > NAMED else ""
    titles = ("Outcome", f"Target and prediction{some}")
    look: dict[str, Any] = {"handlelength": 1.0, "columnspacing": 1.3, "borderaxespad": 0.0}
    for ax, handles, title in zip(axes, (outcomes, named), titles, strict=True):
        ax.set_axis_off()
        ax.set_title(title, fontsize=9)
        ax.legend(handles=handles, loc="upper left", ncols=NAMED // 2, borderpad=0, **look)
