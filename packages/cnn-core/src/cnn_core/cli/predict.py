"""cnnzoo predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnn_core.cli.output import emit_json, json_option, say_path, table
from cnn_core.cli.params import SOURCE, device_option, source_options

if TYPE_CHECKING:
    from cnn_core.training.trained import Trained

__all__ = ["command"]


@click.command("predict")
@click.argument("source", type=SOURCE)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--top-k", default=1, show_default=True, help="How many of the most likely classes to print."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output directory for segmentation. [default: masks in the run]",
)
@click.option(
    "--flips",
    is_flag=True,
    help="Segmentation: average predictions over flipped copies of the image "
    "(test-time augmentation).",
)
@source_options
@device_option
@json_option
def command(
    source: str,
    images: tuple[Path, ...],
    top_k: int,
    out: Path | None,
    flips: bool,
    model: str,
    naming: str | None,
    download: bool,
    device: str,
    as_json: bool,
) -> None:
    """Predict image files, or all images in directories, with a trained network.

    SOURCE is a run, MODEL or MODEL:NAME of published weights, a weights file (with --model), or an
    exported .pt2 or .onnx file. For classification, print the predicted classes. For segmentation,
    write a mask (PNG with class indices and a palette), an overlay and probabilities (float16,
    classes x H x W) for each image, at its original size, and print the paths. Images are
    converted to greyscale or RGB to match training. MNIST-like models expect light digits on a
    dark background.

    \b
    Examples:
      cnnzoo predict runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo predict runs/lenet5-digits-20260101-120000 *.png --top-k 3 --json
      cnnzoo predict resnet50:imagenet-v2 holiday/ --download
      cnnzoo predict runs/unet_same-isbi_em-20260101-120000 slices/ --out masks
    """
    from cnn_core.training.prediction import task_of
    from cnn_core.training.trained import Trained

    trained = Trained(source, model=model, naming=naming, download=download, device=device)
    if task_of(trained.weights) == "segmentation":
        _write_masks(trained, images, out or trained.folder / "masks", flips, as_json)
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
        fractions = (
            found.mask.flatten().bincount(minlength=len(found.classes)) / found.mask.numel()
        )
        class_fractions = dict(zip(found.classes, fractions.tolist(), strict=True))
        written.append(
            {"image": str(found.path), "files": paths, "class_fractions": class_fractions}
        )
        if not as_json:
            for path in paths:
                say_path(path)
    if as_json:
        emit_json("predictions", written, run=str(trained.path))
