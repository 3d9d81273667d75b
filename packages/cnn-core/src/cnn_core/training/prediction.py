"""Classify or segment image files with the weights of a run."""

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

__all__ = [
    "Prediction",
    "Segmentation",
    "image_files",
    "predict",
    "require_distinct_names",
    "segment",
    "task_of",
]

Images = Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Prediction:
    """An image file and its most likely classes, best first, with their probabilities."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Segmentation:
    """A segmented image file, at its original size.

    `image` is uint8, C H W. `probabilities` are classes x H x W, in [0, 1].
    """

    path: Path
    image: Tensor
    probabilities: Tensor
    classes: tuple[str, ...]

    @property
    def mask(self) -> Tensor:
        """The index of the most likely class of each pixel, uint8, H W."""
        return self.probabilities.argmax(0).to(torch.uint8)


def task_of(weights: Weights) -> str:
    """Return the task of the weights' model: "classification" or "segmentation"."""
    return registry.models().get(weights.model).task


def predict(
    run: Trained | Source,
    images: Images,
    *,
    top_k: int = 1,
    device: str = "auto",
) -> list[Prediction]:
    """Classify image files with the weights of a run; folders stand for all images in them.

    Raises:
        UsageError: the run's task is not classification, `top_k` is not between 1 and the number
            of classes, or a path does not exist.
        CorruptError: a file is not an image, or its format or size is not supported.
    """
    trained = Trained.of(run, device=device)
    weights = trained.weights
    if (task := task_of(weights)) != "classification":
        raise UsageError(
            f"{trained.path}: '{weights.model}' is a {task} model; use cnn_core.training.segment()"
        )
    if not 1 <= top_k <= weights.num_classes:
        raise UsageError(
            f"top_k = {top_k}: expected 1 to {weights.num_classes}, the number of classes"
        )
    predicted = []
    # One image at a time: sizes differ, and memory must not grow with the number of files.
    for path in image_files(images):
        image = read_image(path, weights.in_channels)
        with torch.inference_mode():
            logits = trained.model(weights.preprocessing(image[None].to(trained.device)))
        best = logits.float().softmax(1)[0].topk(top_k)
        names = tuple(weights.classes[index] for index in best.indices.tolist())
        predicted.append(Prediction(str(path), names, tuple(best.values.tolist())))
    return predicted


def segment(
    run: Trained | Source,
    images: Images,
    *,
    flips: bool = False,
    device: str = "auto",
) -> Iterator[Segmentation]:
    """Return an iterator that segments image files; folders stand for all images in them.

    A run that was trained on tiles processes images at their original size, tile by tile. For any
    other run, images are resized to the network's input size, and the logits are resized back.
    With `flips`, logits are averaged over the image, its two mirror images, and the image rotated
    by 180 degrees.

    Raises:
        UsageError: the run's task is not segmentation, or a path does not exist.
        CorruptError: a file is not an image, or its format or size is not supported.
    """
    trained = Trained.of(run, device=device)
    weights = trained.weights
    if (task := task_of(weights)) != "segmentation":
        raise UsageError(
            f"{trained.path}: '{weights.model}' is a {task} model; use cnn_core.training.predict()"
        )
    # A separate generator, so that the error above is raised by the call, not at the first image.
    return _segment(trained, images, flips)


# As a decorator: torch then leaves the mode between two images. A `with` block would impose it on
# the caller's code.
@torch.inference_mode()
def _segment(trained: Trained, images: Images, flips: bool) -> Iterator[Segmentation]:
    weights = trained.weights
    logits_of = _predictor(trained)
    for path in image_files(images):
        image = read_image(path, weights.in_channels)
        inputs = weights.preprocessing(image[None].to(trained.device))
        logits = flip_tta(logits_of, inputs) if flips else logits_of(inputs)
        logits = _resize_back(two_class_logits(logits.float()), image, weights.preprocessing)
        yield Segmentation(path, image, logits.softmax(1)[0].cpu(), weights.classes)


def _predictor(trained: Trained) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits for whole images, even if the network crops them."""
    model, preprocessing = trained.model, trained.weights.preprocessing
    height, width = preprocessing.size
    margin = preprocessing.margin
    # A network without padding crops the border, so the image needs a reflected margin. Tiles are
    # square, so for other input shapes the logits cover only the centre.
    if not preprocessing.tiled and height == width:
        margin = tile_margin(model, height, trained.weights.in_channels, trained.device)
    if preprocessing.tiled or margin:
        return partial(overlap_tile, model, tile=height, margin=margin)
    return model


def _resize_back(logits: Tensor, image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return the logits, 1 classes h w, resized to an image, C H W, with padding removed."""
    height, width = preprocessing.resize_to
    if not preprocessing.tiled and logits.shape[-2:] != (height, width):
        top, left = (logits.shape[-2] - height) // 2, (logits.shape[-1] - width) // 2
        logits = logits[..., top : top + height, left : left + width]
    size = image.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    # Logits are scaled, not classes: the mean of two class numbers is another class.
    return F.interpolate(logits, size, mode="bilinear", antialias=True)


def require_distinct_names(files: Iterable[Path]) -> list[Path]:
    """Return the files if all names without suffix are distinct, since outputs use these names.

    Raises:
        UsageError: two files have the same name.
    """
    seen: dict[str, Path] = {}
    for path in files:
        if (other := seen.setdefault(path.stem, path)) != path:
            raise UsageError(
                f"{other} and {path} have the same name, so their output files would collide",
                "run the command once for each, with a different --out DIR",
            )
    return list(seen.values())


def image_files(images: Images) -> Iterator[Path]:
    """Yield the given files, and for each folder its image files sorted by name.

    Raises:
        UsageError: a path does not exist, or a folder contains no images.
    """
    for path in map(Path, images):
        if path.is_dir():
            if not (files := sorted_files(path)):
                raise UsageError(
                    f"{path}: no images in this folder", f"expected {', '.join(SUFFIXES)}"
                )
            yield from files
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"{path}: no such image file or folder")
