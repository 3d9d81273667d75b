"""The view `embedding`: the network's features in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.results.embeddings import Embedding, Placement, neighbour_count

__all__ = ["embedding"]

# The last four are from P. Tol (2021).
COLOURS = (*style.RUNS, "#999933", "#332288", "#aa4499", "#44aa99")
# Replacements for colours that would be too dark on the dark page.
ON_DARK = {style.INK: "#e8eaee", "#882255": "#a04e77", "#332288": "#b8b2d5"}
COLOUR_MAP = "viridis"


def embedding(trained: Trained, weights: Weights, embedded: Embedding) -> Figure:
    """Draw the test images as each method places them, with the quality of each plot."""
    methods, labels = embedded.methods_to_draw(), np.asarray(embedded.labels)
    classes: Sequence[str] = ()
    if embedded.label_name == "class":
        # Only classes with images get a colour: a dataset may lack most of 1,000.
        present, labels = np.unique(labels, return_inverse=True)
        classes = [weights.classes[k] for k in present]
    figure = style.figure(
        10.5,
        10.5 / max(len(methods), 2) + 0.9,
        f"Embedding: {trained.recipe.model} on {trained.recipe.data}",
        f"{embedded.description} The axes have no units or meaning.\n"
        + _caption(neighbour_count(len(embedded.labels)), classes),
    )
    axes = figure.subplots(1, max(len(methods), 2), squeeze=False)[0]
    for ax in axes[len(methods) :]:
        ax.set_axis_off()
    for ax, method in zip(axes, methods, strict=False):
        placement = embedded.placement(method)
        _points(ax, placement, labels[placement.indices], embedded.label_name)
        ax.set_title(
            f"{method}, {len(placement.xy):,} images\n{quality_text(placement.quality)}",
            fontsize=8.5,
        )
    if embedded.label_name == "class":
        _legend(figure, classes)
    else:
        scale = ScalarMappable(Normalize(*_limits(labels)), COLOUR_MAP)
        bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, format=style.percent_tick)
        bar.set_label(f"the image's {embedded.label_name}")
        bar.outline.set_visible(False)
    return figure


def _caption(count: int, classes: Sequence[str]) -> str:
    """Return the meaning of the scores, and a warning if classes share colours."""
    neighbours = f"the {count} nearest neighbours" if count > 1 else "the nearest neighbour"
    caption = f"Trustworthiness: are {neighbours} in the plot also near in the features? 0 to 1."
    if classes:
        caption += f" Silhouette: the separation of the classes in the plot, {style.MINUS}1 to 1."
        caption += f"\nk-NN: the accuracy of classifying each image by {neighbours} in the plot."
    if len(classes) > len(COLOURS):
        caption += f" {len(COLOURS)} colours for {len(classes):,} classes: each colour is shared."
    return caption


def quality_text(quality: dict[str, float]) -> str:
    """Return the quality scores as text."""
    parts = [f"trustworthiness {quality['trustworthiness']:.2f}"]
    if "knn" in quality:
        parts += [
            f"silhouette {style.signed(quality['silhouette'], '.2f')}",
            f"k-NN {style.percent(quality['knn'])}",
        ]
    return ", ".join(parts)


def _points(ax: Axes, placement: Placement, labels: Any, coloured: str) -> None:
    size = float(np.clip(3000 / len(placement.xy), 3, 28))
    options: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.85, "rasterized": True}
    if coloured == "class":
        options["c"] = [COLOURS[label % len(COLOURS)] for label in labels]
    else:
        options |= {"c": labels, "cmap": COLOUR_MAP, "norm": Normalize(*_limits(labels))}
    ax.scatter(*placement.xy.T, **options)
    ax.set(xticks=[], yticks=[])
    ax.set_box_aspect(1)
    ax.spines[:].set_visible(True)


def _limits(values: Any) -> tuple[float, float]:
    """Return the smallest and the largest finite value, or (0, 1) if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    """Add a legend, if every class has a colour of its own."""
    if len(classes) > len(COLOURS):
        return
    handles = [
        Line2D(
            [], [], color=colour, marker="o", linestyle="", markersize=5, label=style.label(name)
        )
        for name, colour in zip(classes, COLOURS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside right center", handletextpad=0.2)
