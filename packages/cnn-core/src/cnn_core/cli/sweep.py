"""cnnzoo sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cnn_core.cli.output import emit_json, heading, json_option, table
from cnn_core.cli.train import experiment_options, recipe_keys
from cnn_core.errors import UsageError
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
    help="Train only N random combinations.",
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
    test: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train MODEL with all combinations of the values in --set KEY=VALUE,VALUE.

    The combination with the best mean validation score is chosen. The test split is used only with
    --test, to evaluate the chosen runs. The runs are in --out, by default
    runs/MODEL-DATASET-sweep. Repeat the command to continue after an interruption. Runs that
    diverge are left out.

    \b
    Examples:
      cnnzoo sweep lenet5_modern --data digits --set lr=0.01,0.1 --seeds 3
      cnnzoo sweep unet_same --data maskfolder:cells --set loss=dice,focal --seeds 3 --test
      cnnzoo sweep resnet18 --data pets --set lr=0.001,0.01,0.1 --set mixup=0,0.2 --random 4
    """
    choices = dict(map(parse_choices, settings))
    if len(choices) < len(settings):
        raise UsageError("a key is set twice", "--set KEY=VALUE,VALUE")
    keys = recipe_keys((), options)
    if both := choices.keys() & keys.keys():
        raise UsageError(f"{min(both)} is set twice: by --set and by an option")

    from cnn_core.training.experiments import sweep

    found = sweep(model, data, choices, seeds=seeds, random_cells=count or 0, **keys)
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
