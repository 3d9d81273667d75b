"""cnnzoo compare."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, heading, json_option, table
from cnn_core.cli.params import PATH
from cnn_core.errors import UsageError
from cnn_core.text import printable

if TYPE_CHECKING:
    from cnn_core.runs.run import Run

__all__ = ["command", "differences", "open_runs"]

MISSING = "\N{EN DASH}"
MACHINE = (  # the keys of environment.json that describe the machine
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
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="Write a plot of the curves: PNG, SVG or PDF.",
)
@click.option(
    "--group", is_flag=True, help="Group runs that differ in seed or fold only: mean and std."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context, runs: tuple[Path, ...], plot: Path | None, group: bool, as_json: bool
) -> None:
    """Compare runs side by side: the recipe keys in which they differ, and their results.

    Metrics other than losses are fractions. The validation metric is the one at the best
    epoch. Properties of the machines are shown only if they differ. With --group, runs that
    differ only in seed, split_seed or fold have one column, with mean and standard deviation.

    \b
    Examples:
      cnnzoo compare runs/lenet5-digits-20260101-120000 runs/lenet5-digits-20260101-123000
      cnnzoo compare runs/* --plot runs.png
      cnnzoo compare runs/lenet5_modern-digits-sweep/* --group
    """
    # Resolve this first, so that --plot fails at once if cnn-viz is not installed.
    overlay = None if plot is None else registry.resolve(registry.commands().entry("overlay"))
    named = open_runs(runs)
    if overlay is not None:
        # The command prints a path, which must not mix with the JSON on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            ctx.invoke(overlay, runs=runs, out=plot)
    if group:
        _print_groups(_grouped(named), as_json)
        return
    recipes, results = differences(list(named.values())), list(map(_result_of, named.values()))
    machines = _machines(list(named.values()))
    for line in _parts(named):
        click.echo(printable(line), err=True)
    if as_json:
        facts = zip(named.items(), results, machines, strict=True)
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
        _print(named, recipes, results, machines)


def open_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """Open runs; return them by name: the last parts of their paths, as few as tell them apart.

    Raises:
        UsageError: there are fewer than two runs, one is given twice, or a path is not a run.
    """
    from cnn_core.runs.run import Run

    if len(paths) < 2:
        raise UsageError("only one run is given", "give two runs or more")
    # Resolve links to detect a run that is given twice; the displayed names keep the links.
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise UsageError(f"{paths[number]}: given twice")
    # Not `open_run`, which would require the plugins of the runs' models to be installed.
    runs = [Run.open(path) for path in paths]
    names = _names([Path(os.path.abspath(path)).parts for path in paths])
    return dict(zip(names, runs, strict=True))


def _names(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the last parts of each path, as few as make all names different."""
    for length in range(1, max(map(len, parts))):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(Path(*each)) for each in parts]


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Return the recipe keys in which runs differ, each with the values of all runs.

    Values are formatted as for `--set`; None means that the key is missing. Keys in tables are
    written with dots, such as "options.width".
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
    """Return a value as TOML, but non-empty strings without quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return '""' if value == "" else str(value)


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of a run.

    `best_epoch` is the epoch of the saved weights, and `validation` the value of the metric
    `score` at this epoch.
    """

    epochs: int
    best_epoch: int
    score: str
    validation: float | None
    test: Mapping[str, float]
    seconds: float
    finished: bool


def _result_of(run: Run) -> Result:
    from cnn_core.training.selection import best_epoch, monitored_metric

    history, test = run.history(), run.test_metrics()
    score, kept = monitored_metric(run), best_epoch(run)
    by_epoch = {int(line["epoch"]): line[score] for line in history if score in line}
    return Result(
        epochs=len(history),
        best_epoch=kept,
        score=score,
        validation=by_epoch.get(kept),
        test=test,
        seconds=round(sum(line.get("seconds", 0.0) for line in history), 3),
        finished=run.finished,
    )


def _machines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the entries of each run's environment.json in which the runs differ.

    This compares the machines and, if all runs use the same dataset, its fingerprint.
    """
    found = [run.environment() for run in runs]
    compared = [
        *MACHINE,
        *(["data_fingerprint"] if len({run.recipe.data for run in runs}) == 1 else []),
    ]
    differ = [key for key in compared if any(each.get(key) != found[0].get(key) for each in found)]
    return [{key: each.get(key) for key in differ} for each in found]


def _parts(named: Mapping[str, Run]) -> Iterator[str]:
    """Yield a line for each dataset whose runs were validated on different images."""
    recorded = [run.environment().get("validation", {}).get("digest") for run in named.values()]
    by_data: dict[str, dict[str, list[str]]] = {}
    for (name, run), digest in zip(named.items(), recorded, strict=True):
        # Older runs have no digest: compare the settings that chose their images.
        part = digest if all(recorded) else str(run.recipe.part())
        by_data.setdefault(run.recipe.data, {}).setdefault(part, []).append(name)
    for data, parts in by_data.items():
        if len(parts) > 1:
            groups = " | ".join(", ".join(names) for names in parts.values())
            yield f"validated on different images of {data}, so val/… does not compare: {groups}"


def _print(
    named: Mapping[str, Run],
    recipes: Mapping[str, Sequence[str | None]],
    results: Sequence[Result],
    machines: Sequence[Mapping[str, Any]],
) -> None:
    """Print two tables, recipes and results, with a column for each run."""
    names = list(map(printable, named))
    _print_differences(recipes, names)
    planned = [run.recipe.epochs for run in named.values()]
    rows = [*_result_rows(results, planned), *_machine_rows(machines)]
    table(("", *names), rows, right=names)


def _print_differences(recipes: Mapping[str, Sequence[str | None]], names: Sequence[str]) -> None:
    """Print the table of recipes, and the heading of the table of results."""
    if recipes:
        heading("Differences between the recipes")
        rows = [(key, *(MISSING if v is None else v for v in row)) for key, row in recipes.items()]
        table(("key", *names), rows, right=names)
    else:
        heading("The recipes are identical")
    click.echo()
    heading("Results")


def _grouped(named: Mapping[str, Run]) -> dict[str, list[Run]]:
    """Return the runs that differ only in seed or fold, by the name of the first of them."""
    names: dict[str, str] = {}  # of the first run, by its recipe without these keys
    groups: dict[str, list[Run]] = {}
    for name, run in named.items():
        first = names.setdefault(str(_without_seeds(run).recipe), name)
        groups.setdefault(first, []).append(run)
    return groups


def _without_seeds(run: Run) -> Run:
    # The number of folds stays: it determines how many images a run is trained on.
    fold = re.sub(r"^\d+", "1", run.recipe.fold)
    recipe = dataclasses.replace(run.recipe, seed=0, split_seed=0, fold=fold)
    return dataclasses.replace(run, recipe=recipe)


def _print_groups(groups: Mapping[str, Sequence[Run]], as_json: bool) -> None:
    """Print the differences between groups, and means and standard deviations in each."""
    from cnn_core.training.summary import summarised

    recipes = differences([_without_seeds(runs[0]) for runs in groups.values()])
    results = [summarised(map(_metrics_of, runs)) for runs in groups.values()]
    if as_json:
        content = [
            {
                "name": name,
                "runs": [run.path for run in runs],
                "recipe": dataclasses.asdict(_without_seeds(runs[0]).recipe),
                "metrics": {metric: vars(summary) for metric, summary in result.items()},
            }
            for (name, runs), result in zip(groups.items(), results, strict=True)
        ]
        emit_json("groups", content, differ=list(recipes))
        return
    names = list(map(printable, groups))
    _print_differences(recipes, names)
    rows = [("runs", *(str(len(runs)) for runs in groups.values()))]
    for metric in {metric: None for each in results for metric in each}:
        rows.append((metric, *(str(each.get(metric, MISSING)) for each in results)))
    table(("", *names), rows, right=names)


def _metrics_of(run: Run) -> dict[str, float]:
    """Return the validation score at the best epoch, and the metrics on the test split."""
    result = _result_of(run)
    own = {} if result.validation is None else {result.score: result.validation}
    return {**own, **result.test}


def _result_rows(results: Sequence[Result], planned: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the table rows of the results; `planned` are the epochs in the recipes."""
    done = [each.epochs for each in results]
    rows = [
        (
            "epochs",
            *(f"{a} of {b}" if a < b else str(a) for a, b in zip(done, planned, strict=True)),
        ),
        ("best epoch", *(str(each.best_epoch or MISSING) for each in results)),
    ]
    for score in dict.fromkeys(each.score for each in results if each.score):
        own = [each.validation if each.score == score else None for each in results]
        rows.append((score, *map(_number, own)))
    for metric in {metric: None for each in results for metric in each.test}:
        rows.append((metric, *(_number(each.test.get(metric)) for each in results)))
    return [*rows, ("seconds", *(f"{each.seconds:,.1f}" for each in results))]


def _machine_rows(machines: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (key, *(MISSING if each[key] is None else str(each[key]) for each in machines))
        for key in machines[0]
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
