"""Classify image files, or each of their pixels."""

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
from cnn_core.data.images import read_image
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.readers.folders import SUFFIXES, sorted_files
from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import two_class_logits
from cnn_core.tasks.tiles import flip_tta, overlap_tile, tile_margin
from cnn_core.training.trained import Source, Trained
from cnn_core.weights.native import Weights

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
    """The classes of an image file's pixels, at the image's own size.

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
    """Return the task of weights: "classification" or "segmentation"."""
    return registry.models().get(weights.model).task


def predict(
    run: Trained | Source,
    images: Images,
    *,
    top_k: int = 1,
    device: str = "auto",
) -> list[Prediction]:
    """Classify image files, and those in folders, with the weights of a run.

    Raises:
        UsageError: a file is not there, or `top_k` exceeds the number of classes.
        CorruptError: a file is not an image, or its format or size is not accepted.
    """
    trained = Trained.of(run, device=device)
    weights = trained.weights
    if (task := task_of(weights)) != "classification":
        raise UsageError(
            f"{trained.path}: '{weights.model}' does {task}; use cnn_core.training.segment()"
        )
    if not 1 <= top_k <= weights.num_classes:
        raise UsageError(
            f"top_k = {top_k}: expected 1 to {weights.num_classes}, the number of classes"
        )
    found = []
    # One at a time: files differ in size, and memory must not grow with their number.
    for path in image_files(images):
        image = read_image(path, weights.in_channels)
        with torch.inference_mode():
            logits = trained.model(weights.preprocessing(image[None].to(trained.device)))
        best = logits.float().softmax(1)[0].topk(top_k)
        names = tuple(weights.classes[number] for number in best.indices.tolist())
        found.append(Prediction(str(path), names, tuple(best.values.tolist())))
    return found


def segment(
    run: Trained | Source,
    images: Images,
    *,
    flips: bool = False,
    device: str = "auto",
) -> Iterator[Segmentation]:
    """Return the classes of the pixels of image files, and of those in folders, one by one.

    A run that was trained on tiles sees images as they are, tile by tile; any other sees them
    scaled to its network's size, and its logits are scaled back. With `flips` they are the mean
    over an image, its two mirror images, and the image turned by 180 degrees.

    Raises:
        UsageError: a file is not there, or the run classifies whole images.
        CorruptError: a file is not an image, or its format or size is not accepted.
    """
    trained = Trained.of(run, device=device)
    weights = trained.weights
    if (task := task_of(weights)) != "segmentation":
        raise UsageError(
            f"{trained.path}: '{weights.model}' does {task}; use cnn_core.training.predict()"
        )
    # A generator of its own: the errors above are raised by the call, not by the first image.
    return _segment(trained, images, flips)


# As a decorator: torch then leaves the mode between two images. A `with` block would impose it on
# the caller's code.
@torch.inference_mode()
def _segment(trained: Trained, images: Images, flips: bool) -> Iterator[Segmentation]:
    weights = trained.weights
    logits_of = _whole_images(trained)
    for path in image_files(images):
        image = read_image(path, weights.in_channels)
        inputs = weights.preprocessing(image[None].to(trained.device))
        logits = flip_tta(logits_of, inputs) if flips else logits_of(inputs)
        found = _own_size(two_class_logits(logits.float()), image, weights.preprocessing)
        yield Segmentation(path, image, found.softmax(1)[0].cpu(), weights.classes)


def _whole_images(trained: Trained) -> Callable[[Tensor], Tensor]:
    """Return a function to the logits of whole images, also of a network that crops its border."""
    model, preprocessing = trained.model, trained.weights.preprocessing
    height, width = preprocessing.size
    margin = preprocessing.margin
    # A network without padding crops its border, so the image needs a reflected margin. Tiles
    # are square: other inputs get logits of their centre only.
    if not preprocessing.tiled and height == width:
        margin = tile_margin(model, height, trained.weights.in_channels, trained.device)
    if preprocessing.tiled or margin:
        return partial(overlap_tile, model, tile=height, margin=margin)
    return model


def _own_size(logits: Tensor, image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return logits, 1 classes h w, without padding and at the size of an image, C H W."""
    height, width = preprocessing.resize_to
    if not preprocessing.tiled and logits.shape[-2:] != (height, width):
        top, left = (logits.shape[-2] - height) // 2, (logits.shape[-1] - width) // 2
        logits = logits[..., top : top + height, left : left + width]
    size = image.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    # Logits are scaled, not classes: the mean of two class numbers is another class.
    return F.interpolate(logits, size, mode="bilinear", antialias=True)


def unlike(files: Iterable[Path]) -> list[Path]:
    """Return the files, if their names differ: the files written for each are named after it.

    Raises:
        UsageError: two have one name.
    """
    seen: dict[str, Path] = {}
    for path in files:
        if (other := seen.setdefault(path.stem, path)) != path:
            raise UsageError(
                f"{other} and {path} have one name, and so would the files written for them",
                "one at a time, each with its --out DIR",
            )
    return list(seen.values())


def image_files(images: Images) -> Iterator[Path]:
    """Yield the files that are given, and all image files of folders by name.

    Raises:
        UsageError: a path is neither, or a folder without images.
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
