"""Read masks as they are stored: grey levels, palette indices, 16-bit numbers or colours.

A colour is one number, 0xRRGGBB, so that values of all kinds of masks can be counted and compared.
A picture whose three channels are equal everywhere is grey. An opaque alpha channel is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cnn_core.data.images import (
    TRANSPOSES,
    open_image,
    orientation_of,
    raw_mode,
    upright,
    wrong_mode,
)
from cnn_core.data.tiff import Page
from cnn_core.errors import DatasetCorruptError

__all__ = [
    "DEPTH",
    "MaskFacts",
    "exif_orientation",
    "hexadecimal",
    "mask_facts",
    "read_mask",
    "turned",
]

GREY, PALETTE, COLOUR = "grey", "palette", "colour"
WHITE = 0x010101  # a grey level times this is its colour
WHITE_LEVEL = 255  # ignored pixels in most masks
DEPTH = 1 << 16  # values of a 16-bit mask
FULL = (255, DEPTH - 1)  # white in grey levels that Pillow does not rescale
MAX_COLOURS = 4096  # counted in one mask, at most; real masks have few
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")

Pixels = npt.NDArray[np.int32] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MaskFacts:
    """What one mask holds.

    `kind` is "grey", "palette" or "colour"; `counts` maps each value to its number of pixels,
    `palette` each index in use to its colour. `lossy` is the name of a file format that changes
    pixels, such as "JPEG", or empty. `filled` are the values that fill some square of 2 x 2,
    `whole` those whose pixels are one connected blob without holes. `rim` is the value that most
    pixels at the four edges of the mask have.

    `ramps` counts, by value, pixels between a lower and a higher neighbour, where the mask is flat
    beyond one of them: the 1 in the row 0 0 1 3. `jumps` counts neighbours that differ by 2 or
    more. In blurred masks, edges between 0 and 3 are ramps; in others they are jumps.
    """

    path: Path
    kind: str
    counts: Mapping[int, int]
    palette: Mapping[int, int]
    lossy: str
    filled: frozenset[int]
    ramps: Mapping[int, int] = field(default_factory=dict)
    jumps: int = 0
    whole: frozenset[int] = frozenset()
    rim: int = 0


def read_mask(path: Path, in_colour: bool = False) -> Tensor:
    """Read a mask, H W, upright: its grey values or palette indices, or with `in_colour` colours.

    The result is uint8, or int32 for colours and for 16 bits. A 1-bit mask has the values 0 and
    255. A GIF with a grey palette has grey levels, because programs renumber its entries.

    Raises:
        DatasetCorruptError: the file is missing, not an image, broken or too large; is an array;
            is in colour and should not be; is partly transparent; or has 2 or 4 bits of grey, or
            a maximum of its own (PGM), which Pillow rescales to 0-255.
        ResourceError: there is not enough memory for the pixels.
    """
    with open_image(path) as image:
        kind, pixels, palette = _decoded(path, image)
    if in_colour:
        pixels = _in_colour(path, kind, pixels, palette)
    elif kind == COLOUR:
        example = hexadecimal(int(pixels[pixels % WHITE != 0].flat[0]))
        raise DatasetCorruptError(
            f"{path}: a mask in colour, such as {example}: expected grey or a palette",
            "save it like the other masks",
        )
    return torch.from_numpy(pixels)


def mask_facts(path: Path, edges: bool = True) -> MaskFacts:
    """Return what a mask holds; ramps, jumps and blobs, which are slow to find, only with `edges`.

    Raises:
        DatasetCorruptError, ResourceError: as `read_mask`, except for colour.
    """
    with open_image(path) as image:
        kind, pixels, palette = _decoded(path, image)
        lossy = _lossy(path, image)
    if pixels.dtype == np.uint8:
        totals = np.bincount(pixels.ravel(), minlength=256)
        counts = {int(value): int(totals[value]) for value in totals.nonzero()[0]}
    else:
        values, totals = np.unique(pixels, return_counts=True)
        order = np.argsort(-totals)[:MAX_COLOURS]
        counts = {int(values[i]): int(totals[i]) for i in order}
    used = {index: palette[index] for index in counts} if kind == PALETTE else {}
    ramps, jumps = _edges(pixels) if edges and kind == GREY and len(counts) > 2 else ({}, 0)
    whole = _whole(pixels) if edges and kind != COLOUR else frozenset()
    filled, rim = _filled(pixels), _rim(pixels)
    return MaskFacts(path, kind, counts, used, lossy, filled, ramps, jumps, whole, rim)


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1, upright, if it has none.

    Raises:
        DatasetCorruptError: the file is not an image.
    """
    with open_image(path, pixels=False) as image:
        if isinstance(image, np.ndarray):
            return 1
        found = image.orientation if isinstance(image, Page) else orientation_of(image)
        return found if found in TRANSPOSES else 1


def turned(mask: Tensor, orientation: int) -> Tensor:
    """Return a mask, H W, turned as an image with this EXIF orientation is turned upright."""
    match orientation:
        case 2:
            return mask.flip(1)
        case 3:
            return mask.flip(0, 1)
        case 4:
            return mask.flip(0)
        case 5:
            return mask.t()
        case 6:
            return mask.t().flip(1)
        case 7:
            return mask.flip(0, 1).t()
        case 8:
            return mask.t().flip(0)
    return mask


def hexadecimal(colour: int) -> str:
    """Return a colour as "#rrggbb"."""
    return f"#{colour:06x}"


def _decoded(
    path: Path, image: Image.Image | npt.NDArray[Any] | Page
) -> tuple[str, Pixels, list[int]]:
    """Return a mask's kind, its pixels, H W, upright, and the colours of its palette."""
    if isinstance(image, np.ndarray | Page):
        kind = "an array" if isinstance(image, np.ndarray) else "a TIFF of several channels"
        raise DatasetCorruptError(f"{path}: {kind}, expected a mask", "save it as a PNG")
    if (raw := raw_mode(image)).startswith(("L;2", "L;4")):
        raise wrong_mode(path, f"{raw[2]}-bit grey ({raw})", "1, 8 or 16 bits, or a palette")
    if (maximum := _maximum(image)) not in FULL:
        raise wrong_mode(path, f"grey from 0 to {maximum}", "0 to 255, or 0 to 65535")
    is_gif = image.format == "GIF"
    mask = upright(image)
    if mask.mode in ("LA", "RGBA"):
        mask = _without_alpha(path, mask)
    match mask.mode:
        case "1":
            return GREY, np.array(mask.convert("L")), []
        case "L":
            return GREY, np.array(mask), []
        case "P":
            return _of_palette(mask, is_gif)
        case "RGB" | "CMYK" | "YCbCr":
            return _of_colours(np.asarray(mask.convert("RGB")))
        case mode if mode == "I" or mode.startswith("I;16"):
            return GREY, _deep(path, np.asarray(mask).astype(np.int64)), []
    raise wrong_mode(path, mask.mode, "grey, a palette or RGB")


def _of_palette(mask: Image.Image, is_gif: bool) -> tuple[str, Pixels, list[int]]:
    """Return indices with their colours, or the grey levels of a GIF with a grey palette."""
    entries = np.zeros((256, 3), np.int32)
    flat = np.array(mask.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    entries[: len(flat)] = flat
    pixels = np.array(mask)
    used = entries[np.unique(pixels)]
    if is_gif and (used == used[:, :1]).all():
        return GREY, entries[pixels, 0].astype(np.uint8), []
    return PALETTE, pixels, _packed(entries).tolist()


def _of_colours(pixels: npt.NDArray[np.uint8]) -> tuple[str, Pixels, list[int]]:
    if (pixels == pixels[..., :1]).all():
        return GREY, pixels[..., 0].copy(), []
    return COLOUR, _packed(pixels.astype(np.int32)), []


def _packed(colours: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return colours, … x 3, as numbers 0xRRGGBB."""
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _deep(path: Path, values: npt.NDArray[np.int64]) -> Pixels:
    """Return the values of a 16-bit mask, which some programs store in 32 bits."""
    if values.min() < 0 or values.max() >= DEPTH:
        raise DatasetCorruptError(
            f"{path}: mask values {values.min()} to {values.max()}: expected 0 to {DEPTH - 1:,}"
        )
    return values.astype(np.int32)


def _without_alpha(path: Path, mask: Image.Image) -> Image.Image:
    """Drop an opaque alpha channel; refuse any other, since the mask may be in it."""
    lowest, highest = mask.getchannel("A").getextrema()
    if (lowest, highest) != (255, 255):
        if lowest != highest and all(low == high for low, high in _colour_bounds(mask)):
            raise DatasetCorruptError(
                f"{path}: mode {mask.mode}, in one colour: the classes seem to be in the alpha "
                "channel",
                "save it as grey, in Python: Image.open(FILE).getchannel('A').save(FILE)",
            )
        raise DatasetCorruptError(
            f"{path}: mode {mask.mode}: a mask that is partly transparent",
            "flatten it: transparent pixels have no class",
        )
    return mask.convert("L" if mask.mode == "LA" else "RGB")


def _colour_bounds(mask: Image.Image) -> list[tuple[float, float]]:
    """Return the lowest and highest value of each channel but alpha."""
    return [mask.getchannel(name).getextrema() for name in mask.getbands()[:-1]]  # type: ignore[misc]


def _in_colour(path: Path, kind: str, pixels: Pixels, palette: list[int]) -> Pixels:
    if kind == PALETTE:
        return np.array(palette, np.int32)[pixels]
    if kind == GREY:
        if pixels.dtype != np.uint8:
            raise DatasetCorruptError(f"{path}: a 16-bit mask: expected colours of 8 bits")
        return pixels.astype(np.int32) * WHITE
    return pixels


def _filled(pixels: Pixels) -> frozenset[int]:
    """Return the values that fill at least one square of 2 x 2 pixels."""
    corner = pixels[:-1, :-1]
    same = (corner == pixels[1:, :-1]) & (corner == pixels[:-1, 1:]) & (corner == pixels[1:, 1:])
    inside = corner[same]
    if inside.dtype == np.uint8:  # ten times faster than sorting
        return frozenset(np.bincount(inside, minlength=256).nonzero()[0].tolist())
    return frozenset(np.unique(inside)[:MAX_COLOURS].tolist())


def _rim(pixels: Pixels) -> int:
    """Return the value that most pixels at the edges of a mask have."""
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    values, counts = np.unique(np.concatenate(edges), return_counts=True)
    return int(values[counts.argmax()])


def _whole(pixels: Pixels) -> frozenset[int]:
    """Return the values with Euler number 1: pixels - pairs + squares, that is blobs - holes."""
    corner = pixels[:-1, :-1]
    across, down = pixels[:, :-1] == pixels[:, 1:], pixels[:-1] == pixels[1:]
    square = across[:-1] & across[1:] & down[:, :-1]
    parts = (pixels.ravel(), 1), (pixels[:, :-1][across], -1), (pixels[:-1][down], -1)
    euler = np.zeros(int(pixels.max()) + 1, np.int64)
    for values, sign in (*parts, (corner[square], 1)):
        euler += sign * np.bincount(values, minlength=len(euler))
    return frozenset((euler == 1).nonzero()[0].tolist())


def _edges(pixels: Pixels) -> tuple[dict[int, int], int]:
    """Return the ramps by value, and the number of jumps, without pixels of value 255."""
    middles, jumps = [], 0
    for rows in (pixels.astype(np.int32), pixels.T.astype(np.int32)):
        one, two, three, four = (rows[:, n : rows.shape[1] - 3 + n] for n in range(4))
        # Flat on the left, or flat on the right of the ramp.
        for low, middle, high, flat in (
            (two, three, four, one == two),
            (one, two, three, three == four),
        ):
            rising, falling = (low < middle) & (middle < high), (low > middle) & (middle > high)
            known = (low != WHITE_LEVEL) & (high != WHITE_LEVEL)
            middles.append(middle[(rising | falling) & flat & known])
        steps = np.abs(rows[:, 1:] - rows[:, :-1])
        known = (rows[:, 1:] != WHITE_LEVEL) & (rows[:, :-1] != WHITE_LEVEL)
        jumps += int(((steps >= 2) & known).sum())
    values, counts = np.unique(np.concatenate(middles), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True)), jumps


def _lossy(path: Path, image: Image.Image) -> str:
    """Return the name of a file format that does not keep pixels as they were, or ""."""
    if image.format == "WEBP":
        with path.open("rb") as file:
            return "" if b"VP8L" in file.read(4096) else "WebP"
    if image.format == "TIFF" and "jpeg" in str(image.info.get("compression", "")):
        return "JPEG"
    return (image.format or "") if image.format in LOSSY else ""


def _maximum(image: Image.Image) -> int:
    """Return the value that is white in a PGM or PPM file; 255 for other files."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles and image.format == "PPM" else ""
    return 255 if isinstance(arguments, str) or image.mode == "F" else int(arguments[1])
