"""Classify image files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cnn_core.errors import CorruptError, UsageError
from cnn_core.training.checkpoint import read_weights
from cnn_core.training.device import choose_device

__all__ = ["FORMATS", "Prediction", "predict", "read_image"]

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000


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
    if not 1 <= top_k <= weights.num_classes:
        raise UsageError(
            f"top_k = {top_k}: expected 1 to {weights.num_classes}, the number of classes"
        )
    where = choose_device(device)
    model = weights.build().to(where)
    found = []
    for image in images:
        picture = read_image(Path(image), weights.in_channels)
        inputs = weights.preprocessing(picture.to(where))
        best = model(inputs).float().softmax(1)[0].topk(top_k)
        names = tuple(weights.classes[number] for number in best.indices.tolist())
        found.append(Prediction(str(image), names, tuple(best.values.tolist())))
    return found


def read_image(path: Path, channels: int) -> Tensor:
    """Read a picture as uint8, 1 C h w: grey for one channel, RGB for three.

    The orientation that a camera noted is applied.
    """
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise UsageError(f"{path}: pictures have 1 or 3 channels, the model wants {channels}")
    if not path.is_file():
        raise UsageError(f"{path}: no such image file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CorruptError(
                    f"{path}: {image.width} x {image.height} pixels, at most {MAX_PIXELS:,}"
                )
            picture = ImageOps.exif_transpose(image).convert(modes[channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        allowed = ", ".join(FORMATS)
        raise CorruptError(
            f"{path}: not a readable image: {error}", f"formats: {allowed}"
        ) from error
    pixels = torch.from_numpy(np.array(picture))
    return pixels.view(1, picture.height, picture.width, channels).permute(0, 3, 1, 2)
