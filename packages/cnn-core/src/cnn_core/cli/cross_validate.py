"""cnnzoo cross-validate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cnn_core.cli.output import emit_json, heading, json_option, table
from cnn_core.cli.train import experiment_options, recipe_keys

if TYPE_CHECKING:
    from cnn_core.training.experiments import CrossValidation

__all__ = ["command"]


@click.command("cross-validate")
@experiment_options
@click.option(
    "--folds", type=click.IntRange(2), default=5, show_default=True, help="Number of folds."
)
@json_option
def command(
    model: str, data: str, settings: tuple[str, ...], folds: int, as_json: bool, **options: Any
) -> None:
    """Train MODEL once for each fold of the training images, and validate on that fold.

    Each fold has its share of every class. If there is a split val, it is divided together with
    train. The test split is not used. The runs are in --out, by default
    runs/MODEL-DATASET-5folds. Repeat the command to continue after an interruption. Metrics are
    those of the best epoch. The same images chose this epoch, so use the metrics to compare
    settings, and measure the final network on the test split.

    \b
    Examples:
      cnnzoo cross-validate lenet5_modern --data digits --epochs 5
      cnnzoo cross-validate resnet18 --data imagefolder:flowers --weights default --folds 10
    """
    keys = recipe_keys(settings, options)

    from cnn_core.training.experiments import cross_validate

    found = cross_validate(model, data, folds=folds, **keys)
    if as_json:
        emit_json("folds", list(map(_facts, found.runs)), path=found.path, **_summaries(found))
    else:
        _print(found)


def _facts(run: Any) -> dict[str, Any]:
    metrics = dict(run.final_metrics())
    return {
        "path": run.path,
        "images": run.environment()["validation"]["images"],
        "best_epoch": metrics.pop("epoch"),
        "metrics": metrics,
    }


def _summaries(found: CrossValidation) -> dict[str, Any]:
    return {"metrics": {name: vars(summary) for name, summary in found.metrics.items()}}


def _print(found: CrossValidation) -> None:
    facts, names = list(map(_facts, found.runs)), [run.path.name for run in found.runs]
    heading(f"{len(names)} folds in {found.path}")
    rows = [
        ("images", "", *(each["images"] for each in facts)),
        ("best epoch", "", *(each["best_epoch"] for each in facts)),
    ]
    for name, summary in found.metrics.items():
        each = (fact["metrics"].get(name) for fact in facts)
        rows.append((name, str(summary), *("" if v is None else f"{v:.4f}" for v in each)))
    columns = ("", "mean ± std", *names)
    table(columns, rows, right=columns[1:])
