"""Classify image files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from cnn_core import registry
from cnn_core.data.images import read_image
from cnn_core.errors import UsageError
from cnn_core.training.device import choose_device
from cnn_core.training.weights import read_weights

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """An image file and its likeliest classes, best first, with their probabilities."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@torch.inference_mode()
def predict(
    run: str | os.PathLike[str],
    images: Iterable[str | os.PathLike[str]],
    *,
    top_k: int = 1,
    device: str = "auto",
) -> list[Prediction]:
    """Classify image files with the weights of a run.

    Raises:
        UsageError: a file is not there, or `top_k` exceeds the number of classes.
        CorruptError: a file is not an image, or of a format or size that is not let in.
    """
    weights = read_weights(run)
    if (task := registry.models().get(weights.model).task) != "classification":
        raise UsageError(f"{run}: '{weights.model}' does {task}; predict names whole images")
    if not 1 <= top_k <= weights.num_classes:
        raise UsageError(
            f"top_k = {top_k}: expected 1 to {weights.num_classes}, the number of classes"
        )
    where = choose_device(device)
    model = weights.build().to(where)
    found = []
    for image in images:
        if not Path(image).is_file():
            raise UsageError(f"{image}: no such image file")
        picture = read_image(Path(image), weights.in_channels)
        inputs = weights.preprocessing(picture[None].to(where))
        best = model(inputs).float().softmax(1)[0].topk(top_k)
        names = tuple(weights.classes[number] for number in best.indices.tolist())
        found.append(Prediction(str(image), names, tuple(best.values.tolist())))
    return found
