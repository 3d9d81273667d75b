"""The view `faithfulness`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, cams, cams_by_method
from cnn_viz.attribution.faithfulness import (
    deletion,
    edge_map,
    insertion,
    random_map,
    randomisation,
    road,
)
from cnn_viz.network.graph import strides
from cnn_viz.results.inputs import round_robin_by_class
from cnn_viz.results.metrics import bootstrap
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.gradcam import require_places

__all__ = ["EDGES", "METHODS", "RANDOM", "dots", "faithfulness", "random_cam"]

METHODS = ("grad-cam", "hires-cam", "layer-cam")
RANDOM, EDGES = "random numbers", "edges (Sobel)"
LOOK = {  # colour and marker
    "grad-cam": (style.BLUE, "o"),
    "hires-cam": ("#009e73", "s"),
    "layer-cam": ("#882255", "D"),
    RANDOM: (style.MUTED, "x"),
    EDGES: (style.ORANGE, "x"),
}
PIXELS, FEW, MANY = 2**14, 5, 16  # of all images together; images
STEPS = 8


def faithfulness(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw what maps are worth, beside two that know nothing of the network."""
    spec = registry.get_spec(run.recipe.model)
    stage = spec.cam_stage
    count = min(max(PIXELS // batch.images[0, 0].numel(), FEW), MANY)
    images = batch.images[round_robin_by_class(batch.targets.tolist(), count)]
    found = cams_by_method(model, images, stage, methods=METHODS)
    maps = {method: found[method][stage] for method in METHODS}
    first = maps[METHODS[0]]
    require_places(first, stage)
    maps[RANDOM] = random_cam(first)
    classes, stride = first.classes, strides(weights).get(stage, 0)

    def raw(model: nn.Module, method: str) -> Tensor:
        return cams(model, images, stage, classes, method)[stage].raw

    heats = {name: cam.heat(stride=stride) for name, cam in maps.items()}
    heats[EDGES] = edge_map(images)
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "Deletion: lower is better": lambda h: deletion(
            model, images, h, classes, steps=STEPS
        ).mean(1),
        "Insertion: higher is better": lambda h: insertion(
            model, images, h, classes, steps=STEPS
        ).mean(1),
        "ROAD: higher is better": lambda h: road(model, images, h, classes),
    }
    figure = style.figure(
        10.5,
        6.6,
        f"Are the maps true to the network? {run.recipe.model} on {run.recipe.data}, "
        f"stage {stage}",
        f"{len(images)} images of the test split and the class that the network predicts; means "
        "and 95 % bootstrap intervals. Deletion: the mean probability of the class\nwhile pixels "
        "turn to 0, highest first. Insertion: the same while a blurred image gets sharp. ROAD: "
        "how much less probable it is without the highest\npixels than without the lowest. "
        "Random numbers, as many as the map has and placed as it is, and edges know nothing of "
        "the network: a map worth\nlooking at is better than both, and changes with the weights. "
        "The correlation is of the stage's own values, negative ones too.",
    )
    *tops, bottom = figure.subplot_mosaic(
        [[*"abc"], ["d", "d", "d"]], height_ratios=(1, 1.1)
    ).values()
    for ax, (title, measure) in zip(tops, measures.items(), strict=True):
        dots(ax, title, {name: measure(heat) for name, heat in heats.items()})
        ax.set_xlabel("probability of the class")
    tops[-1].set_xlabel("difference of two such probabilities")
    for ax in tops[1:]:
        ax.set_yticklabels([])
    makers: dict[str, Callable[[nn.Module], Tensor]] = {
        method: partial(raw, method=method) for method in METHODS
    }
    makers[EDGES] = lambda _: heats[EDGES]
    _cascade(
        bottom, {name: randomisation(model, spec.stages, make) for name, make in makers.items()}
    )
    return figure


def random_cam(cam: Cam) -> Cam:
    """Return random numbers in a map's place: as many of them, and placed as it is."""
    return dataclasses.replace(cam, raw=random_map(cam.raw[:, None]))


def dots(ax: Axes, title: str, values: dict[str, Tensor]) -> None:
    """Show the mean of each map's numbers, NaN left out, with its interval: rows from the top."""
    for row, (name, found) in enumerate(values.items()):
        colour, marker = LOOK[name]
        numbers = found[~found.isnan()].cpu().numpy()
        if not len(numbers):
            continue
        if interval := bootstrap(numbers.tolist()):
            ax.plot(interval, [row, row], color=colour, linewidth=2, alpha=0.45)
        ax.plot(numbers.mean(), row, marker, color=colour, markersize=7, markeredgewidth=2)
    ax.set_yticks(range(len(values)), [NAMES.get(name, name) for name in values])
    ax.set(title=title, ylim=(len(values) - 0.5, -0.5))
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_formatter(FuncFormatter(style.percent_tick))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))


def _cascade(ax: Axes, left: dict[str, dict[str, Tensor]]) -> None:
    """Show what is left of each map while stages lose their weights, the last one first."""
    stages = next(iter(left.values()))
    for place, (name, found) in enumerate(left.items()):
        wide = 4.5 - place  # where two are the same, both are seen
        colour, marker = LOOK[name]
        means = [_mean(values) for values in found.values()]
        x = range(len(found) + 1)
        label = NAMES.get(name, name)
        line: dict[str, Any] = {"color": colour, "linewidth": wide, "markersize": 5 + wide}
        ax.plot(x, [1.0, *means], marker=marker, label=label, **line)
    ax.set_xticks(range(len(stages) + 1), ["trained", *stages])
    if len(stages) > 8:
        ax.tick_params(axis="x", rotation=35)
    ax.axhline(0, color=style.GRID, linewidth=1, zorder=0)
    ax.set(
        title="Weights shuffled, from the last stage to the first",
        xlabel="the first of the stages whose weights are shuffled",
        ylabel="rank correlation with the map\nof the trained network",
        ylim=(min(-0.25, ax.get_ylim()[0]), 1.08),
    )
    ax.grid(axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _mean(values: Tensor) -> float:
    """Return the mean of what is not NaN, as the correlation of a constant map is."""
    return float(values[~values.isnan()].mean())  # NaN of none, which leaves a gap
