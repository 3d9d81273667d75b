"""The view `architecture`: the network's stages, their sizes and connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from cnn_core import registry
from cnn_core.create import build_untrained
from cnn_core.errors import UsageError
from cnn_core.layers.tracing import Stage, trace
from cnn_core.training.exported import require_layers
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.network.graph import INPUT, ModelGraph, model_graph

__all__ = ["architecture", "stage_by_stage"]

BOXES_PER_ROW = 11  # more would leave no room for the names
MAX_HEIGHT, MAX_WIDTH = 2.2, 0.86  # of a box; columns are one unit apart
MIN_WIDTH = 0.07  # so that a single channel is still visible
ARC_HEIGHT = 0.42  # the vertical space of a skip connection


def architecture(weights: Weights) -> Figure:
    """Draw the stages as boxes sized like their maps, with skip connections as arcs.

    Raises:
        UsageError: the network uses none of its stages, or is an exported file.
    """
    require_layers(weights)
    spec = registry.get_spec(weights.model)
    image = (weights.in_channels, *weights.preprocessing.size)
    return stage_by_stage(weights.model, partial(build_untrained, weights), spec.stages, image)


def stage_by_stage(
    name: str, build: Callable[[], nn.Module], stages: Sequence[str], image: tuple[int, int, int]
) -> Figure:
    """Draw the stages of the network that `build` returns, for an input of shape `image`, C H W.

    Raises:
        UsageError: the network uses none of the stages.
    """
    graph = model_graph(build, stages, image)
    if not graph.stages:
        raise UsageError(f"{name} declares no stages that its network uses: nothing to draw")
    traced = trace(build, graph.stages, image)
    first = Stage(
        name=INPUT, output=image, params=0, macs=0, receptive_field=1, stride=1, connections=0
    )
    boxes = [first, *traced.stages]
    skips = _skips([stage.name for stage in boxes], graph)
    rows = _rows(boxes, single_row=bool(skips))
    figure = style.figure(
        max(10.5, 0.95 * len(rows[0])),
        1.2 + len(rows) * 2.5 + ARC_HEIGHT * _max_overlap(skips),
        f"{name}, stage by stage",
        _caption(traced.params, traced.macs, bool(skips), graph),
    )
    for ax, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        _row(ax, row, boxes, graph, len(rows[0]))
        _arcs(ax, skips, [_size(stage, boxes)[1] / 2 for stage in boxes])
    return figure


def _caption(params: int, macs: int, skips: bool, graph: ModelGraph) -> str:
    """Return the caption: totals, and what boxes, numbers and marks mean."""
    marks = []
    if skips:
        marks.append("Arcs: skip connections.")
    if any(_marks(name, graph) for name in graph.stages):
        marks.append("Loops: additions or concatenations inside a stage.")
    return "\n".join(
        [
            f"{params:,} parameters; {macs:,} multiply-accumulates per image. Below each "
            "stage: channels x height x width of its output, and its number of parameters.",
            "A box's height grows with the logarithm of the maps' height, its width with the "
            "square root of their number; grey stages have no parameters.",
            " ".join(marks),
        ]
    ).rstrip()


def _skips(names: Sequence[str], graph: ModelGraph) -> list[tuple[int, int]]:
    """Return the connections that skip a stage, as pairs of box indices, the shortest first."""
    pairs = [(names.index(start), names.index(end)) for start, end in graph.edges]
    return sorted(
        (p for p in pairs if p[1] - p[0] > 1), key=lambda pair: (pair[1] - pair[0], pair)
    )


def _max_overlap(skips: Sequence[tuple[int, int]]) -> int:
    """Return the largest number of skip connections above one place, to reserve space for them."""
    return max((sum(a <= x < b for a, b in skips) for x, _ in skips), default=0)


def _rows(boxes: Sequence[Stage], *, single_row: bool) -> list[Sequence[Stage]]:
    """Split the boxes into rows of similar length, or keep one row, if arcs must fit."""
    count = 1 if single_row else -(-len(boxes) // BOXES_PER_ROW)
    length = -(-len(boxes) // count)
    return [boxes[n : n + length] for n in range(0, len(boxes), length)]


def _row(
    ax: Axes, row: Sequence[Stage], boxes: Sequence[Stage], graph: ModelGraph, columns: int
) -> None:
    """Draw one row: boxes with labels, and the arrows between them."""
    sizes = [_size(stage, boxes) for stage in boxes]
    first_box = boxes.index(row[0])
    for place, stage in enumerate(row):
        width, height = sizes[first_box + place]
        _box(ax, place, stage, width, height)
        _loop(ax, place, width, height, _marks(stage.name, graph))
        if first_box + place and (boxes[first_box + place - 1].name, stage.name) in graph.edges:
            arrow_start = place - 1 + sizes[first_box + place - 1][0] / 2 if place else -0.6
            _arrow(ax, arrow_start + 0.02, place - width / 2 - 0.02)
    if first_box + len(row) < len(boxes):
        place = len(row) - 1
        _arrow(ax, place + sizes[first_box + place][0] / 2 + 0.02, place + 0.6)
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(-MAX_HEIGHT / 2 - 0.95, MAX_HEIGHT / 2 + 0.4))
    ax.set_axis_off()


def _size(stage: Stage, boxes: Sequence[Stage]) -> tuple[float, float]:
    """Return the width and height of a stage's box."""
    channels = max(box.output[0] for box in boxes)
    side = max(_side(box) for box in boxes)
    # Sizes and channels span three orders of magnitude: on a linear scale most boxes would be
    # invisible.
    width = max(MAX_WIDTH * math.sqrt(stage.output[0] / channels), MIN_WIDTH)
    return width, MAX_HEIGHT * (1 + math.log2(_side(stage))) / (1 + math.log2(side))


def _side(stage: Stage) -> int:
    return stage.output[1] if len(stage.output) == 3 else 1


def _box(ax: Axes, place: int, stage: Stage, width: float, height: float) -> None:
    """Draw a stage's box, and below it the name, output shape and number of parameters."""
    colour = style.BLUE if stage.params else style.GRID
    ax.add_patch(
        FancyBboxPatch(
            (place - width / 2, -height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.02",
            facecolor=colour,
            edgecolor=style.MUTED,
            linewidth=0.6,
        )
    )
    lines = [
        (style.short(stage.name, 13), style.INK, 8.5, "bold"),
        (" x ".join(map(str, stage.output)), style.INK, 7.5, "normal"),
        (f"{stage.params:,}" if stage.params else "", style.MUTED, 7.5, "normal"),
    ]
    for line, (text, ink, size, weight) in enumerate(lines):
        y = -MAX_HEIGHT / 2 - 0.1 - 0.27 * line
        ax.text(place, y, text, ha="center", va="top", color=ink, fontsize=size, weight=weight)


def _marks(name: str, graph: ModelGraph) -> str:
    """Return "2 add, 1 concat" for a stage, without the concatenation at the end of a skip arc."""
    inputs = sum(end == name for _, end in graph.edges)
    joins = max(graph.joins.get(name, 0) - (inputs > 1), 0)
    counts = {"add": graph.additions.get(name, 0), "concat": joins}
    return ", ".join(f"{n} {mark}" for mark, n in counts.items() if n)


def _loop(ax: Axes, place: int, width: float, height: float, marks: str) -> None:
    """Draw a loop over a stage that adds or concatenates maps, with the counts."""
    if not marks:
        return
    angles = np.linspace(0, np.pi, 40)
    x, y = place + min(0.16, width / 2) * np.cos(angles), height / 2 + 0.2 * np.sin(angles)
    ax.plot(x, y, color=style.ORANGE, linewidth=1.4, zorder=0.5)
    top = height / 2 + 0.24
    ax.text(place, top, marks, ha="center", va="bottom", fontsize=7.5, color=style.ORANGE)


def _arrow(ax: Axes, start: float, end: float) -> None:
    ax.annotate(
        "",
        (end, 0),
        (start, 0),
        arrowprops={"arrowstyle": "->", "color": style.MUTED, "shrinkA": 0, "shrinkB": 0},
    )


def _arcs(ax: Axes, skips: Sequence[tuple[int, int]], tops: Sequence[float]) -> None:
    """Draw skip connections as angular arcs above the boxes, longer ones higher."""
    if not skips:
        return
    low, high = ax.get_ylim()
    levels = _levels(skips)
    for (start, end), level in zip(skips, levels, strict=True):
        y = MAX_HEIGHT / 2 + 0.2 + ARC_HEIGHT * level
        line_style: dict[str, Any] = {"color": style.ORANGE, "linewidth": 1.4}
        ax.plot(
            [start, start, end], [tops[start], y, y], solid_capstyle="projecting", **line_style
        )
        ax.annotate(
            "",
            (end, tops[end]),
            (end, y),
            arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0, **line_style},
        )
    ax.set_ylim(low, max(high, MAX_HEIGHT / 2 + 0.45 + ARC_HEIGHT * max(levels)))


def _levels(skips: Sequence[tuple[int, int]]) -> list[int]:
    """Return the height of each connection as a level, above all shorter ones that it overlaps."""
    levels: list[int] = []
    for n, (start, end) in enumerate(skips):
        overlapped = [
            level
            for (a, b), level in zip(skips[:n], levels, strict=True)
            if a <= end and start <= b
        ]
        levels.append(max(overlapped, default=-1) + 1)
    return levels
