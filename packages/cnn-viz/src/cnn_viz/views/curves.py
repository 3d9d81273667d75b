"""The view `curves`: loss, accuracy and learning rate by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cnn_core.errors import UsageError
from cnn_core.text import natural
from cnn_core.training import Run
from cnn_core.training.selection import best_epoch
from cnn_viz import style

__all__ = ["curves"]

LOSSES = {
    "cross_entropy": "cross-entropy, nats",
    "map": "MAP criterion (LeCun et al. 1998, Eq. 9)",
    "bce": "binary cross-entropy, nats",
    "dice": "1 \N{MINUS SIGN} soft Dice",
    "dice_ce": "1 \N{MINUS SIGN} soft Dice, and cross-entropy, nats",
    "focal": "focal loss, nats",
    "tversky": "1 \N{MINUS SIGN} soft Tversky index",
}
PIXEL_METRICS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
LABEL_METRICS = {"map": "mAP", "macro_f1": "macro F1"}  # of multilabel
COLOURS = {"train": style.BLUE, "val": style.ORANGE}
NAMES = {"train": "training", "val": "validation"}
SOLID: dict[str, Any] = {"linestyle": "-"}
DASHED: dict[str, Any] = {"linestyle": (0, (3, 1.2))}


def curves(run: Run) -> Figure:
    """Draw loss, accuracy and learning rate by epoch, and mark the best epoch.

    Without validation, the last epoch counts as the best.

    Raises:
        UsageError: no epoch has ended yet.
    """
    history = run.history()
    if not history:
        raise UsageError(
            f"{run.path}: no epoch has ended yet", f"cnnzoo train --resume {run.path}"
        )
    kept = best_epoch(run)
    figure = style.figure(
        10.5,
        3.8,
        f"Learning curves: {run.recipe.model} on {run.recipe.data}",
        f"Epochs: {len(history)}, batch size {run.recipe.batch_size}. Training values are means "
        "over the epoch, while the weights change; validation is measured at its end.\n"
        f"The dotted line marks epoch {kept}; the run's saved weights are those of this epoch.",
    )
    loss, accuracy, learning_rate = figure.subplots(1, 3)
    _lines(loss, history, ["loss"])
    loss.set(title="Loss", ylabel=LOSSES.get(run.recipe.loss, run.recipe.loss))
    metrics = {key.partition("/")[2] for key in history[-1]}
    accuracies = sorted((name for name in metrics if name.startswith("top")), key=natural)
    # A line at 100 % would compress the other curves.
    accuracies = [name for name in accuracies if not _always_perfect(name, history)]
    other = PIXEL_METRICS if "miou" in metrics else LABEL_METRICS if "map" in metrics else ()
    accuracies = accuracies or [name for name in other if name in metrics]
    _lines(accuracy, history, accuracies, scale=100)
    title = "Pixels" if "miou" in accuracies else "Labels" if "map" in accuracies else "Accuracy"
    accuracy.set(title=title, ylabel="% of images" if title == "Accuracy" else "%")
    learning_rate.plot(*_points(history, "lr", 1), color=style.BLUE, **_marker(history))
    learning_rate.set(title="Learning rate", ylabel="at the start of the epoch")
    for ax in (loss, accuracy, learning_rate):
        _format_axes(ax, kept, [line["epoch"] for line in history])
    _legend(loss, {NAMES[split]: {"color": colour} for split, colour in COLOURS.items()})
    styles = ({"color": style.MUTED, **line_style} for line_style in (SOLID, DASHED))
    _legend(accuracy, dict(zip(map(_metric_label, accuracies), styles, strict=False)))
    return figure


def _lines(
    ax: Axes, history: Sequence[dict[str, float]], metrics: Sequence[str], scale: float = 1
) -> None:
    """Plot each metric for training and validation; curves of all but the first are dashed."""
    for metric in metrics:
        line_style = _marker(history) | (SOLID if metric == metrics[0] else DASHED)
        for split, colour in COLOURS.items():
            key = f"{split}/{metric}"
            if not any(key in line for line in history):
                continue
            name = NAMES[split] if metric == "loss" else f"{NAMES[split]}, {_metric_label(metric)}"
            ax.plot(
                *_points(history, key, scale),
                color=colour,
                label=name,
                **line_style,
            )


def _legend(ax: Axes, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Add a legend above the axes: inside, it might hide a point."""
    lines = [Line2D([], [], **line_style) for line_style in styles.values()]
    ax.legend(
        lines,
        list(styles),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(lines),
        borderaxespad=0.1,
        columnspacing=1.2,
    )


def _points(
    history: Sequence[dict[str, float]], key: str, scale: float
) -> tuple[list[float], list[float]]:
    known = [line for line in history if key in line]
    return [line["epoch"] for line in known], [scale * line[key] for line in known]


def _always_perfect(metric: str, history: Sequence[dict[str, float]]) -> bool:
    """Return whether a metric other than top-1 is always 100 %, such as top-2 of two classes."""
    values = [line.get(f"{split}/{metric}", 1.0) for line in history for split in COLOURS]
    return metric != "top1" and all(value == 1 for value in values)


def _metric_label(metric: str) -> str:
    return PIXEL_METRICS.get(metric, f"top-{metric.removeprefix('top')}")


def _marker(history: Sequence[object]) -> dict[str, Any]:
    """Return plot options that mark each point if there are few."""
    return {"marker": "o", "markersize": 3.5} if len(history) <= 15 else {}


def _format_axes(ax: Axes, kept: int, epochs: Sequence[float]) -> None:
    ax.axvline(kept, color=style.MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    margin = max(0.04 * (epochs[-1] - epochs[0]), 0.3)
    ax.set_xlim(epochs[0] - margin, epochs[-1] + margin)
