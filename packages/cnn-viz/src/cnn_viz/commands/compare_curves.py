"""Learning curves of several runs in one figure: `cnnzoo overlay` and `cnnzoo compare --plot`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from cnn_core.cli.compare import differences
from cnn_core.errors import UsageError
from cnn_core.files import write_bytes
from cnn_core.runs.destinations import folder_of
from cnn_core.tasks import SCORES
from cnn_core.training import Run
from cnn_viz import style

__all__ = ["overlay", "write_overlay"]

DPI = 150
# Without a date in the metadata, equal figures give equal files.
NO_DATE = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
MARKERS = ("o", "s", "D", "^", "v", "*", "X", "p")
VALIDATION: dict[str, Any] = {"linewidth": 1.8, "zorder": 3}
TRAINING: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 2)), "zorder": 2}
# Recipe keys that change the loss function: if they differ, losses are not comparable.
LOSS_KEYS = ("loss", "label_smoothing", "map_margin", "aux_weight")
TITLES = {
    "top1": ("Accuracy", "% of images"),
    "miou": ("Mean IoU", "%, mean over classes"),
}
Points = dict[int, float]  # by epoch
Histories = Mapping[str, Sequence[Mapping[str, float]]]  # by run
SHORT_NAMES = {"top1": "top-1", "miou": "mIoU"}
# The x of each column of the table, from 0 to 1: the left edge of text, the right edge of numbers.
NAME, SETTINGS, EPOCHS, SAVED, VAL, TEST = 0.045, 0.37, 0.71, 0.77, 0.88, 0.99
MAX_NAME_LENGTH = 40  # in characters; also for the settings of a run
MISSING = "\N{EN DASH}"
STRIPE_LENGTH = 3  # dash length of overlapping curves, in line widths
LOG_RATIO = 5  # with peak learning rates this many times apart, the axis is logarithmic


def write_overlay(runs: Mapping[str, Run], path: Path) -> None:
    """Draw the learning curves of runs, by name, into a PNG, SVG or PDF file.

    Raises:
        UsageError: the file has another suffix, or as in `overlay`.
    """
    suffix = path.suffix.lower()
    if suffix not in NO_DATE:
        raise UsageError(f"{path}: expected a file name that ends in .png, .svg or .pdf")
    file = io.BytesIO()
    with style.applied():
        figure = overlay(runs)
        figure.savefig(file, format=suffix[1:], dpi=DPI, metadata=NO_DATE[suffix])
    folder_of(path)
    write_bytes(path, file.getvalue())


def overlay(runs: Mapping[str, Run]) -> Figure:
    """Plot loss, score and learning rate of runs, by name, against epochs.

    Raises:
        UsageError: there are more runs than colours, a run has not finished an epoch, or the runs
            are for different tasks.
    """
    if len(runs) > len(style.RUNS):
        raise UsageError(
            f"{len(runs)} runs: at most {len(style.RUNS)} have distinct colours",
            "draw fewer runs",
        )
    histories = {name: _history(run) for name, run in runs.items()}
    metric = _metric(histories)
    figure = style.figure(10.5, 4.6 + 0.2 * len(runs), _title(runs), _caption(runs))
    grid = figure.add_gridspec(2, 3, height_ratios=(3.2, 0.2 * (len(runs) + 1.5)))
    loss, score, learning_rate = (figure.add_subplot(grid[0, column]) for column in range(3))
    _curves(loss, runs, histories, "loss")
    _curves(score, runs, histories, metric, 100)
    learning_rate.set(title="Learning rate", ylabel="at the start of the epoch")
    _learning_rates(learning_rate, histories)
    title, unit = TITLES[metric]
    loss.set(title="Loss", ylabel=_loss_unit(runs))
    score.set(title=title, ylabel=unit)
    # All three panels have the same range of epochs, so that they can be compared.
    longest = max(len(history) for history in histories.values())
    for ax in (loss, score, learning_rate):
        _format_axes(ax, longest)
    _split_legend(loss)
    _table(figure.add_subplot(grid[1, :]), runs, histories, metric)
    return figure


def _history(run: Run) -> list[dict[str, float]]:
    history = run.history()
    if not history:
        raise UsageError(
            f"{run.path}: no epoch has finished yet",
            f"resume with: cnnzoo train --resume {run.path}",
        )
    return history


def _metric(histories: Histories) -> str:
    """Return the metric that all runs share: "top1", "miou" or "map"."""
    metrics = {
        metric: name
        for name, history in histories.items()
        for metric in SCORES.values()
        if f"train/{metric}" in history[0] or f"val/{metric}" in history[0]
    }
    if len(metrics) != 1:
        names = [f"'{name}' by {metric}" for metric, name in metrics.items()]
        raise UsageError(f"these runs share no metric: {', '.join(names) or 'none has one'}")
    return next(iter(metrics))


def _saved_epoch(run: Run) -> int | None:
    """Return the epoch of the saved weights, or None if the run has not finished."""
    # The metrics of the saved weights are written last, with their epoch.
    final = run.final_metrics()
    return int(final["epoch"]) if final else None


def _title(runs: Mapping[str, Run]) -> str:
    pairs = {f"{run.recipe.model} on {run.recipe.data}" for run in runs.values()}
    subject = f": {style.short(pairs.pop(), 60)}" if len(pairs) == 1 else ""
    return f"Learning curves of {len(runs)} runs{subject}"


def _caption(runs: Mapping[str, Run]) -> str:
    lines = [
        "Validation metrics are measured after each epoch; training metrics are means over the "
        "epoch, while the weights change.",
        "A marker shows the epoch of the saved weights; identical curves are striped. The table "
        "lists the settings of a run that at most half of the runs share.",
    ]
    if keys := _differing_loss_keys(runs):
        lines.append(
            f"The runs differ in {', '.join(keys)}, so compare their scores and not their losses."
        )
    return "\n".join(lines)


def _differing_loss_keys(runs: Mapping[str, Run]) -> list[str]:
    return [key for key in differences(list(runs.values())) if key in LOSS_KEYS]


def _loss_unit(runs: Mapping[str, Run]) -> str:
    names = {run.recipe.loss for run in runs.values()}
    if _differing_loss_keys(runs):
        return "different criteria"
    return "cross-entropy, nats" if names == {"cross_entropy"} else f"criterion {names.pop()}"


def _points(history: Sequence[Mapping[str, float]], key: str, scale: float = 1) -> Points:
    return {int(line["epoch"]): scale * line[key] for line in history if key in line}


def _curves(
    ax: Axes, runs: Mapping[str, Run], histories: Histories, metric: str, scale: float = 1
) -> None:
    """Plot the training and validation curves of each run; mark the epoch of the saved weights."""
    train, val = (
        [_points(history, f"{split}/{metric}", scale) for history in histories.values()]
        for split in ("train", "val")
    )
    for index, run in enumerate(runs.values()):
        line_style: dict[str, Any] = {"color": style.RUNS[index]}
        ax.plot(
            *_xy(train[index]),
            label="train",
            **line_style,
            **TRAINING,
            **_single_point_marker(train[index]),
        )
        if val[index]:
            line_style["linestyle"] = _stripes(val, index)
            ax.plot(
                *_xy(val[index]),
                label="val",
                **line_style,
                **VALIDATION,
                **_single_point_marker(val[index]),
            )
        points, saved = val[index] or train[index], _saved_epoch(run)
        if saved in points:
            ax.plot([saved], [points[saved]], **_saved_marker(index))


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _single_point_marker(points: Points) -> dict[str, Any]:
    """Return a marker if the curve is a single point, which would be invisible as a line."""
    return {"marker": ".", "markersize": 5} if len(points) == 1 else {}


def _stripes(lines: Sequence[Points], index: int) -> Any:
    """Return a solid line style, or for identical curves dashes that fill each other's gaps."""
    same = [other for other, points in enumerate(lines) if points == lines[index]]
    if len(same) == 1:
        return "-"
    return (same.index(index) * STRIPE_LENGTH, (STRIPE_LENGTH, (len(same) - 1) * STRIPE_LENGTH))


def _saved_marker(index: int) -> dict[str, Any]:
    """Return the marker of a run's saved epoch; its shape and its colour identify the run."""
    return {
        "color": style.RUNS[index],
        "marker": MARKERS[index],
        "markersize": {"*": 10, "D": 6.5, "X": 8}.get(MARKERS[index], 7),
        "markeredgecolor": style.PAPER,
        "markeredgewidth": 0.8,
        "linestyle": "",
        "label": "saved",
        "zorder": 4,
    }


def _learning_rates(ax: Axes, histories: Histories) -> None:
    """Plot the learning rate of each run."""
    rates = [_points(history, "lr") for history in histories.values()]
    peaks = [max(points.values()) for points in rates]
    if max(peaks) >= LOG_RATIO * min(peaks) > 0:
        _log_scale(
            ax,
            min(rate for points in rates for rate in points.values() if rate > 0),
            peaks,
        )
    for index, points in enumerate(rates):
        line_style = {"color": style.RUNS[index], "linestyle": _stripes(rates, index)}
        ax.plot(*_xy(points), **line_style, **_single_point_marker(points))


def _log_scale(ax: Axes, lowest: float, peaks: Sequence[float]) -> None:
    """Make the y-axis logarithmic, down to a thousandth of the lowest peak; mask zeros."""
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel(f"{ax.get_ylabel()}, 0 not shown")
    # Cosine schedules end near 0, which would stretch the axis over many orders of magnitude.
    ax.set_ylim(0.8 * max(lowest, min(peaks) / 1000), 1.3 * max(peaks))
    ax.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _format_axes(ax: Axes, longest: int) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    margin = max(0.04 * (longest - 1), 0.3)
    ax.set_xlim(1 - margin, longest + margin)


def _split_legend(ax: Axes) -> None:
    """Explain the line styles of the splits above the axes, where the legend hides no curve."""
    styles = {"validation": VALIDATION, "training": TRAINING}
    ax.legend(
        [Line2D([], [], color=style.MUTED, **line_style) for line_style in styles.values()],
        list(styles),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        borderaxespad=0.1,
        columnspacing=1.2,
    )


def _table(
    ax: Axes,
    runs: Mapping[str, Run],
    histories: Histories,
    metric: str,
) -> None:
    """Write a table below the curves: the colour, settings, epochs and scores of each run."""
    ax.set(xlim=(0, 1), ylim=(len(runs) + 0.5, -0.5))
    ax.set_axis_off()
    heads = (
        "run",
        "distinct settings",
        "epochs",
        "saved",
        f"val. {SHORT_NAMES[metric]}",
        f"test {SHORT_NAMES[metric]}",
    )
    _table_row(ax, 0, heads, style.MUTED)
    settings = _distinguishing_settings(list(runs.values()))
    for index, (name, run) in enumerate(runs.items()):
        history, saved = histories[name], _saved_epoch(run)
        saved_metrics = next((line for line in history if line["epoch"] == saved), {})
        done, planned = len(history), run.recipe.epochs
        cells = (
            style.short(name, MAX_NAME_LENGTH),
            style.short(settings[index], MAX_NAME_LENGTH),
            str(done) if done >= planned else f"{done} of {planned}",
            str(saved or MISSING),
            _percent_or_missing(saved_metrics.get(f"val/{metric}")),
            _percent_or_missing(run.test_metrics().get(f"test/{metric}")),
        )
        _table_row(ax, index + 1, cells, style.INK)
        ax.plot([0.0, 0.034], [index + 1] * 2, color=style.RUNS[index])
        ax.plot([0.017], [index + 1], **_saved_marker(index))


def _distinguishing_settings(runs: Sequence[Run]) -> list[str]:
    """Return each run's recipe values that at most half of the runs share."""
    differences_of: list[list[str]] = [[] for _ in runs]
    for key, row in differences(runs).items():
        for own_values, value in zip(differences_of, row, strict=True):
            if key != "epochs" and value is not None and row.count(value) <= len(runs) / 2:
                own_values.append(f"{key} {value}")
    return [", ".join(own_values) or MISSING for own_values in differences_of]


def _table_row(ax: Axes, y: float, cells: Sequence[str], colour: str) -> None:
    for x, text in zip((NAME, SETTINGS, EPOCHS, SAVED, VAL, TEST), cells, strict=True):
        side = "left" if x in (NAME, SETTINGS) else "right"
        ax.text(x, y, text, ha=side, va="center", color=colour, fontsize=8.5)


def _percent_or_missing(fraction: float | None) -> str:
    return MISSING if fraction is None else style.percent(fraction, 2)
