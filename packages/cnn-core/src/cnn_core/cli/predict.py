"""cnnzoo predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnn_core.cli.output import emit_json, json_option, say_path, table
from cnn_core.cli.params import device_option

if TYPE_CHECKING:
    from cnn_core.training.trained import Trained

__all__ = ["command"]


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", default=1, show_default=True, help="How many classes to name.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where masks go; by default RUN/masks.",
)
@click.option("--flips", is_flag=True, help="Masks: the mean over mirrored images.")
@device_option
@json_option
def command(
    run: Path,
    images: tuple[Path, ...],
    top_k: int,
    out: Path | None,
    flips: bool,
    device: str,
    as_json: bool,
) -> None:
    """Classify image files, and those in folders, with the kept weights of RUN.

    A run that classifies prints the classes of whole images. One that segments writes for each
    image a mask (PNG of class numbers, with a palette), an overlay and probabilities (float16,
    classes x H x W), at the image's own size, and prints the files' paths. Images are turned grey
    or RGB as in training; the digits of MNIST and its kin are light on dark.

    \b
    Examples:
      cnnzoo predict runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo predict runs/lenet5-digits-20260101-120000 *.png --top-k 3 --json
      cnnzoo predict runs/unet_same-isbi_em-20260101-120000 slices/ --out masks
    """
    from cnn_core.training.prediction import task_of
    from cnn_core.training.trained import Trained

    trained = Trained(run, device=device)
    if task_of(trained.weights) == "segmentation":
        _write_masks(trained, images, out or run / "masks", flips, as_json)
    else:
        _print_classes(trained, images, top_k, as_json)


def _print_classes(trained: Trained, images: tuple[Path, ...], top_k: int, as_json: bool) -> None:
    from cnn_core.training import predict

    found = predict(trained, images, top_k=top_k)
    if as_json:
        emit_json("predictions", [dataclasses.asdict(p) for p in found], run=str(trained.path))
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


def _write_masks(
    trained: Trained, images: tuple[Path, ...], out: Path, flips: bool, as_json: bool
) -> None:
    from cnn_core.training.mask_files import write_masks
    from cnn_core.training.prediction import image_files, require_distinct_names, segment

    files = require_distinct_names(image_files(images))
    written = []
    for found in segment(trained, files, flips=flips):
        paths = [str(path) for path in write_masks(found, out)]
        parts = found.mask.flatten().bincount(minlength=len(found.classes)) / found.mask.numel()
        named = zip(found.classes, parts.tolist(), strict=True)
        written.append({"image": str(found.path), "files": paths, "parts": dict(named)})
        if not as_json:
            for path in paths:
                say_path(path)
    if as_json:
        emit_json("predictions", written, run=str(trained.path))
