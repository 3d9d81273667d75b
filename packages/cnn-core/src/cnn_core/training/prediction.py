"""Say what is on image files: a class each, or a class for every pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core import registry
from cnn_core.create import build
from cnn_core.data.images import read_image
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.readers.folders import SUFFIXES, sorted_files
from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import two_class_logits
from cnn_core.tasks.tiles import flip_tta, overlap_tile, tile_margin
from cnn_core.training.device import choose_device
from cnn_core.weights.native import Weights, read_weights

__all__ = ["Prediction", "Segmentation", "image_files", "predict", "segment", "task_of", "unlike"]

Images = Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Prediction:
    """An image file and its likeliest classes, best first, with their probabilities."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Segmentation:
    """An image file seen pixel by pixel, at its own size.

    `image` is uint8, C H W; `probabilities` are classes x H x W, in [0, 1].
    """

    path: Path
    image: Tensor
    probabilities: Tensor
    classes: tuple[str, ...]

    @property
    def mask(self) -> Tensor:
        """The likeliest class of each pixel, uint8, H W."""
        return self.probabilities.argmax(0).to(torch.uint8)


def task_of(weights: Weights) -> str:
    """Return what weights do: "classification" or "segmentation"."""
    return registry.models().get(weights.model).task


@torch.inference_mode()
def predict(
    run: str | os.PathLike[str],
    images: Images,
    *,
    top_k: int = 1,
    device: str = "auto",
) -> list[Prediction]:
    """Classify image files, and those in folders, with the weights of a run.

    Raises:
        UsageError: a file is not there, or `top_k` exceeds the number of classes.
        CorruptError: a file is not an image, or of a format or size that is not let in.
    """
    weights = read_weights(run)
    if (task := task_of(weights)) != "classification":
        raise UsageError(f"{run}: '{weights.model}' does {task}; segment says what its pixels are")
    if not 1 <= top_k <= weights.num_classes:
        raise UsageError(
            f"top_k = {top_k}: expected 1 to {weights.num_classes}, the number of classes"
        )
    where = choose_device(device)
    model = build(weights).to(where)
    found = []
    for path in image_files(images):
        picture = read_image(path, weights.in_channels)
        inputs = weights.preprocessing(picture[None].to(where))
        best = model(inputs).float().softmax(1)[0].topk(top_k)
        names = tuple(weights.classes[number] for number in best.indices.tolist())
        found.append(Prediction(str(path), names, tuple(best.values.tolist())))
    return found


@torch.inference_mode()
def segment(
    run: str | os.PathLike[str],
    images: Images,
    *,
    flips: bool = False,
    device: str = "auto",
) -> Iterator[Segmentation]:
    """Yield what each pixel of image files, and of those in folders, is.

    A run that was trained on tiles sees images as they are, tile by tile; any other sees them
    scaled to its network's size, and what it says is scaled back. With `flips` it is the mean of
    what is said of an image, of its mirror images, and of it turned by 180 degrees.

    Raises:
        UsageError: a file is not there, or the run classifies whole images.
        CorruptError: a file is not an image, or of a format or size that is not let in.
    """
    weights = read_weights(run)
    if (task := task_of(weights)) != "segmentation":
        raise UsageError(f"{run}: '{weights.model}' does {task}; predict names whole images")
    where = choose_device(device)
    outputs = _whole(weights, where)
    for path in image_files(images):
        picture = read_image(path, weights.in_channels)
        inputs = weights.preprocessing(picture[None].to(where))
        logits = flip_tta(outputs, inputs) if flips else outputs(inputs)
        found = _own_size(two_class_logits(logits.float()), picture, weights.preprocessing)
        yield Segmentation(path, picture, found.softmax(1)[0].cpu(), weights.classes)


def _whole(weights: Weights, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what gives logits for all of its inputs, also where the network says less."""
    model, preprocessing = build(weights).to(device), weights.preprocessing
    height, width = preprocessing.size
    margin = preprocessing.margin
    if not preprocessing.tiled and height == width:
        margin = tile_margin(model, height, weights.in_channels, device)
    if preprocessing.tiled or margin:
        return partial(overlap_tile, model, tile=height, margin=margin)
    return model


def _own_size(logits: Tensor, picture: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return logits, 1 classes h w, without a frame and at the size of an image, C H W."""
    height, width = preprocessing.target
    if not preprocessing.tiled and logits.shape[-2:] != (height, width):
        top, left = (logits.shape[-2] - height) // 2, (logits.shape[-1] - width) // 2
        logits = logits[..., top : top + height, left : left + width]
    size = picture.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", antialias=True)


def unlike(files: Iterable[Path]) -> list[Path]:
    """Return files whose names differ, so that what is written of each has a name of its own.

    Raises:
        UsageError: two have one name.
    """
    seen: dict[str, Path] = {}
    for path in files:
        if (other := seen.setdefault(path.stem, path)) != path:
            raise UsageError(
                f"{other} and {path} have one name: what is written of them would be one file",
                "one at a time, each with its --out DIR",
            )
    return list(seen.values())


def image_files(images: Images) -> Iterator[Path]:
    """Yield files as they are given, and all image files of folders by name.

    Raises:
        UsageError: one is neither, or a folder without images.
    """
    for path in map(Path, images):
        if path.is_dir():
            if not (found := sorted_files(path)):
                raise UsageError(
                    f"{path}: a folder without images", f"files {', '.join(SUFFIXES)}"
                )
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"{path}: no such image file or folder")
