"""cnnzoo batch-find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cnn_core.cli.find import finder
from cnn_core.cli.output import emit_json, json_option
from cnn_core.text import counted

if TYPE_CHECKING:
    from cnn_core.training.setup import Setup

__all__ = ["command"]


@click.command("batch-find")
@finder
@json_option
def command(setup: Setup, as_json: bool) -> None:
    """Find the largest micro-batch that fits in memory, by running whole training steps.

    The recipe's batch size does not change: each batch is split into micro-batches, and their
    gradients are accumulated. `cnnzoo train --fit-memory` does the same before training.

    \b
    Examples:
      cnnzoo batch-find lenet5_modern --data digits
      cnnzoo batch-find resnet50 --data imagefolder:flowers --set batch_size=256
    """
    from cnn_core.training.finders import fitting_micro_batches

    tried = []

    def on_trial(size: int, fits: bool) -> None:
        tried.append({"images": size, "fits": fits})
        one, many = ("fits", "fit") if fits else ("does not fit", "do not fit")
        click.echo(counted(size, f"image: {one}", f"images: {many}"), err=True)

    micro_batches = fitting_micro_batches(setup, on_trial)
    if as_json:
        emit_json("tried", tried, accumulate=micro_batches, batch_size=setup.recipe.batch_size)
        return
    click.echo(f"--set batch_size={setup.recipe.batch_size} --set accumulate={micro_batches}")
