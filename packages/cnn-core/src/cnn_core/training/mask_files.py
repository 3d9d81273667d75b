"""Masks as files: a PNG of class numbers with colours, probabilities, and an overlay."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnn_core.files import write_bytes
from cnn_core.training.prediction import Segmentation

__all__ = ["palette", "write_masks"]

# M. Okabe and K. Ito (2008), Color universal design; the background, class 0, is black.
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
SHINE = 0.45  # the opacity of a class's colour in an overlay


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return the colours of classes: RGB, 0 to 255."""
    named = [tuple(bytes.fromhex(colour[1:])) for colour in COLOURS]
    golden = 0.618034  # steps of it spread hues evenly, however many there are
    more = (colorsys.hsv_to_rgb(k * golden % 1, 0.6, 0.9) for k in range(max(count - 8, 0)))
    named += [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in more]
    return [(r, g, b) for r, g, b in named[:count]]


def write_masks(found: Segmentation, folder: Path) -> list[Path]:
    """Write NAME.mask.png, NAME.overlay.png and NAME.probabilities.npy; return their paths.

    The mask has one byte per pixel, the class's number, and a palette. Probabilities are float16,
    classes x H x W.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colours = palette(len(found.classes))
    mask = found.mask.numpy()
    image = Image.fromarray(mask)
    image.putpalette([value for colour in colours for value in colour])
    probabilities = io.BytesIO()
    np.save(probabilities, found.probabilities.numpy().astype(np.float16), allow_pickle=False)
    contents = {
        "mask.png": _png(image),
        "overlay.png": _png(_overlay(found, np.array(colours)[mask])),
        "probabilities.npy": probabilities.getvalue(),
    }
    paths = []
    for kind, content in contents.items():
        paths.append(folder / f"{found.path.stem}.{kind}")
        write_bytes(paths[-1], content)
    return paths


def _overlay(found: Segmentation, colour: npt.NDArray[np.int64]) -> Image.Image:
    """Return the image with the colours of all classes but the background on it."""
    picture = found.image.permute(1, 2, 0).expand(-1, -1, 3).numpy().astype(np.float32)
    mixed = (1 - SHINE) * picture + SHINE * colour
    shown = np.where(found.mask.numpy()[..., None] > 0, mixed, picture)
    return Image.fromarray(shown.round().astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
