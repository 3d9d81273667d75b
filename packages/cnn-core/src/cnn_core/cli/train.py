"""cnnzoo train, and the options that it shares with finetune."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from cnn_core.cli.output import say_path
from cnn_core.cli.params import (
    DATASET,
    MODEL,
    PATH,
    RECIPE,
    Choice,
    data_dir_option,
    device_option,
)
from cnn_core.errors import UsageError

__all__ = [
    "ARGUMENTS",
    "command",
    "experiment_options",
    "observers_for",
    "recipe_keys",
    "report",
    "training_options",
]

ARGUMENTS = (  # options that are arguments of `train`, not recipe keys
    "recipe",
    "resume",
    "out",
    "data_dir",
    "download",
    "device",
    "workers",
    "auto_resume",
    "fit_memory",
)


OPTIONS = (
    click.option("--recipe", type=RECIPE, help="Name of a recipe, or a TOML file."),
    click.option(
        "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a recipe key."
    ),
    click.option("--epochs", type=int, help="Set the recipe key epochs."),
    click.option("--batch-size", type=int, help="Set the recipe key batch_size."),
    click.option("--lr", type=float, help="Set the recipe key lr."),
    click.option("--seed", type=int, help="Set the recipe key seed."),
    click.option("--top-k", "topk", type=int, help="Set the recipe key topk."),
    click.option(
        "--precision",
        type=Choice(("auto", "fp32", "bf16", "fp16")),
        help="Set the recipe key precision.",
    ),
    click.option(
        "--memory-format",
        type=Choice(("auto", "contiguous", "channels_last")),
        help="Set the recipe key memory_format.",
    ),
    click.option(
        "--naming",
        help="The library whose parameter names the weights file has; NAMING@PREFIX also says "
        "which of several state dicts to take.",
    ),
    # None if not given: False would override compile = true in a recipe.
    click.option(
        "--compile", is_flag=True, default=None, help="Compile the network with torch.compile."
    ),
    click.option(
        "--freeze",
        metavar="STAGE",
        multiple=True,
        help="Do not train this stage. May be repeated.",
    ),
    click.option(
        "--pipeline",
        type=Choice(("auto", "memory", "streaming", "packed")),
        help="Decode into memory, stream from disk, or decode once into a file (see cnnzoo pack).",
    ),
    click.option(
        "--on-bad-sample", metavar="fail|skip:N", help="Fail on a broken file, or skip up to N."
    ),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Number of decoding processes.",
    ),
    click.option(
        "--fit-memory", is_flag=True, help="Split batches into micro-batches that fit in memory."
    ),
    data_dir_option,
    click.option(
        "--download",
        is_flag=True,
        help="Download the dataset and the published weights if they are missing.",
    ),
    device_option,
)
OPTIONS_OF_ONE_RUN = (
    click.option("--tensorboard", is_flag=True, help="Also log to RUN/tensorboard."),
    click.option("--auto-resume", is_flag=True, help="Resume the run in --out if it exists."),
    click.option("--out", type=PATH, metavar="DIR", help="The run directory."),
)


def training_options(command: Any) -> Any:
    """Add the options of both `train` and `finetune`."""
    return _with_options((*OPTIONS, *OPTIONS_OF_ONE_RUN), command)


def experiment_options(command: Any) -> Any:
    """Add the options of commands that train several runs."""
    options = (
        click.argument("model", type=MODEL),
        click.option("--data", type=DATASET, required=True, help="Dataset to train on."),
        click.option("--weights", metavar="FILE|NAME", help="Start from these weights."),
        *OPTIONS,
        click.option("--out", type=PATH, metavar="DIR", help="Folder of the runs."),
    )
    return _with_options(options, command)


def _with_options(options: Sequence[Any], command: Any) -> Any:
    return functools.reduce(
        lambda decorated, option: option(decorated), reversed(options), command
    )


@click.command("train")
@click.argument("model", type=MODEL, required=False)
@click.option("--data", type=DATASET, help="Dataset to train on.")
@click.option(
    "--weights",
    metavar="RUN|FILE|NAME",
    help="Start from these weights: a run, a weights file, hf:OWNER/NAME, or published weights by "
    "name, such as default.",
)
@click.option(
    "--weights-like",
    metavar="NAME",
    help="Published weights of MODEL that have the preprocessing and classes of the file in "
    "--weights.",
)
@training_options
@click.option("--resume", type=PATH, metavar="RUN", help="Resume this run.")
def command(
    model: str | None,
    data: str | None,
    settings: tuple[str, ...],
    tensorboard: bool,
    **options: Any,
) -> None:
    """Train MODEL on a dataset, or resume a run.

    Without --recipe, the default recipe for the model and dataset is used. --resume takes the
    recipe of the run. With --epochs it trains longer, if the schedule allows a larger number.
    Ctrl-C or SIGTERM stops the run after the current step and saves a checkpoint; a second one
    stops it at once. Prints the run directory on stdout; progress goes to stderr. For several
    processes: torchrun -m cnnzoo train …

    \b
    Examples:
      cnnzoo train lenet5_modern --data digits
      cnnzoo train lenet5 --data fashion_mnist --download --epochs 3 --set lr=0.02
      cnnzoo train resnet50 --data pets --weights default --freeze conv1 --freeze conv2_x
      cnnzoo train --resume runs/lenet5-digits-20260101-120000
      cnnzoo train --resume runs/lenet5-digits-20260101-120000 --epochs 30
    """
    chosen = recipe_keys(settings, options)
    model, data = chosen.pop("model", model), chosen.pop("data", data)
    arguments = {name: chosen.pop(name) for name in ARGUMENTS if name in chosen}
    # Before the import of torch below, so that an invalid command fails at once.
    _check(model, data, chosen, arguments)

    from cnn_core.training.trainer import train

    report(train(model, data, observers=observers_for(tensorboard), **arguments, **chosen))


def recipe_keys(settings: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe keys of --set and of the given options, and the other arguments."""
    from cnn_core.runs.recipe import parse_settings

    # Options that were not given are None or empty; they must not override the recipe.
    given = {
        key: value for key, value in options.items() if key in ARGUMENTS or value not in (None, ())
    }
    return {**parse_settings(settings), **given}


def observers_for(tensorboard: bool) -> list[Any]:
    """Return the observers that the options ask for."""
    if not tensorboard:
        return []
    from cnn_core.training.tensorboard import TensorBoard

    return [TensorBoard()]


def _check(
    model: str | None, data: str | None, keys: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Raise UsageError if --resume has conflicting options, or a new run has no model."""
    resume, recipe = arguments["resume"], arguments["recipe"]
    if resume is not None and (
        model or data or recipe or keys.keys() - {"epochs"} or arguments["out"]
    ):
        raise UsageError(
            "--resume cannot be combined with a model, a dataset, a recipe, --out, or recipe keys "
            "other than epochs",
            f"cnnzoo train --resume {resume}",
        )
    if resume is None and model is None and recipe is None:
        raise UsageError("no model is given", "cnnzoo train MODEL --data DATASET")


def report(run: Any) -> None:
    """Print the final metrics on stderr, and the run's path on stdout; rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return
    from cnn_core.training.progress import format_metrics

    metrics = {key: value for key, value in run.final_metrics().items() if key != "epoch"}
    click.echo(f"{run.recipe.evaluate_on}: {format_metrics(metrics)}", err=True)
    say_path(run.path)
