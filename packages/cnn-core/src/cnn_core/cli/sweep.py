"""cnnzoo sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cnn_core.cli.output import emit_json, heading, json_option, table
from cnn_core.cli.params import Choice
from cnn_core.cli.train import experiment_options, recipe_keys
from cnn_core.errors import UsageError
from cnn_core.runs.ranges import parse_range
from cnn_core.runs.recipe import parse_choices

if TYPE_CHECKING:
    from cnn_core.training.experiments import Cell, Sweep

__all__ = ["command"]


@click.command("sweep")
@experiment_options
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs per combination."
)
@click.option(
    "--random",
    "count",
    metavar="N",
    type=click.IntRange(1),
    help="Train only N random combinations of the values.",
)
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(1),
    help="Train N combinations that are drawn from ranges, KEY=LOW..HIGH or KEY=LOW..HIGH:log, "
    "and values.",
)
@click.option(
    "--search",
    type=Choice(["random", "tpe"]),
    help="How to draw them: at random, or by optuna's TPE, which learns from the runs before.  "
    "[default: random]",
)
@click.option(
    "--test", is_flag=True, help="Evaluate the chosen runs on the test split at the end."
)
@json_option
def command(
    model: str,
    data: str,
    settings: tuple[str, ...],
    seeds: int,
    count: int | None,
    samples: int | None,
    search: str | None,
    test: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train MODEL with all combinations of the values in --set KEY=VALUE,VALUE.

    The combination with the best mean validation score is chosen. The test split is used only with
    --test, to evaluate the chosen runs. The runs are in --out, by default
    runs/MODEL-DATASET-sweep. Repeat the command to continue after an interruption. Runs that
    diverge are left out.

    With --samples, combinations are drawn from ranges, KEY=LOW..HIGH, evenly or, with :log after
    the range, evenly in the logarithm. --seed chooses which; more samples begin with the same
    ones. --search tpe needs pip install "cnn-core[tune]" and keeps its study in --out.

    \b
    Examples:
      cnnzoo sweep lenet5_modern --data digits --set lr=0.01,0.1 --seeds 3
      cnnzoo sweep unet_same --data maskfolder:cells --set loss=dice,focal --seeds 3 --test
      cnnzoo sweep resnet18 --data pets --set lr=0.001,0.01,0.1 --set mixup=0,0.2 --random 4
      cnnzoo sweep lenet5_modern --data digits --set lr=0.0001..0.1:log --samples 20
      cnnzoo sweep lenet5_modern --data digits --set lr=0.0001..0.1:log --samples 20 --search tpe
    """
    choices = _grid(settings)
    keys = recipe_keys((), options)
    if both := choices.keys() & keys.keys():
        raise UsageError(f"{min(both)} is set twice: by --set and by an option")

    from cnn_core.training.experiments import sweep

    how: Any = {"random_cells": count or 0, "samples": samples or 0, "search": search or ""}
    found = sweep(model, data, choices, seeds=seeds, **how, **keys)
    location = {name: keys[name] for name in ("data_dir", "device")}
    tested = found.test(**location) if test else {}
    summaries = {name: vars(summary) for name, summary in tested.items()}
    if as_json:
        chosen = found.cells.index(found.chosen)
        cells = list(map(_facts, found.cells))
        emit_json(
            "cells", cells, path=found.path, score=found.score, chosen=chosen, test=summaries
        )
        return
    _print(found)
    if tested:
        click.echo()
        heading("The chosen runs on the test split")
        table(
            ("metric", "mean ± std"),
            [(n, str(s)) for n, s in tested.items()],
            right=("mean ± std",),
        )


def _grid(settings: tuple[str, ...]) -> dict[str, Any]:
    """Return the values or the range of each key."""
    found: dict[str, Any] = dict(parse_range(text) or parse_choices(text) for text in settings)
    if len(found) < len(settings):
        raise UsageError("a key is set twice", "--set KEY=VALUE,VALUE")
    return found


def _facts(cell: Cell) -> dict[str, Any]:
    return {
        "settings": cell.settings,
        "runs": [run.path for run in cell.runs],
        "diverged": cell.diverged,
        "metrics": {name: vars(summary) for name, summary in cell.metrics.items()},
    }


def _print(found: Sweep) -> None:
    varied = [key for key in found.cells[0].settings if _values(found, key) > 1]
    rows = []
    for cell in found.cells:
        remark = "chosen" if cell is found.chosen else ""
        if cell.diverged:
            remark = f"{len(cell.diverged)} diverged"
        score = str(cell.metrics[found.score]) if cell.runs else ""
        rows.append((*(str(cell.settings[key]) for key in varied), score, len(cell.runs), remark))
    heading(f"{found.score}, mean ± std over seeds, of the runs in {found.path}")
    columns = (*varied, found.score, "runs", "")
    table(columns, rows, right=(found.score, "runs"))


def _values(found: Sweep, key: str) -> int:
    """Return the number of different values of a key."""
    return len({str(cell.settings[key]) for cell in found.cells})
