"""The view `embedding`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.results.embeddings import Embedded, Placed, nearest

__all__ = ["embedding"]

COLOURS = (*style.RUNS, "#999933", "#332288", "#aa4499", "#44aa99")  # the last of P. Tol (2021)
ON_DARK = {style.INK: "#e8eaee", "#882255": "#a04e77", "#332288": "#b8b2d5"}  # on the dark page
SCALE = "viridis"


def embedding(run: Run, weights: Weights, embedded: Embedded) -> Figure:
    """Draw where each method places the images of the test split, and how far to trust that."""
    methods = embedded.drawn()
    classes = weights.classes if embedded.coloured == "class" else ()
    figure = style.figure(
        10.5,
        10.5 / max(len(methods), 2) + 0.9,
        f"Embedding: {run.recipe.model} on {run.recipe.data}",
        f"{embedded.about} Axes have no meaning of their own.\n"
        + _caption(nearest(len(embedded.labels)), classes),
    )
    axes = figure.subplots(1, max(len(methods), 2), squeeze=False)[0]
    for ax in axes[len(methods) :]:
        ax.set_axis_off()
    labels = np.asarray(embedded.labels)
    for ax, method in zip(axes, methods, strict=False):
        found = embedded.places(method)
        _points(ax, found, labels[found.indices], embedded.coloured)
        ax.set_title(f"{method}, {len(found.xy):,} images\n{words(found.quality)}", fontsize=8.5)
    if embedded.coloured == "class":
        _legend(figure, classes)
    else:
        scale = ScalarMappable(Normalize(*_limits(labels)), SCALE)
        bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, format=style.percent_tick)
        bar.set_label(f"the image's {embedded.coloured}")
        bar.outline.set_visible(False)
    return figure


def _caption(near: int, classes: Sequence[str]) -> str:
    """Say what the numbers mean, and that a colour is not one class where there are more."""
    text = f"the {near} nearest here" if near > 1 else "the nearest one here"
    said = f"Trustworthiness: whether {text} are near in the features, from 0 to 1."
    if classes:
        said += f" Silhouette: how far classes lie apart, from {style.MINUS}1 to 1."
        said += f"\nk-NN: how many images {text} name rightly."
    if len(classes) > len(COLOURS):
        said += f" {len(COLOURS)} colours for {len(classes):,} classes: each stands for several."
    return said


def words(quality: dict[str, float]) -> str:
    """Return how well an image does, in words."""
    said = [f"trustworthiness {quality['trustworthiness']:.2f}"]
    if "knn" in quality:
        said += [
            f"silhouette {style.signed(quality['silhouette'], '.2f')}",
            f"k-NN {style.percent(quality['knn'])}",
        ]
    return ", ".join(said)


def _points(ax: Axes, found: Placed, labels: Any, coloured: str) -> None:
    size = float(np.clip(3000 / len(found.xy), 3, 28))
    look: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.85, "rasterized": True}
    if coloured == "class":
        look["c"] = [COLOURS[label % len(COLOURS)] for label in labels]
    else:
        look |= {"c": labels, "cmap": SCALE, "norm": Normalize(*_limits(labels))}
    ax.scatter(*found.xy.T, **look)
    ax.set(xticks=[], yticks=[])
    ax.set_box_aspect(1)
    ax.spines[:].set_visible(True)


def _limits(values: Any) -> tuple[float, float]:
    """Return the least and the largest number there is."""
    there = values[np.isfinite(values)]
    return (float(there.min()), float(there.max())) if len(there) else (0.0, 1.0)


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    """Name the classes, if there is a colour for each."""
    if len(classes) > len(COLOURS):
        return
    handles = [
        Line2D(
            [], [], color=colour, marker="o", linestyle="", markersize=5, label=style.short(name)
        )
        for name, colour in zip(classes, COLOURS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside right center", handletextpad=0.2)
