"""cnnzoo predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, table

__all__ = ["command"]


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", default=1, show_default=True, help="How many classes to name.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@json_option
def command(run: Path, images: tuple[Path, ...], top_k: int, device: str, as_json: bool) -> None:
    """Classify image files with the kept weights of RUN.

    Pictures are turned grey or RGB and brought to the network's size, as in training; the
    digits of MNIST and its kin are light on dark.

    \b
    Examples:
      cnnzoo predict runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo predict runs/lenet5-digits-20260101-120000 *.png --top-k 3 --json
    """
    from cnn_core.training import predict

    found = predict(run, images, top_k=top_k, device=device)
    if as_json:
        emit_json("predictions", [dataclasses.asdict(p) for p in found], run=str(run))
        return
    table(
        ("image", "rank", "class", "probability"),
        [
            (prediction.path, rank, name, f"{100 * probability:.2f} %")
            for prediction in found
            for rank, (name, probability) in enumerate(
                zip(prediction.classes, prediction.probabilities, strict=True), start=1
            )
        ],
        right=("rank", "probability"),
    )
