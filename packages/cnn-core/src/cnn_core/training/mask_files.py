"""Write a segmentation to files: a mask with a colour palette, an overlay, probabilities."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnn_core.errors import CorruptError
from cnn_core.files import write_bytes
from cnn_core.training.prediction import Segmentation

__all__ = ["has_masks", "mask_paths", "palette", "same_masks", "write_masks"]

# M. Okabe and K. Ito (2008), Color universal design; the background, class 0, is black.
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
OVERLAY_OPACITY = 0.45
TOLERANCE = 2e-3  # of a probability computed again: float16 has three digits
SUFFIXES = ("mask.png", "overlay.png", "probabilities.npy")


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return a distinct RGB colour, 0 to 255, for each of `count` classes."""
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in COLOURS]
    golden = 0.618034  # multiples of the golden ratio, modulo 1, spread any number of hues evenly
    extra = (colorsys.hsv_to_rgb(k * golden % 1, 0.6, 0.9) for k in range(max(count - 8, 0)))
    colours += [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in extra]
    return [(r, g, b) for r, g, b in colours[:count]]


def mask_paths(folder: Path, name: Path) -> list[Path]:
    """Return the paths of the three files for an image in `folder`; `name` has no suffix."""
    return [folder / name.parent / f"{name.name}.{suffix}" for suffix in SUFFIXES]


def has_masks(folder: Path, name: Path) -> bool:
    """Return whether all three files of an image are in `folder`."""
    return all(path.is_file() for path in mask_paths(folder, name))


def same_masks(segmentation: Segmentation, folder: Path, name: Path) -> bool:
    """Return whether the probabilities in a folder are those of a segmentation.

    Raises:
        CorruptError: the file cannot be read.
    """
    path = mask_paths(folder, name)[2]
    try:
        before = np.load(path, allow_pickle=False).astype(np.float32)
    except (ValueError, EOFError) as error:
        raise CorruptError(f"{path}: not an array", "delete it, to write it again") from error
    now = segmentation.probabilities.numpy()
    return before.shape == now.shape and bool(np.abs(before - now).max() <= TOLERANCE)


def write_masks(segmentation: Segmentation, folder: Path, name: Path) -> list[Path]:
    """Write NAME.mask.png, NAME.overlay.png and NAME.probabilities.npy; return their paths.

    `name` may have parent folders, which are created in `folder`. The mask is a palette PNG whose
    pixel values are class indices. Probabilities are float16, classes x H x W.
    """
    paths = mask_paths(folder, name)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    colours = palette(len(segmentation.classes))
    mask = segmentation.mask.numpy()
    image = Image.fromarray(mask)
    image.putpalette([value for colour in colours for value in colour])
    probabilities = io.BytesIO()
    values = segmentation.probabilities.numpy().astype(np.float16)
    np.save(probabilities, values, allow_pickle=False)
    overlay = _overlay(segmentation, np.array(colours)[mask])
    contents = (_png(image), _png(overlay), probabilities.getvalue())
    for path, content in zip(paths, contents, strict=True):
        write_bytes(path, content)
    return paths


def _overlay(segmentation: Segmentation, colours: npt.NDArray[np.int64]) -> Image.Image:
    """Return the image, tinted with the class colours except where the class is 0, background."""
    image = segmentation.image.permute(1, 2, 0).expand(-1, -1, 3).numpy().astype(np.float32)
    mixed = (1 - OVERLAY_OPACITY) * image + OVERLAY_OPACITY * colours
    tinted = np.where(segmentation.mask.numpy()[..., None] > 0, mixed, image)
    return Image.fromarray(tinted.round().astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
