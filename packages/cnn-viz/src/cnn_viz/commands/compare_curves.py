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
from cnn_core.tasks import SCORES
from cnn_core.training import Run
from cnn_viz import style

__all__ = ["overlay", "write_overlay"]

DPI = 150
# Without a date, equal figures give equal files.
NO_DATE = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
SHAPES = ("o", "s", "D", "^", "v", "*", "X", "p")
VALIDATION: dict[str, Any] = {"linewidth": 1.8, "zorder": 3}
TRAINING: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 2)), "zorder": 2}
# The recipe keys that change the loss itself: losses of runs that differ in them do not compare.
CRITERION = ("loss", "label_smoothing", "map_margin", "aux_weight")
TITLES = {
    "top1": ("Accuracy", "per cent of images"),
    "miou": ("Mean IoU", "per cent, mean of the classes"),
}
Points = dict[int, float]  # by epoch
Histories = Mapping[str, Sequence[Mapping[str, float]]]  # by run
SHORT = {"top1": "top-1", "miou": "mIoU"}
# The x of the table's columns, from 0 to 1: the left edge of text, the right edge of numbers.
NAME, DIFFERS, EPOCHS, KEPT, VAL, TEST = 0.045, 0.37, 0.71, 0.77, 0.88, 0.99
LONGEST = 40  # characters of a run's name
MISSING = "\N{EN DASH}"
STRIPE = 3  # line widths: a dash of overlapping curves
LOG_RATIO = 5  # ratio of the runs' peak learning rates from which the axis is logarithmic


def write_overlay(runs: Mapping[str, Run], path: Path) -> None:
    """Draw the curves of runs, keyed by name, into a PNG, SVG or PDF file.

    Raises:
        UsageError: the file has another suffix; or as `overlay`.
    """
    suffix = path.suffix.lower()
    if suffix not in NO_DATE:
        raise UsageError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    file = io.BytesIO()
    with style.applied():
        figure = overlay(runs)
        figure.savefig(file, format=suffix[1:], dpi=DPI, metadata=NO_DATE[suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())


def overlay(runs: Mapping[str, Run]) -> Figure:
    """Plot loss, score and learning rate of runs, keyed by name, against epochs.

    Raises:
        UsageError: there are more runs than colours, a run has no epoch yet, or the runs are for
            different tasks.
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
    loss, score, rate = (figure.add_subplot(grid[0, column]) for column in range(3))
    _curves(loss, runs, histories, "loss")
    _curves(score, runs, histories, metric, 100)
    rate.set(title="Learning rate", ylabel="at the start of the epoch")
    _rates(rate, histories)
    title, unit = TITLES[metric]
    loss.set(title="Loss", ylabel=_loss_unit(runs))
    score.set(title=title, ylabel=unit)
    # All three panels share the range of epochs, so that they can be compared.
    longest = max(len(history) for history in histories.values())
    for ax in (loss, score, rate):
        _format_axes(ax, longest)
    _split_legend(loss)
    _table(figure.add_subplot(grid[1, :]), runs, histories, metric)
    return figure


def _history(run: Run) -> list[dict[str, float]]:
    history = run.history()
    if not history:
        raise UsageError(
            f"{run.path}: no epoch has ended yet", f"cnnzoo train --resume {run.path}"
        )
    return history


def _metric(histories: Histories) -> str:
    """Return the score that all runs share: "top1" or "miou"."""
    metrics = {
        metric: name
        for name, history in histories.items()
        for metric in SCORES.values()
        if f"train/{metric}" in history[0]
    }
    if len(metrics) != 1:
        names = [f"'{name}' by {metric}" for metric, name in metrics.items()]
        raise UsageError(f"these runs share no metric: {', '.join(names) or 'none has one'}")
    return next(iter(metrics))


def _kept(run: Run) -> int | None:
    """Return the epoch whose weights were kept, or None while training is not finished."""
    # The line with the test metrics is written last, for the epoch that was kept.
    return next((int(line["epoch"]) for line in run.metrics() if "test/loss" in line), None)


def _title(runs: Mapping[str, Run]) -> str:
    pairs = {f"{run.recipe.model} on {run.recipe.data}" for run in runs.values()}
    of = f": {style.short(pairs.pop(), 60)}" if len(pairs) == 1 else ""
    return f"Learning curves of {len(runs)} runs{of}"


def _caption(runs: Mapping[str, Run]) -> str:
    lines = [
        "Validation is measured at the end of each epoch; training is the mean over the epoch, "
        "while the weights change.",
        "A marker shows the epoch whose weights were kept; identical curves are striped. A run is "
        "listed with the settings that at most half of the runs share.",
    ]
    if differ := _other_criteria(runs):
        lines.append(
            f"The losses are not comparable ({', '.join(differ)} differs): compare the scores."
        )
    return "\n".join(lines)


def _other_criteria(runs: Mapping[str, Run]) -> list[str]:
    return [key for key in differences(list(runs.values())) if key in CRITERION]


def _loss_unit(runs: Mapping[str, Run]) -> str:
    names = {run.recipe.loss for run in runs.values()}
    if _other_criteria(runs):
        return "each run's own criterion"
    return "cross-entropy, nats" if names == {"cross_entropy"} else f"criterion {names.pop()}"


def _points(history: Sequence[Mapping[str, float]], key: str, scale: float = 1) -> Points:
    return {int(line["epoch"]): scale * line[key] for line in history if key in line}


def _curves(
    ax: Axes, runs: Mapping[str, Run], histories: Histories, metric: str, scale: float = 1
) -> None:
    """Plot each run's training and validation curves, and mark the kept epoch."""
    train, val = (
        [_points(history, f"{split}/{metric}", scale) for history in histories.values()]
        for split in ("train", "val")
    )
    for number, run in enumerate(runs.values()):
        line_style: dict[str, Any] = {"color": style.RUNS[number]}
        ax.plot(
            *_xy(train[number]),
            label="train",
            **line_style,
            **TRAINING,
            **_single_point_marker(train[number]),
        )
        if val[number]:
            line_style["linestyle"] = _stripes(val, number)
            ax.plot(
                *_xy(val[number]),
                label="val",
                **line_style,
                **VALIDATION,
                **_single_point_marker(val[number]),
            )
        shown, kept = val[number] or train[number], _kept(run)
        if kept in shown:
            ax.plot([kept], [shown[kept]], **_kept_marker(number))


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _single_point_marker(points: Points) -> dict[str, Any]:
    """Return a marker for a curve of one point, which would be invisible as a line."""
    return {"marker": ".", "markersize": 5} if len(points) == 1 else {}


def _stripes(lines: Sequence[Points], number: int) -> Any:
    """Return a solid line, or for identical curves dashes that fill each other's gaps."""
    same = [other for other, points in enumerate(lines) if points == lines[number]]
    if len(same) == 1:
        return "-"
    return (same.index(number) * STRIPE, (STRIPE, (len(same) - 1) * STRIPE))


def _kept_marker(number: int) -> dict[str, Any]:
    """Return the marker of a run's kept epoch: a shape as well as a colour identifies the run."""
    return {
        "color": style.RUNS[number],
        "marker": SHAPES[number],
        "markersize": {"*": 10, "D": 6.5, "X": 8}.get(SHAPES[number], 7),
        "markeredgecolor": style.PAPER,
        "markeredgewidth": 0.8,
        "linestyle": "",
        "label": "kept",
        "zorder": 4,
    }


def _rates(ax: Axes, histories: Histories) -> None:
    """Plot the learning rates."""
    rates = [_points(history, "lr") for history in histories.values()]
    peaks = [max(points.values()) for points in rates]
    if max(peaks) >= LOG_RATIO * min(peaks) > 0:
        _log_scale(
            ax, min(rate for points in rates for rate in points.values() if rate > 0), peaks
        )
    for number, points in enumerate(rates):
        line_style = {"color": style.RUNS[number], "linestyle": _stripes(rates, number)}
        ax.plot(*_xy(points), **line_style, **_single_point_marker(points))


def _log_scale(ax: Axes, lowest: float, peaks: Sequence[float]) -> None:
    """Make the axis logarithmic, down to a thousandth of the lowest peak; 0 is masked."""
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel(f"{ax.get_ylabel()}, 0 not shown")
    # Cosine schedules end near 0, which would stretch the axis over many decades.
    ax.set_ylim(0.8 * max(lowest, min(peaks) / 1000), 1.3 * max(peaks))
    ax.yaxis.set_major_formatter(lambda rate, position: f"{rate:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _format_axes(ax: Axes, longest: int) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    room = max(0.04 * (longest - 1), 0.3)
    ax.set_xlim(1 - room, longest + room)


def _split_legend(ax: Axes) -> None:
    """Explain the line styles of the splits, above the axes, where no curve can be hidden."""
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
    """Write a table below the curves: each run's colour, settings, epochs and scores."""
    ax.set(xlim=(0, 1), ylim=(len(runs) + 0.5, -0.5))
    ax.set_axis_off()
    heads = (
        "run",
        "distinct settings",
        "epochs",
        "kept",
        f"val. {SHORT[metric]}",
        f"test {SHORT[metric]}",
    )
    _table_row(ax, 0, heads, style.MUTED)
    apart = _distinguishing_settings(list(runs.values()))
    for number, (name, run) in enumerate(runs.items()):
        history, kept = histories[name], _kept(run)
        at_kept = next((line for line in history if line["epoch"] == kept), {})
        done, planned = len(history), run.recipe.epochs
        cells = (
            style.short(name, LONGEST),
            style.short(apart[number], LONGEST),
            str(done) if done >= planned else f"{done} of {planned}",
            str(kept or MISSING),
            _percent_or_missing(at_kept.get(f"val/{metric}")),
            _percent_or_missing(run.test_metrics().get(f"test/{metric}")),
        )
        _table_row(ax, number + 1, cells, style.INK)
        ax.plot([0.0, 0.034], [number + 1] * 2, color=style.RUNS[number])
        ax.plot([0.017], [number + 1], **_kept_marker(number))


def _distinguishing_settings(runs: Sequence[Run]) -> list[str]:
    """Return each run's recipe values that at most half of the runs share."""
    differences_of: list[list[str]] = [[] for _ in runs]
    for key, row in differences(runs).items():
        for own_values, value in zip(differences_of, row, strict=True):
            if key != "epochs" and value is not None and row.count(value) <= len(runs) / 2:
                own_values.append(f"{key} {value}")
    return [", ".join(own_values) or MISSING for own_values in differences_of]


def _table_row(ax: Axes, y: float, cells: Sequence[str], colour: str) -> None:
    for x, text in zip((NAME, DIFFERS, EPOCHS, KEPT, VAL, TEST), cells, strict=True):
        side = "left" if x in (NAME, DIFFERS) else "right"
        ax.text(x, y, text, ha=side, va="center", color=colour, fontsize=8.5)


def _percent_or_missing(fraction: float | None) -> str:
    return MISSING if fraction is None else style.percent(fraction, 2)
