"""cnnzoo export."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, say_path
from cnn_core.cli.params import PATH, SOURCE, Choice, source_options

__all__ = ["command"]


@click.command("export")
@click.argument("source", type=SOURCE)
@click.option(
    "--format",
    type=Choice(("torch-export", "onnx")),
    help="File format. [default: from the suffix of --out, else torch-export]",
)
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    help="Output file. [default: RUN/MODEL.pt2 or RUN/MODEL.onnx]",
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Fix the batch size. [default: any size]"
)
@click.option(
    "--pictures", is_flag=True, help="Accept uint8 images, and normalise them in the network."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@source_options
@json_option
def command(
    source: str,
    format: str | None,
    out: Path | None,
    batch_size: int | None,
    pictures: bool,
    force: bool,
    model: str,
    naming: str | None,
    download: bool,
    as_json: bool,
) -> None:
    """Export a trained network to a file that runs without the network's Python code.

    SOURCE is a run, MODEL or MODEL:NAME of published weights, or a weights file (with --model).
    torch-export writes a .pt2 file for torch.export.load; onnx needs pip install "cnn-core[onnx]".
    The exported network takes normalised float32 images, N C H W, or with --pictures uint8 images
    (0 to 255) of the size used in training, and returns logits. The file also contains the
    classes, mean and std. Before the file is saved, its outputs are compared with the network's.
    Prints the path on stdout.

    \b
    Examples:
      cnnzoo export runs/lenet5-digits-20260101-120000
      cnnzoo export runs/lenet5-digits-20260101-120000 --format onnx --pictures --out digits.onnx
    """
    from cnn_core.training import export
    from cnn_core.training.trained import Trained

    trained = Trained(source, model=model, naming=naming, download=download)
    done = export(
        trained, out, format=format, batch_size=batch_size, pictures=pictures, force=force
    )
    if as_json:
        emit_json("export", dataclasses.asdict(done), run=source)
        return
    count = "any number of" if batch_size is None else batch_size
    shape = "x".join(map(str, done.input))
    click.echo(f"takes {count} images, {done.dtype} {shape}", err=True)
    click.echo(
        f"differs from the network by {done.difference:.1e} of the largest output, "
        f"in batches of {', '.join(map(str, done.batches))}",
        err=True,
    )
    say_path(done.path)
