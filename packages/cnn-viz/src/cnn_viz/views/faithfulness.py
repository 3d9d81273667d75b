"""The view `faithfulness`: do class activation maps reflect the network?"""

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
from cnn_core.training import Trained
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
from cnn_viz.views.gradcam import require_spatial_maps

__all__ = ["EDGES", "METHODS", "RANDOM", "faithfulness", "plot_means", "random_cam"]

METHODS = ("grad-cam", "hires-cam", "layer-cam")
RANDOM, EDGES = "random numbers", "edges (Sobel)"
STYLES = {  # colour and marker
    "grad-cam": (style.BLUE, "o"),
    "hires-cam": ("#009e73", "s"),
    "layer-cam": ("#882255", "D"),
    RANDOM: (style.MUTED, "x"),
    EDGES: (style.ORANGE, "x"),
}
PIXEL_BUDGET = 2**14  # over all images: this view runs the network very often
MIN_IMAGES, MAX_IMAGES = 5, 16
STEPS = 8  # of deletion and insertion

CAPTION = (
    "images of the test split, explaining the predicted class; means and 95 % bootstrap "
    "intervals. Deletion: the mean probability of the class while pixels are\nset to 0, "
    "highest-ranked first. Insertion: likewise, while a blurred image is progressively restored. "
    "ROAD: the probability with the lowest-ranked pixels removed\nminus that with the "
    "highest-ranked removed. Random numbers, at the map's resolution, and image edges ignore the "
    "network: a faithful map scores better than both,\nand changes when the weights are shuffled. "
    "Correlations are computed on the stage's raw values, including negative ones."
)


def faithfulness(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw faithfulness scores of class activation maps and of two baselines.

    The baselines, random numbers and image edges, ignore the network.

    Raises:
        UsageError: the stage has maps of a single value.
    """
    recipe = trained.recipe
    spec = registry.get_spec(recipe.model)
    stage = spec.cam_stage
    count = min(max(PIXEL_BUDGET // batch.images[0, 0].numel(), MIN_IMAGES), MAX_IMAGES)
    images = batch.images[round_robin_by_class(batch.targets.tolist(), count)]
    by_method = cams_by_method(model, images, stage, methods=METHODS)
    maps = {method: by_method[method][stage] for method in METHODS}
    first = maps[METHODS[0]]
    require_spatial_maps(first, stage)
    maps[RANDOM] = random_cam(first)
    classes, stride = first.classes, strides(weights).get(stage, 0)

    def raw_maps(model: nn.Module, method: str) -> Tensor:
        return cams(model, images, stage, classes, method)[stage].raw

    heats = {name: cam.heat(stride=stride) for name, cam in maps.items()}
    heats[EDGES] = edge_map(images)
    figure = style.figure(
        10.5,
        6.6,
        f"Do the maps reflect the network? {recipe.model} on {recipe.data}, stage {stage}",
        f"{len(images)} {CAPTION}",
    )
    *score_axes, bottom = figure.subplot_mosaic(
        [[*"abc"], ["d", "d", "d"]], height_ratios=(1, 1.1)
    ).values()
    scores = _scores(model, images, heats, classes)
    for ax, (title, by_map) in zip(score_axes, scores.items(), strict=True):
        plot_means(ax, title, by_map)
        ax.set_xlabel("probability of the class")
    score_axes[-1].set_xlabel("difference of two probabilities")
    for ax in score_axes[1:]:
        ax.set_yticklabels([])
    explainers: dict[str, Callable[[nn.Module], Tensor]] = {
        method: partial(raw_maps, method=method) for method in METHODS
    }
    explainers[EDGES] = lambda _: heats[EDGES]
    _cascade(
        bottom,
        {name: randomisation(model, spec.stages, explain) for name, explain in explainers.items()},
    )
    return figure


def _scores(
    model: nn.Module, images: Tensor, heats: dict[str, Tensor], classes: Tensor
) -> dict[str, dict[str, Tensor]]:
    """Return {title: {map name: scores, N}} for deletion, insertion and ROAD."""
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "Deletion: lower is better": lambda heat: deletion(
            model, images, heat, classes, steps=STEPS
        ).mean(1),
        "Insertion: higher is better": lambda heat: insertion(
            model, images, heat, classes, steps=STEPS
        ).mean(1),
        "ROAD: higher is better": lambda heat: road(model, images, heat, classes),
    }
    return {
        title: {name: score(heat) for name, heat in heats.items()}
        for title, score in scores.items()
    }


def random_cam(cam: Cam) -> Cam:
    """Return a map of random numbers with the resolution and placement of `cam`.

    Noise at pixel resolution would be an unfair baseline: it deletes no connected region.
    """
    return dataclasses.replace(cam, raw=random_map(cam.raw[:, None]))


def plot_means(ax: Axes, title: str, values: dict[str, Tensor]) -> None:
    """Plot the mean of each map's scores with its interval, ignoring NaN, one row per map."""
    for row, (name, scores) in enumerate(values.items()):
        colour, marker = STYLES[name]
        numbers = scores[~scores.isnan()].cpu().numpy()
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


def _cascade(ax: Axes, by_method: dict[str, dict[str, Tensor]]) -> None:
    """Plot the correlations as weights are shuffled, from the last stage to the first."""
    stages = next(iter(by_method.values()))
    for number, (name, correlations) in enumerate(by_method.items()):
        linewidth = 4.5 - number  # so that coinciding curves stay distinguishable
        colour, marker = STYLES[name]
        means = [_mean(values) for values in correlations.values()]
        x = range(len(correlations) + 1)
        label = NAMES.get(name, name)
        line: dict[str, Any] = {
            "color": colour,
            "linewidth": linewidth,
            "markersize": 5 + linewidth,
        }
        ax.plot(x, [1.0, *means], marker=marker, label=label, **line)
    ax.set_xticks(range(len(stages) + 1), ["trained", *stages])
    if len(stages) > 8:
        ax.tick_params(axis="x", rotation=35)
    ax.axhline(0, color=style.GRID, linewidth=1, zorder=0)
    ax.set(
        title="Weights shuffled, from the last stage to the first",
        xlabel="first stage with shuffled weights",
        ylabel="rank correlation with the map\nof the trained network",
        ylim=(min(-0.25, ax.get_ylim()[0]), 1.08),
    )
    ax.grid(axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _mean(values: Tensor) -> float:
    """Return the mean, ignoring NaN (the correlation is NaN for a constant map)."""
    # If no value is left, the mean is NaN, which leaves a gap in the curve.
    return float(values[~values.isnan()].mean())
