"""cnnzoo pack."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cnn_core.cli.output import say_path
from cnn_core.cli.params import DATASET, PATH
from cnn_core.errors import UsageError
from cnn_core.text import printable

__all__ = ["command"]


@click.command("pack")
@click.argument("data", type=DATASET)
@click.option("--side", type=click.IntRange(1, 10_000), help="Shorter side of the images.")
@click.option("--size", type=click.IntRange(1, 10_000), help="Both sides: images are squashed.")
@click.option(
    "--interpolation",
    type=click.Choice(("bilinear", "bicubic")),
    default="bilinear",
    show_default=True,
    help="How --side resizes.",
)
@click.option("--data-dir", type=PATH, help="Directory that contains the dataset.")
@click.option("--download", is_flag=True, help="Download the dataset if it is missing.")
def command(
    data: str,
    side: int | None,
    size: int | None,
    interpolation: str,
    data_dir: Path | None,
    download: bool,
) -> None:
    """Decode every image of a dataset once, into a file that training maps into memory.

    Training with `--pipeline packed` finds it, or packs at its start. The images are those that
    evaluation sees before it takes their centre (--side), or their whole (--size). The pack is in
    the cache, $CNNZOO_CACHE. A killed command continues where it stopped; if files change, they
    are packed again. Files that cannot be read are listed; training says how many may be skipped.

    \b
    Examples:
      cnnzoo pack imagefolder:flowers --side 256
      cnnzoo pack imagefolder:flowers --size 224
    """
    if (side is None) == (size is None):
        raise UsageError("the size of the images is not given", "--side 256, or --size 224")
    if size is not None and interpolation != "bilinear":
        raise UsageError(f"--interpolation {interpolation} applies to --side")
    import torch

    from cnn_core.data import load_dataset
    from cnn_core.data.packing import pack, pack_folder
    from cnn_core.data.preprocessing import Preprocessing
    from cnn_core.data.progress_bar import progress_bar

    dataset = load_dataset(data, data_dir=data_dir, download=download)
    length = side or size or 0
    preprocessing = Preprocessing(
        size=(length, length),
        image_size=dataset.spec.image[1:],
        fit="crop" if side else "resize",
        resize=side or 0,
        interpolation=interpolation,
        mean=(),
        std=(),
    )
    with progress_bar("packing", sys.stderr.isatty()) as progress:
        _, errors = pack(dataset, preprocessing, torch.get_num_threads(), progress)
    for error in errors:
        click.echo(printable(f"not packed: {error}"), err=True)
    fit = f"fit=crop --set resize={side}" if side else f"fit=resize --set image_size={size}"
    if interpolation == "bicubic":
        fit += " --set interpolation=bicubic"
    click.echo(
        printable(f"cnnzoo train MODEL --data {data} --pipeline packed --set {fit}"), err=True
    )
    say_path(pack_folder(dataset, preprocessing))
