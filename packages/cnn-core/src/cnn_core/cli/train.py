"""cnnzoo train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cnn_core.cli.output import say_path
from cnn_core.cli.params import (
    DATASET,
    MODEL,
    RECIPE,
    Choice,
    data_dir_option,
    device_option,
)
from cnn_core.errors import UsageError

__all__ = ["command"]


@click.command("train")
@click.argument("model", type=MODEL, required=False)
@click.option("--data", type=DATASET, help="The dataset.")
@click.option("--recipe", type=RECIPE, help="A recipe's name, or a TOML file.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a recipe key.")
@click.option("--epochs", type=int, help="Set the recipe key epochs.")
@click.option("--batch-size", type=int, help="Set the recipe key batch_size.")
@click.option("--lr", type=float, help="Set the recipe key lr.")
@click.option("--seed", type=int, help="Set the recipe key seed.")
@click.option("--top-k", "topk", type=int, help="Set the recipe key topk.")
@click.option("--precision", type=Choice(("auto", "fp32", "bf16", "fp16")), help="Set precision.")
@click.option(
    "--memory-format",
    type=Choice(("auto", "contiguous", "channels_last")),
    help="Set how tensors of images lie in memory.",
)
@click.option("--compile", is_flag=True, default=None, help="Compile the network first.")
@click.option("--weights", metavar="RUN|FILE", help="Begin with these weights.")
@click.option("--freeze", metavar="STAGE", multiple=True, help="Leave a stage as it is. Repeat.")
@click.option(
    "--pipeline", type=Choice(("auto", "memory", "streaming")), help="Where files are decoded to."
)
@click.option("--on-bad-sample", metavar="fail|skip:N", help="What to do with broken files.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes that decode.",
)
@click.option(
    "--fit-memory", is_flag=True, help="Compute batches in as many pieces as memory needs."
)
@click.option("--tensorboard", is_flag=True, help="Also log to RUN/tensorboard.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run.")
@click.option("--auto-resume", is_flag=True, help="Go on with the run in --out, if there is one.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The run directory.")
@data_dir_option
@click.option("--download", is_flag=True, help="Fetch the dataset if it is not there.")
@device_option
def command(
    model: str | None,
    data: str | None,
    recipe: str | None,
    settings: tuple[str, ...],
    resume: Path | None,
    out: Path | None,
    data_dir: Path | None,
    download: bool,
    device: str,
    workers: int,
    auto_resume: bool,
    fit_memory: bool,
    tensorboard: bool,
    **keys: Any,
) -> None:
    """Train MODEL on a dataset, or go on with a run.

    Without --recipe the pair's default recipe is used. A run that is resumed needs nothing
    else. Ctrl-C and SIGTERM save after the step; a second one ends at once. Prints the run
    directory on stdout; progress goes to stderr. Several processes: torchrun -m cnnzoo train …

    \b
    Examples:
      cnnzoo train lenet5_modern --data digits
      cnnzoo train lenet5 --data fashion_mnist --download --epochs 3 --set lr=0.02
      cnnzoo train resnet50 --data pets --weights resnet50.pth --freeze conv1 --freeze conv2_x
      cnnzoo train --resume runs/lenet5-digits-20260101-120000
    """
    from cnn_core.runs.recipe import parse_settings

    chosen = parse_settings(settings)
    model, data = chosen.pop("model", model), chosen.pop("data", data)
    chosen |= {key: value for key, value in keys.items() if value not in (None, ())}
    if resume is not None and (model or data or recipe or chosen or out):
        raise UsageError(
            "--resume goes with --device and --data-dir only: the run has all the rest",
            f"cnnzoo train --resume {resume}",
        )
    if resume is None and model is None and recipe is None:
        raise UsageError("no model is given", "cnnzoo train MODEL --data DATASET")

    from cnn_core.training.trainer import train

    watching = []
    if tensorboard:
        from cnn_core.training.tensorboard import TensorBoard

        watching.append(TensorBoard())
    run = train(
        model,
        data,
        recipe=recipe,
        resume=resume,
        out=out,
        data_dir=data_dir,
        download=download,
        device=device,
        workers=workers,
        auto_resume=auto_resume,
        fit_memory=fit_memory,
        observers=watching,
        **chosen,
    )
    if os.environ.get("RANK", "0") == "0":
        report(run)


def report(run: Any) -> None:
    """Say what was reached on stderr, and where it is on stdout."""
    from cnn_core.training.progress import format_metrics

    click.echo(f"test: {format_metrics(run.test_metrics())}", err=True)
    say_path(run.path)
