"""cnnzoo compare."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, heading, json_option, table
from cnn_core.errors import UsageError
from cnn_core.text import printable

if TYPE_CHECKING:
    from cnn_core.runs.run import Run

__all__ = ["command", "differences", "open_runs"]

NONE = "\N{EN DASH}"
MACHINE = (  # keys of environment.json about the machine
    "device_name",
    "device",
    "cores",
    "threads",
    "processes",
    "platform",
    "python",
    "torch",
)


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw curves: PNG, SVG or PDF."
)
@json_option
@click.pass_context
def command(ctx: click.Context, runs: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Compare runs side by side: the recipe keys in which they differ, and their results.

    Scores are fractions; the validation score is that of the epoch whose weights were kept.
    Of the machines only the differences are shown.

    \b
    Examples:
      cnnzoo compare runs/lenet5-digits-20260101-120000 runs/lenet5-digits-20260101-123000
      cnnzoo compare runs/* --plot runs.png
    """
    # First of all: without cnn-viz, which offers it, --plot should fail before any work.
    drawing = None if plot is None else registry.resolve(registry.commands().entry("overlay"))
    named = open_runs(runs)
    if drawing is not None:
        # The drawing command prints its file's path, which has no place in the JSON on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            ctx.invoke(drawing, runs=runs, out=plot)
    recipes, reached = differences(list(named.values())), list(map(_reached, named.values()))
    machines = _machines(list(named.values()))
    if as_json:
        facts = zip(named.items(), reached, machines, strict=True)
        content = [
            {
                "name": name,
                "path": run.path,
                "recipe": dataclasses.asdict(run.recipe),
                **dataclasses.asdict(result),
                "machine": machine,
            }
            for (name, run), result, machine in facts
        ]
        emit_json("runs", content, differ=list(recipes))
    else:
        _print(named, recipes, reached, machines)


def open_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """Open runs; return them by the shortest ending of their path that is unique.

    Raises:
        UsageError: fewer than two runs, the same run twice, or a path without a run.
    """
    from cnn_core.runs.run import Run

    if len(paths) < 2:
        raise UsageError("only one run is given", "give two runs or more")
    # Resolved, to find a run that is given again through a link; names keep the links.
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UsageError(f"{paths[number]}: given twice")
    # Not `open_run`: comparing needs neither the models nor the plugins of the runs.
    runs = [Run.open(path) for path in paths]
    names = _names([Path(os.path.abspath(path)).parts for path in paths])
    return dict(zip(names, runs, strict=True))


def _names(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the last parts of each path, as many as it takes to tell all apart."""
    for length in range(1, max(map(len, parts))):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(Path(*each)) for each in parts]


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Return the recipe keys in which runs differ, with each run's value or None.

    Values are in the form of `--set`; keys in tables are like "options.width".
    """
    flat = [_flat(dataclasses.asdict(run.recipe)) for run in runs]
    keys = {key: None for recipe in flat for key in recipe}  # in the recipe's order
    found = {key: [recipe.get(key) for recipe in flat] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _toml(value)
    return flat


def _toml(value: Any) -> str:
    """Return a value as TOML, text without quotes unless it is empty."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return '""' if value == "" else str(value)


@dataclasses.dataclass(frozen=True)
class Reached:
    """The results of a run: `validation` is its score at the kept epoch, named by `score`."""

    epochs: int
    kept_epoch: int
    score: str
    validation: float | None
    test: Mapping[str, float]
    seconds: float
    finished: bool


def _reached(run: Run) -> Reached:
    from cnn_core.training.selection import best_epoch, monitored_metric

    history, test = run.history(), run.test_metrics()
    score, kept = monitored_metric(run), best_epoch(run)
    measured = {int(line["epoch"]): line[score] for line in history if score in line}
    return Reached(
        epochs=len(history),
        kept_epoch=kept,
        score=score,
        validation=measured.get(kept),
        test=test,
        seconds=round(sum(line.get("seconds", 0.0) for line in history), 3),
        finished=bool(test),
    )


def _machines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return, for each run, the entries of environment.json in which the runs differ.

    Compared are the machines and, if all runs have the same dataset, its fingerprint.
    """
    found = [run.environment() for run in runs]
    asked = [
        *MACHINE,
        *(["data_fingerprint"] if len({run.recipe.data for run in runs}) == 1 else []),
    ]
    differ = [key for key in asked if any(each.get(key) != found[0].get(key) for each in found)]
    return [{key: each.get(key) for key in differ} for each in found]


def _print(
    named: Mapping[str, Run],
    recipes: Mapping[str, Sequence[str | None]],
    reached: Sequence[Reached],
    machines: Sequence[Mapping[str, Any]],
) -> None:
    """Print two tables with a column for each run."""
    names = list(map(printable, named))
    if recipes:
        heading("Differences of the recipes")
        rows = [(key, *(NONE if v is None else v for v in row)) for key, row in recipes.items()]
        table(("key", *names), rows, right=names)
    else:
        heading("The recipes are the same")
    click.echo()
    heading("Results")
    wanted = [run.recipe.epochs for run in named.values()]
    rows = [*_results(reached, wanted), *_surroundings(machines)]
    table(("", *names), rows, right=names)


def _results(reached: Sequence[Reached], wanted: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the rows of the results; `wanted` are the epochs of the recipes."""
    done = [each.epochs for each in reached]
    rows = [
        (
            "epochs",
            *(f"{a} of {b}" if a < b else str(a) for a, b in zip(done, wanted, strict=True)),
        ),
        ("kept epoch", *(str(each.kept_epoch or NONE) for each in reached)),
    ]
    for score in dict.fromkeys(each.score for each in reached if each.score):
        own = [each.validation if each.score == score else None for each in reached]
        rows.append((score, *map(_number, own)))
    for metric in {metric: None for each in reached for metric in each.test}:
        rows.append((metric, *(_number(each.test.get(metric)) for each in reached)))
    return [*rows, ("seconds", *(f"{each.seconds:,.1f}" for each in reached))]


def _surroundings(machines: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (key, *(NONE if each[key] is None else str(each[key]) for each in machines))
        for key in machines[0]
    ]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"
