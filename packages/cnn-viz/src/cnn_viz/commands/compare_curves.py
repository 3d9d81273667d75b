"""Learning curves of several runs on one figure: `cnnzoo overlay` and `cnnzoo compare --plot`."""

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
DATES = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # none is written
SHAPES = ("o", "s", "D", "^", "v", "*", "X", "p")
VALIDATION: dict[str, Any] = {"linewidth": 1.8, "zorder": 3}
TRAINING: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 2)), "zorder": 2}
CRITERION = ("loss", "label_smoothing", "map_margin", "aux_weight")  # what a loss depends on
TITLES = {
    "top1": ("Accuracy", "per cent of images"),
    "miou": ("Mean IoU", "per cent, mean of the classes"),
}
Points = dict[int, float]  # by epoch
Histories = Mapping[str, Sequence[Mapping[str, float]]]  # by run
SHORT = {"top1": "top-1", "miou": "mIoU"}
# Where the columns of the table are, from 0 to 1; numbers end there.
NAME, DIFFERS, EPOCHS, KEPT, VAL, TEST = 0.045, 0.37, 0.71, 0.77, 0.88, 0.99
LONGEST = 40  # characters of a name
NONE = "\N{EN DASH}"
STRIPE = 3  # line widths
FAR = 5  # how many times another a peak of the learning rate must be for decades on the axis


def write_overlay(runs: Mapping[str, Run], path: Path) -> None:
    """Draw the curves of runs, by name, into a PNG, SVG or PDF file.

    Raises:
        UsageError: the file's name ends in something else, or as `overlay` raises.
    """
    suffix = path.suffix.lower()
    if suffix not in DATES:
        raise UsageError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    file = io.BytesIO()
    with style.applied():
        figure = overlay(runs)
        figure.savefig(file, format=suffix[1:], dpi=DPI, metadata=DATES[suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())


def overlay(runs: Mapping[str, Run]) -> Figure:
    """Return loss, score and learning rate of runs, by name, against epochs.

    Raises:
        UsageError: more runs than there are colours, one without an epoch, or of two tasks.
    """
    if len(runs) > len(style.RUNS):
        raise UsageError(
            f"{len(runs)} runs: no more than {len(style.RUNS)} colours are told apart",
            "draw fewer of them",
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
    longest = max(len(history) for history in histories.values())
    for ax in (loss, score, rate):
        _finish(ax, longest)
    _splits(loss)
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
    """Return the score that all runs have: "top1" or "miou"."""
    found = {
        metric: name
        for name, history in histories.items()
        for metric in SCORES.values()
        if f"train/{metric}" in history[0]
    }
    if len(found) != 1:
        names = [f"'{name}' by {metric}" for metric, name in found.items()]
        raise UsageError(f"these runs are not measured alike: {', '.join(names) or 'by nothing'}")
    return next(iter(found))


def _kept(run: Run) -> int | None:
    """Return the epoch whose weights were kept, None while training goes on."""
    return next((int(line["epoch"]) for line in run.metrics() if "test/loss" in line), None)


def _title(runs: Mapping[str, Run]) -> str:
    pairs = {f"{run.recipe.model} on {run.recipe.data}" for run in runs.values()}
    of = f": {style.short(pairs.pop(), 60)}" if len(pairs) == 1 else ""
    return f"Learning curves of {len(runs)} runs{of}"


def _caption(runs: Mapping[str, Run]) -> str:
    lines = [
        "Validation is measured at the end of an epoch; training is the mean over it, while the "
        "weights change.",
        "A marker is the epoch whose weights were kept; lines of several runs that are the same "
        "are striped. What sets a run apart, most of them do not have.",
    ]
    if differ := _other_criteria(runs):
        lines.append(f"The losses are not of one kind ({', '.join(differ)}): compare the scores.")
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
    """Draw each run's training, its validation, and what was kept."""
    train, val = (
        [_points(history, f"{split}/{metric}", scale) for history in histories.values()]
        for split in ("train", "val")
    )
    for number, run in enumerate(runs.values()):
        look: dict[str, Any] = {"color": style.RUNS[number]}
        ax.plot(*_xy(train[number]), label="train", **look, **TRAINING, **_dot(train[number]))
        if val[number]:
            look["linestyle"] = _stripes(val, number)
            ax.plot(*_xy(val[number]), label="val", **look, **VALIDATION, **_dot(val[number]))
        shown, kept = val[number] or train[number], _kept(run)
        if kept in shown:
            ax.plot([kept], [shown[kept]], **_mark(number))


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _dot(points: Points) -> dict[str, Any]:
    """A line through one point shows it."""
    return {"marker": ".", "markersize": 5} if len(points) == 1 else {}


def _stripes(lines: Sequence[Points], number: int) -> Any:
    """Return a solid line, or, where several are the same, dashes that fill each other's gaps."""
    same = [other for other, points in enumerate(lines) if points == lines[number]]
    if len(same) == 1:
        return "-"
    return (same.index(number) * STRIPE, (STRIPE, (len(same) - 1) * STRIPE))


def _mark(number: int) -> dict[str, Any]:
    """Return how the kept epoch of a run looks: a shape of its own, beside its colour."""
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
    """Draw the learning rates."""
    rates = [_points(history, "lr") for history in histories.values()]
    peaks = [max(points.values()) for points in rates]
    if max(peaks) >= FAR * min(peaks) > 0:
        _decades(ax, min(rate for points in rates for rate in points.values() if rate > 0), peaks)
    for number, points in enumerate(rates):
        look = {"color": style.RUNS[number], "linestyle": _stripes(rates, number)}
        ax.plot(*_xy(points), **look, **_dot(points))


def _decades(ax: Axes, lowest: float, peaks: Sequence[float]) -> None:
    """Make the axis logarithmic, down to a thousandth of the lowest peak; 0 is not on it."""
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel(f"{ax.get_ylabel()}, but for 0")
    ax.set_ylim(0.8 * max(lowest, min(peaks) / 1000), 1.3 * max(peaks))
    ax.yaxis.set_major_formatter(lambda rate, position: f"{rate:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _finish(ax: Axes, longest: int) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    room = max(0.04 * (longest - 1), 0.3)
    ax.set_xlim(1 - room, longest + room)


def _splits(ax: Axes) -> None:
    """Say which lines are which split, above the axes."""
    looks = {"validation": VALIDATION, "training": TRAINING}
    ax.legend(
        [Line2D([], [], color=style.MUTED, **look) for look in looks.values()],
        list(looks),
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
    """Write under the curves which run is which, what differs, and what each reached."""
    ax.set(xlim=(0, 1), ylim=(len(runs) + 0.5, -0.5))
    ax.set_axis_off()
    heads = (
        "run",
        "set apart by",
        "epochs",
        "kept",
        f"val. {SHORT[metric]}",
        f"test {SHORT[metric]}",
    )
    _row(ax, 0, heads, style.MUTED)
    apart = _apart(list(runs.values()))
    for number, (name, run) in enumerate(runs.items()):
        history, kept = histories[name], _kept(run)
        at_kept = next((line for line in history if line["epoch"] == kept), {})
        done, wanted = len(history), run.recipe.epochs
        cells = (
            style.short(name, LONGEST),
            style.short(apart[number], LONGEST),
            str(done) if done >= wanted else f"{done} of {wanted}",
            str(kept or NONE),
            _per_cent(at_kept.get(f"val/{metric}")),
            _per_cent(run.test_metrics().get(f"test/{metric}")),
        )
        _row(ax, number + 1, cells, style.INK)
        ax.plot([0.0, 0.034], [number + 1] * 2, color=style.RUNS[number])
        ax.plot([0.017], [number + 1], **_mark(number))


def _apart(runs: Sequence[Run]) -> list[str]:
    """Return what sets each run's recipe apart: values that most of the others do not have."""
    found: list[list[str]] = [[] for _ in runs]
    for key, row in differences(runs).items():
        for own, value in zip(found, row, strict=True):
            if key != "epochs" and value is not None and row.count(value) <= len(runs) / 2:
                own.append(f"{key} {value}")
    return [", ".join(own) or NONE for own in found]


def _row(ax: Axes, y: float, cells: Sequence[str], colour: str) -> None:
    for x, text in zip((NAME, DIFFERS, EPOCHS, KEPT, VAL, TEST), cells, strict=True):
        side = "left" if x in (NAME, DIFFERS) else "right"
        ax.text(x, y, text, ha=side, va="center", color=colour, fontsize=8.5)


def _per_cent(fraction: float | None) -> str:
    return NONE if fraction is None else style.percent(fraction, 2)
