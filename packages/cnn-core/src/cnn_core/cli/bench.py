"""cnnzoo bench."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.params import MODEL, PATH, Choice, device_option
from cnn_core.errors import UsageError
from cnn_core.text import counted

if TYPE_CHECKING:
    from cnn_core.training.benchmark import Measured

__all__ = ["command"]


@click.command("bench")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=MODEL)
@click.option(
    "--batch-size",
    "batch_sizes",
    metavar="N",
    multiple=True,
    type=click.IntRange(min=1),
    help="Images per batch; may be repeated. [default: 16]",
)
@click.option(
    "--format",
    type=Choice(["eager", "torch-export", "onnx"]),
    default="eager",
    show_default=True,
    help="Run the network itself or its exported file.",
)
@click.option(
    "--precision",
    type=Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16 needs hardware with bf16 instructions.",
)
@click.option("--compile", is_flag=True, help="Compile the network with torch.compile.")
@click.option(
    "--optimize", is_flag=True, help="Fold batch normalisation and repack the weights first."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option(
    "--seconds", default=2.0, show_default=True, help="Minimum duration of each measurement."
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Height and width of the images. [default: as in the network's paper]",
)
@click.option(
    "--peer",
    type=Choice(["torchvision", "timm"]),
    help="Compare with the network of the same name in this library.",
)
@device_option
@click.option("--csv", "csv_file", type=PATH, metavar="FILE", help="Write a CSV file.")
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="Draw images/s against parameters (.png, .svg or .pdf); needs matplotlib.",
)
@json_option
def command(
    models: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: int | None,
    image_size: int | None,
    peer: str | None,
    device: str,
    csv_file: Path | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure networks at inference: images/s, latency, memory, parameters, MACs.

    The weights are random: the speed does not depend on them. p50, p90 and p99 are percentiles of
    the latency in milliseconds, at batch size 1. Memory is the peak of all tensors that one batch
    allocates, without the weights. With --peer, the two networks take turns, and "ratio" is the
    peer's time divided by ours: above 1, ours is faster. The peer runs eagerly, and is neither
    compiled nor optimised.

    \b
    Examples:
      cnnzoo bench resnet18 resnet50 mobilenet_v2
      cnnzoo bench resnet50 --batch-size 1 --batch-size 32 --optimize --threads 2
      cnnzoo bench resnet50 --peer torchvision --csv resnet50.csv
    """
    from cnn_core.training import benchmark
    from cnn_core.training.device import choose_device

    if plot is not None:
        _require_matplotlib(plot)
    setting = benchmark.Setting(
        batch_sizes=batch_sizes or (16,),
        device=choose_device(device),
        image_size=image_size or 0,
        peer=peer or "",
        **options,
    )
    with benchmark.threads(threads) as count:
        rows = _measured(models, setting)
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if plot is not None:
        _draw(plot, rows)
    if as_json:
        emit_json("benchmark", [dataclasses.asdict(row) for row in rows])
    else:
        _print(rows, peer)
        used = f"{counted(count, 'thread')} of the processor"
        click.echo(f"p50, p90 and p99: latency at batch size 1; {used}", err=True)


def _measured(models: tuple[str, ...], setting: Any) -> list[Measured]:
    """Measure all networks, with a progress bar on a terminal."""
    from cnn_core import registry
    from cnn_core.data.progress_bar import progress_bar
    from cnn_core.training.benchmark import benchmark

    for name in models:  # find a misspelt name before measuring, which takes minutes
        registry.models().entry(name)
    total, done = len(models) * (1 + len(setting.batch_sizes)), 0
    rows = []
    with progress_bar("measuring", True) as show:

        def step() -> None:
            nonlocal done
            done += 1
            if show is not None:
                show(done, total)

        for name in models:
            rows += benchmark(name, setting, on_step=step)
    return rows


def _print(rows: list[Measured], peer: str | None) -> None:
    """Print the table."""
    titles = ["model", "batch", "input", "images/s", "p50 ms", "p90 ms", "p99 ms"]
    titles += ["memory", "parameters", "MACs"]
    if peer:
        titles += [f"{peer} images/s", "ratio"]
    table(titles, [_cells(row) for row in rows], right=titles[1:])


def _cells(row: Measured) -> tuple[object, ...]:
    cells: tuple[object, ...] = (
        *(row.model, row.batch_size, "x".join(map(str, row.input))),
        *(f"{value:,.1f}" for value in (row.images_per_second, row.p50, row.p90, row.p99)),
        "not measured" if row.memory is None else f"{row.memory / 1e6:,.1f} MB",
        *(row.params, row.macs),
    )
    if row.ratio is None:
        return cells
    return (*cells, f"{row.peer_images_per_second:,.1f}", f"{row.ratio:.3f}")


def _write_csv(path: Path, rows: list[Measured]) -> None:
    """Write one line for each network and batch size."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            fields = [field.name for field in dataclasses.fields(rows[0])]
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                size = "x".join(map(str, row.input))
                writer.writerow({**dataclasses.asdict(row), "input": size})
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _require_matplotlib(path: Path) -> None:
    """Raise UsageError, before anything is measured, unless a figure can be drawn to `path`."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{path}: expected a file name that ends in .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot: matplotlib is not installed", "pip install cnn-viz") from error


def _draw(path: Path, rows: list[Measured]) -> None:
    """Draw images per second against parameters, one point for each network and batch size."""
    from matplotlib.figure import Figure

    # Not pyplot, which keeps figures open and may need a display.
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for size in sorted({row.batch_size for row in rows}):
        of_size = [row for row in rows if row.batch_size == size]
        x, y = [row.params for row in of_size], [row.images_per_second for row in of_size]
        axes.scatter(x, y, label=f"batch size {size}")
        for row in of_size:
            place = (row.params, row.images_per_second)
            axes.annotate(row.model, place, (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="images per second")
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
