"""cnnzoo features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from cnn_core.cli.output import say_path
from cnn_core.cli.params import (
    SOURCE,
    PathType,
    data_dir_option,
    device_option,
    source_options,
)
from cnn_core.errors import CorruptError, ZooError
from cnn_core.text import counted, printable

__all__ = ["command", "left_out", "stage_option"]

stage_option: Callable[[Any], Any] = click.option(
    "--stage",
    metavar="NAME",
    help="Take the outputs of this module. [default: the inputs of the last stage]",
)


@contextlib.contextmanager
def left_out() -> Iterator[Callable[[ZooError], None]]:
    """Yield a function that names an unreadable file on stderr; on exit, raise if there was one.

    Raises:
        CorruptError: files were left out.
    """
    errors: list[ZooError] = []

    def on_error(error: ZooError) -> None:
        errors.append(error)
        click.echo(f"warning: {printable(error.message)}", err=True)

    yield on_error
    if errors:
        raise CorruptError(f"{counted(len(errors), 'unreadable file')} left out")


@click.command("features")
@click.argument("source", type=SOURCE)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES|DATASET...")
@click.option(
    "--out",
    required=True,
    type=PathType(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The .npz file to write.",
)
@stage_option
@click.option("--split", help="Only this split of the dataset. [default: all splits]")
@data_dir_option
@source_options
@device_option
def command(
    source: str,
    images: tuple[str, ...],
    out: Path,
    stage: str | None,
    split: str | None,
    data_dir: Path | None,
    model: str,
    naming: str | None,
    download: bool,
    device: str,
) -> None:
    """Write the features that a trained network computes of images to a .npz file.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file
    (with --model). After it, give image files and directories, or one dataset, such as cifar10 or
    imagefolder:PATH; write ./cifar10 for a directory with the name of a dataset. Feature maps
    are averaged over their positions. Unreadable files are listed and skipped, and the
    exit code is then 3.

    The file has the arrays features (float32, N x D), targets, indices, splits, paths, classes,
    stage, side (inputs or outputs of the stage), source and weights_sha256. Read it with
    numpy.load(FILE, allow_pickle=False).

    \b
    Examples:
      cnnzoo features resnet50 holiday/ --out holiday.npz
      cnnzoo features resnet50:imagenet-v2 imagefolder:flowers --out flowers.npz
      cnnzoo features runs/lenet5-digits-20260101-120000 digits --stage c3 --out c3.npz
    """
    from cnn_core.data.progress_bar import progress_bar
    from cnn_core.training.feature_extraction import Extraction
    from cnn_core.training.trained import Trained

    trained = Trained(source, model=model, naming=naming, download=download, device=device)
    extraction = Extraction(trained, stage)
    parts = extraction.parts(images[0] if len(images) == 1 else images, split, data_dir)
    with left_out() as on_error:
        with progress_bar("computing features", True) as progress:
            extraction.write(out, parts, on_error, progress)
        say_path(out)
