"""cnnzoo verify-data."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option
from cnn_core.cli.params import DATASET, PATH
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted, printable

__all__ = ["command"]


@click.command("verify-data")
@click.argument("data", type=DATASET)
@click.option("--data-dir", type=PATH, help="Directory that contains the dataset.")
@click.option("--near", is_flag=True, help="Also find images that look alike (slow).")
@json_option
def command(data: str, data_dir: Path | None, near: bool, as_json: bool) -> None:
    """Read every file of a dataset and list its faults; exit with code 3 if there are any.

    Files that are not read are faults if they may be images. How the files were understood, and
    what is unusual but sound, goes to stderr.

    \b
    Examples:
      cnnzoo verify-data fashion_mnist
      cnnzoo verify-data imagefolder:flowers --near
      cnnzoo verify-data imagefolder:flowers --json
    """
    import torch

    from cnn_core.data.progress_bar import progress_bar
    from cnn_core.data.verify import verify

    notes: list[str] = []
    with progress_bar("reading files", show=True) as progress:
        faults = verify(
            data,
            data_dir=data_dir,
            threads=torch.get_num_threads(),
            progress=progress,
            near=near,
            notes=notes,
        )
    if as_json:
        emit_json("faults", faults, notes=notes)
    else:
        for fault in faults:
            click.echo(printable(fault))
    for note in notes:
        click.echo(printable(note), err=True)
    if faults:
        raise DatasetCorruptError(f"{data}: {counted(len(faults), 'fault')}")
    if not as_json:
        click.echo(printable(f"{data}: no faults"))
