"""cnnzoo export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_core.cli.output import emit_json, json_option, say_path
from cnn_core.cli.params import (
    PATH,
    SOURCE,
    Choice,
    data_dir_option,
    data_option,
    source_options,
)
from cnn_core.errors import UsageError
from cnn_core.text import counted

if TYPE_CHECKING:
    from cnn_core.training.quantization import Quantized

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
@click.option(
    "--int8",
    is_flag=True,
    help="Compute with 8-bit integers, calibrated on images of the training split. Only for ONNX.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@data_option
@data_dir_option
@source_options
@json_option
def command(
    source: str,
    format: str | None,
    out: Path | None,
    batch_size: int | None,
    pictures: bool,
    int8: bool,
    force: bool,
    data: str | None,
    data_dir: Path | None,
    model: str,
    naming: str | None,
    download: bool,
    as_json: bool,
) -> None:
    """Export a trained network to a file that runs without the network's Python code.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file
    (with --model). torch-export writes a .pt2 file for torch.export.load; onnx needs pip
    install "cnn-core[onnx]". The exported network takes normalised float32 images, N C H W, or
    with --pictures uint8 images (0 to 255) of the size used in training, and returns logits.
    The file also contains the classes, mean and std. Before the file is saved, its outputs are
    compared with the network's. Prints the path on stdout.

    With --int8 the file is a quarter of the size, and faster where the processor has instructions
    for it. The loss of accuracy is measured on the test split, printed, and written into the file.
    --data and --data-dir are for --int8 only.

    \b
    Examples:
      cnnzoo export runs/lenet5-digits-20260101-120000
      cnnzoo export runs/lenet5-digits-20260101-120000 --format onnx --pictures --out digits.onnx
      cnnzoo export runs/lenet5-digits-20260101-120000 --int8
    """
    from cnn_core.training import export
    from cnn_core.training.trained import Trained

    if not int8 and (data or data_dir):
        raise UsageError("--data and --data-dir are for calibration", "add --int8")
    trained = Trained(
        source, model=model, naming=naming, download=download, data=data, data_dir=data_dir
    )
    how: Any = {"batch_size": batch_size, "pictures": pictures, "int8": int8, "force": force}
    done = export(trained, out, format=format, **how)
    if as_json:
        emit_json("export", dataclasses.asdict(done), run=source)
        return
    takes = "any number of images" if batch_size is None else counted(batch_size, "image")
    shape = "x".join(map(str, done.input))
    click.echo(f"takes {takes}, {done.dtype} {shape}", err=True)
    network = "differs" if done.int8 is None else "in float32, before int8, the file differed"
    click.echo(
        f"{network} from the network by {done.difference:.1e} of the largest output, "
        f"in batches of {', '.join(map(str, done.batches))}",
        err=True,
    )
    if done.int8 is not None:
        _say_cost(done.int8)
    say_path(done.path)


def _say_cost(cost: Quantized) -> None:
    """Print metrics and size of the float32 and the int8 network."""
    click.echo(
        f"int8, calibrated on {cost.calibration_images:,} training images of {cost.data}, where "
        f"it differs by {cost.difference:.1e} of the largest output; on its {cost.test_images:,} "
        "test images:",
        err=True,
    )
    for name, value in cost.float32.items():
        click.echo(f"  {name}: float32 {value:.4f}, int8 {cost.int8[name]:.4f}", err=True)
    before, after = (size / 1e6 for size in (cost.float32_bytes, cost.int8_bytes))
    click.echo(f"  size: float32 {before:,.2f} MB, int8 {after:,.2f} MB", err=True)
