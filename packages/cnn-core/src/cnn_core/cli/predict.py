"""cnnzoo predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, say_path, table

__all__ = ["command"]


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", default=1, show_default=True, help="How many classes to name.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Masks: not RUN/masks but here."
)
@click.option("--flips", is_flag=True, help="Masks: the mean over mirrored images.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
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
    """Say what is on image files, and on those in folders, with the kept weights of RUN.

    A run that classifies names whole images; one that segments writes, for each, a mask (PNG of
    class numbers, with a palette), an overlay and probabilities (float16, classes x H x W), at the
    image's own size, and prints the files' paths. Images are turned grey or RGB as in
    training; the digits of MNIST and its kin are light on dark.

    \b
    Examples:
      cnnzoo predict runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo predict runs/lenet5-digits-20260101-120000 *.png --top-k 3 --json
      cnnzoo predict runs/unet_same-isbi_em-20260101-120000 slices/ --out masks
    """
    from cnn_core.training.prediction import task_of
    from cnn_core.weights.native import read_weights

    if task_of(read_weights(run)) == "segmentation":
        _masks(run, images, out or run / "masks", flips, device, as_json)
    else:
        _names(run, images, top_k, device, as_json)


def _names(run: Path, images: tuple[Path, ...], top_k: int, device: str, as_json: bool) -> None:
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


def _masks(
    run: Path, images: tuple[Path, ...], out: Path, flips: bool, device: str, as_json: bool
) -> None:
    from cnn_core.training.mask_files import write_masks
    from cnn_core.training.prediction import image_files, segment, unlike

    files = unlike(image_files(images))
    written = []
    for found in segment(run, files, flips=flips, device=device):
        paths = [str(path) for path in write_masks(found, out)]
        parts = found.mask.flatten().bincount(minlength=len(found.classes)) / found.mask.numel()
        named = zip(found.classes, parts.tolist(), strict=True)
        written.append({"image": str(found.path), "files": paths, "parts": dict(named)})
        if not as_json:
            for path in paths:
                say_path(path)
    if as_json:
        emit_json("predictions", written, run=str(run))
