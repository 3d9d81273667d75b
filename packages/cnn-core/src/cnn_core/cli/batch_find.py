"""cnnzoo batch-find."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option
from cnn_core.cli.params import DATASET, MODEL, RECIPE

__all__ = ["command"]


@click.command("batch-find")
@click.argument("model", type=MODEL)
@click.option("--data", type=DATASET, required=True, help="The dataset.")
@click.option("--recipe", type=RECIPE, help="A recipe's name, or a TOML file.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a recipe key.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@json_option
def command(
    model: str,
    data: str,
    recipe: str | None,
    settings: tuple[str, ...],
    data_dir: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Find how many images of a batch fit in memory at once, with whole training steps.

    The batch that the recipe wants is kept: it is computed in pieces whose gradients are added up.
    `cnnzoo train --fit-memory` does the same before it trains.

    \b
    Examples:
      cnnzoo batch-find lenet5_modern --data digits
      cnnzoo batch-find resnet50 --data imagefolder:flowers --set batch_size=256
    """
    from cnn_core.cli.find import prepared
    from cnn_core.training.finders import fitting_micro_batches

    setup, where = prepared(model, data, recipe, settings, data_dir, device)
    tried = []

    def told(size: int, fits: bool) -> None:
        tried.append({"images": size, "fits": fits})
        click.echo(f"{size} images: {'fit' if fits else 'do not fit'}", err=True)

    micro_batches = fitting_micro_batches(setup, where, told)
    if as_json:
        emit_json("tried", tried, accumulate=micro_batches, batch_size=setup.recipe.batch_size)
        return
    click.echo(f"--set batch_size={setup.recipe.batch_size} --set accumulate={micro_batches}")
