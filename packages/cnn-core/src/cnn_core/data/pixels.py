"""Turn images and arrays of any depth into bytes: 8 bits per channel, without transparency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import printable

__all__ = [
    "AS_USUAL",
    "CHANNELS",
    "DEEP_MODES",
    "MAX_CHANNELS",
    "MAX_PIXELS",
    "Reading",
    "UINT16",
    "array_pixels",
    "has_alpha",
    "image_pixels",
    "kind_name",
]

MAX_PIXELS = 100_000_000  # 300 MB as RGB
MAX_CHANNELS = 64  # of an array; more is an array of another layout, such as C H W
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
MODE_NAMES = {"I": "32-bit integers (I)", "F": "32-bit floats (F)"}
UINT16 = (0.0, 65535.0)
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}


@dataclass(frozen=True)
class Reading:
    """How pixels become 8 bits without transparency.

    `value_range` holds the lowest and the highest possible value of images with more than 8 bits
    per channel; these become 0 and 255. If it is empty, unsigned 16-bit integers have the range 0
    to 65535, and other types are an error. `alpha_background` is the colour behind transparent
    parts: "white", "black", or "drop" to keep the hidden colours.
    """

    value_range: tuple[float, ...] = ()
    alpha_background: str = "white"

    def __post_init__(self) -> None:
        bounds = self.value_range
        numbers = all(isinstance(bound, int | float) for bound in bounds)
        if bounds and not (numbers and len(bounds) == 2 and bounds[0] < bounds[1]):
            raise UsageError(f"value_range = {list(bounds)}: expected two numbers, low and high")
        if self.alpha_background not in (*BACKGROUNDS, "drop"):
            raise UsageError(
                f"alpha_background = '{printable(str(self.alpha_background))}'",
                f"one of {', '.join((*BACKGROUNDS, 'drop'))}",
            )


AS_USUAL = Reading()


def image_pixels(
    image: Image.Image, channels: int, reading: Reading = AS_USUAL, name: Path | str = "image"
) -> Tensor:
    """Return an image as uint8, C H W in channels-last memory, grey (1), RGB (3) or RGBA (4).

    Raises:
        DatasetCorruptError: it has more than 8 bits per channel, and values of an undeclared range
            or outside of the range.
    """
    mode = CHANNELS[channels]
    if image.mode in DEEP_MODES:
        image = Image.fromarray(_scaled(np.asarray(image), image.mode, reading, name))
    elif channels != 4 and has_alpha(image) and reading.alpha_background != "drop":
        image = _on_background(image, BACKGROUNDS[reading.alpha_background])
    if image.mode in ("La", "RGBa"):  # colours times alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    converted = image if image.mode == mode else image.convert(mode)  # convert() would copy
    pixels = torch.from_numpy(np.array(converted))
    # Not contiguous: a crop of it is smaller, and resizing is faster with channels last.
    return pixels.view(converted.height, converted.width, channels).permute(2, 0, 1)


def has_alpha(image: Image.Image) -> bool:
    """Return whether an image may have transparent parts."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _on_background(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Return an image in RGB with a colour behind its transparent parts, as viewers show it."""
    whole = image.convert("LA") if image.mode == "La" else image
    rgba = whole if whole.mode == "RGBA" else whole.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*colour, 255)), rgba).convert("RGB")


def array_pixels(path: Path, array: np.ndarray, channels: int, reading: Reading) -> Tensor:
    """Return an array, H W or H W C, as uint8, C H W."""
    values = np.array(array if array.ndim == 3 else array[..., None])
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype != np.uint8 or reading.value_range:
        values = _scaled(values, str(values.dtype), reading, path)
    own = values.shape[2]
    if own == channels:
        return torch.from_numpy(values).permute(2, 0, 1)
    if own not in CHANNELS or channels not in CHANNELS:
        raise DatasetCorruptError(f"{path}: {own} channels, expected {channels}")
    return image_pixels(Image.fromarray(values[..., 0] if own == 1 else values), channels, reading)


def _scaled(values: np.ndarray, kind: str, reading: Reading, name: Path | str) -> np.ndarray:
    """Return values as uint8, scaled from their range.

    Raises:
        DatasetCorruptError: the range is not declared, or a value is outside of it.
    """
    sixteen = kind.startswith("I;16") or values.dtype == np.uint16
    bounds = reading.value_range or (UINT16 if sixteen else ())
    with np.errstate(invalid="ignore"):  # NaN
        low, high = values.min(), values.max()
    if not bounds:
        raise DatasetCorruptError(
            f"{name}: {kind_name(kind)} from {low:g} to {high:g}, of an undeclared range",
            "declare what is black and what is white: --set value_range=[0,1], or in dataset.toml",
        )
    if not (bounds[0] <= low and high <= bounds[1]):  # NaN is outside
        raise DatasetCorruptError(
            f"{name}: values from {low:g} to {high:g}, outside of the range "
            f"{bounds[0]:g} to {bounds[1]:g}",
            "declare a range that contains them: value_range",
        )
    fractions = (values.astype(np.float64) - bounds[0]) / (bounds[1] - bounds[0])
    return np.rint(255 * fractions).astype(np.uint8)


def kind_name(mode: str) -> str:
    """Return the name of a mode of Pillow, or of the type of an array's values, for people."""
    if " " in mode or mode[:1].islower():  # a phrase, or the type of an array's values
        return mode
    return MODE_NAMES.get(mode, f"16-bit grey ({mode})" if ";16" in mode else f"mode {mode}")
