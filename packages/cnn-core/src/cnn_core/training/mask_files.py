"""Write a segmentation to files: a mask with the values of the training masks, and more."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cnn_core.data.palette import background_class, class_colours
from cnn_core.errors import CorruptError
from cnn_core.files import write_bytes
from cnn_core.training.prediction import Segmentation

__all__ = ["has_masks", "mask_paths", "same_masks", "write_masks"]

OVERLAY_OPACITY = 0.45
TOLERANCE = 2e-3  # difference of a probability that is computed again: float16 has three digits
SUFFIXES = ("mask.png", "overlay.png", "probabilities.npy")
THRESHOLD = "threshold"  # a text in a mask's PNG
PALETTE = 256  # entries; masks with larger values are 16-bit grey


def mask_paths(folder: Path, name: Path) -> list[Path]:
    """Return the paths of the three files for an image in `folder`; `name` has no suffix."""
    return [folder / name.parent / f"{name.name}.{suffix}" for suffix in SUFFIXES]


def has_masks(folder: Path, name: Path) -> bool:
    """Return whether all three files of an image are in `folder`."""
    return all(path.is_file() for path in mask_paths(folder, name))


def same_masks(segmentation: Segmentation, folder: Path, name: Path) -> bool:
    """Return whether the probabilities and the threshold in a folder are those of a segmentation.

    Raises:
        CorruptError: a file cannot be read.
    """
    mask, _, path = mask_paths(folder, name)
    if _threshold_in(mask) != _threshold_text(segmentation):
        return False
    try:
        before = np.load(path, allow_pickle=False).astype(np.float32)
    except (ValueError, EOFError) as error:
        raise CorruptError(f"{path}: not an array", "delete it, to write it again") from error
    now = segmentation.probabilities.numpy()
    return before.shape == now.shape and bool(np.abs(before - now).max() <= TOLERANCE)


def write_masks(segmentation: Segmentation, folder: Path, name: Path) -> list[Path]:
    """Write NAME.mask.png, NAME.overlay.png and NAME.probabilities.npy; return their paths.

    `name` may have parent folders, which are created in `folder`. The mask has the values of the
    training masks: a palette PNG of numbers, 16-bit grey for numbers above 255, or RGB for
    colours. Probabilities are float16, classes x H x W. A threshold is noted in the mask's PNG.
    """
    paths = mask_paths(folder, name)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    background = background_class(segmentation.classes, segmentation.background)
    colours = class_colours(segmentation.classes, segmentation.colours, background)
    probabilities = io.BytesIO()
    values = segmentation.probabilities.numpy().astype(np.float16)
    np.save(probabilities, values, allow_pickle=False)
    mask, overlay = _mask(segmentation, colours), _overlay(segmentation, colours, background)
    contents = (
        _png(mask, _threshold_text(segmentation)),
        _png(overlay),
        probabilities.getvalue(),
    )
    for path, content in zip(paths, contents, strict=True):
        write_bytes(path, content)
    return paths


def _mask(segmentation: Segmentation, colours: list[tuple[int, int, int]]) -> Image.Image:
    """Return the mask in the values of the training masks."""
    classes = segmentation.mask.numpy()
    values = segmentation.mask_values or tuple(range(len(segmentation.classes)))
    if any(isinstance(value, str) for value in values):
        table = np.array([list(bytes.fromhex(str(value)[1:])) for value in values], np.uint8)
        return Image.fromarray(table[classes])
    numbers = np.array(values)
    if numbers.max() >= PALETTE:
        return Image.fromarray(numbers.astype(np.uint16)[classes])
    image = Image.fromarray(numbers.astype(np.uint8)[classes])
    palette = np.zeros((PALETTE, 3), np.uint8)
    palette[numbers] = colours
    image.putpalette(palette[: numbers.max() + 1].tobytes())
    return image


def _overlay(
    segmentation: Segmentation, colours: list[tuple[int, int, int]], background: int | None
) -> Image.Image:
    """Return the image, tinted with the colours of the classes, but not with the background's."""
    classes = segmentation.mask.numpy()
    image = segmentation.image.permute(1, 2, 0).expand(-1, -1, 3).numpy().astype(np.float32)
    tint: npt.NDArray[np.int64] = np.array(colours)[classes]
    mixed = (1 - OVERLAY_OPACITY) * image + OVERLAY_OPACITY * tint
    plain = np.zeros(classes.shape, bool) if background is None else classes == background
    tinted = np.where(plain[..., None], image, mixed)
    return Image.fromarray(tinted.round().astype(np.uint8))


def _png(image: Image.Image, threshold: str = "") -> bytes:
    file, info = io.BytesIO(), PngInfo()
    if threshold:
        info.add_text(THRESHOLD, threshold)
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def _threshold_text(segmentation: Segmentation) -> str:
    return "" if segmentation.threshold is None else repr(segmentation.threshold)


def _threshold_in(path: Path) -> str:
    """Return the threshold that a mask was written with, or "".

    The probabilities are the same with any, so they do not show it.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get(THRESHOLD, ""))
    except (OSError, SyntaxError, ValueError) as error:
        raise CorruptError(f"{path}: not a PNG", "delete it, to write it again") from error
