"""cnnzoo finetune."""

from __future__ import annotations

from typing import Any

import click

from cnn_core.cli.params import DATASET, MODEL, SOURCE
from cnn_core.cli.train import observers_for, recipe_keys, report, training_options
from cnn_core.errors import UsageError

__all__ = ["command"]


@click.command("finetune")
@click.argument("source", type=SOURCE)
@click.option("--data", type=DATASET, required=True, help="Dataset to train on.")
@click.option(
    "--model",
    type=MODEL,
    default="",
    help="The network of a weights file of another library: MODEL, or MODEL:NAME of the published "
    "weights with the same classes and preprocessing.",
)
@training_options
def command(
    source: str,
    data: str,
    model: str,
    settings: tuple[str, ...],
    tensorboard: bool,
    **options: Any,
) -> None:
    """Fine-tune trained weights on a dataset.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file.
    The network gets a new head, unless the classes are the same. The first epoch trains only the
    head; then everything is trained, at a rate that falls from stage to stage towards the input.
    Images are preprocessed as the weights need it; colour images are randomly cropped and
    mirrored. Every default can be changed with --set, or replaced with --recipe. Continue an
    interrupted run with cnnzoo train --resume RUN.

    \b
    Examples:
      cnnzoo finetune resnet50 --data imagefolder:flowers --download
      cnnzoo finetune resnet50:imagenet-v1 --data imagefolder:flowers --epochs 20 --freeze conv1
      cnnzoo finetune runs/lenet5-digits-20260101-120000 --data mnist --set layer_decay=0.5
      cnnzoo finetune mine.pth --model resnet50:imagenet-v2 --data imagefolder:flowers
    """
    keys = recipe_keys(settings, options)
    for key in {"model", "data", "weights"} & keys.keys():
        raise UsageError(
            f"--set {key}: SOURCE and --data determine the {key}",
            "cnnzoo finetune SOURCE --data DATASET",
        )

    from cnn_core.training.finetuning import finetune

    observers = observers_for(tensorboard)
    report(finetune(source, data, model=model, observers=observers, **keys))
