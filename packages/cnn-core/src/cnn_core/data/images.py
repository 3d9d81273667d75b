"""Read image files safely: five formats, a limit on pixels, and one error for every fault.

Files of a dataset come from anywhere. Few formats mean few decoders to attack; the limit on pixels
stops a small file that unpacks to gigabytes; and a caller has one exception to catch.

Images are turned upright by the EXIF orientation in the file's header. A PNG may repeat it after
the pixels; that is not read, so that `probe_image`, which reads headers only, and the readers
always agree.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from cnn_core.errors import DatasetCorruptError, ResourceError, UsageError
from cnn_core.text import printable

__all__ = ["FORMATS", "MAX_PIXELS", "probe_image", "read_image", "read_mask"]

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000  # 300 MB as RGB, more than today's cameras give

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
MASK_MODES = ("1", "L", "P")
NAMES = {"I": "32-bit integers (I)", "F": "32-bit floats (F)"}

# Pillow documents none of these: its decoders raise them on broken and on hostile files.
PILLOW_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Quiet:
    """Ignore warnings while any thread reads.

    Warning filters belong to the process, not to a thread. If each thread saved and restored
    them, one could restore another's filters for good; here the first saves and the last
    restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._filters.__exit__(None, None, None)


_QUIET = _Quiet()


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image as uint8, C H W, upright, with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Of an animation, read the first frame. Transparency is dropped unless there are 4 channels.

    Raises:
        UsageError: `channels` is not 1, 3 or 4.
        DatasetCorruptError: not an image, broken, too large, or more than 8 bits per channel.
        ResourceError: not enough memory for the pixels.
    """
    if channels not in CHANNELS:
        raise UsageError(f"channels = {channels}: expected 1, 3 or 4")
    with _open(path) as image:
        if image.mode not in MODES:
            deep = image.mode.startswith("I") or image.mode == "F"
            # Pillow would convert them to 8 bits, and clip most values, without a warning.
            expected = "8 bits a channel" if deep else f"one of {', '.join(MODES)}"
            raise _wrong_mode(path, image.mode, expected)
        converted = _upright(image).convert(CHANNELS[channels])
    pixels = torch.from_numpy(np.array(converted))
    return pixels.view(converted.height, converted.width, channels).permute(2, 0, 1).contiguous()


def read_mask(path: Path) -> Tensor:
    """Read a mask as uint8, H W, upright: its grey values, or its indices into the palette.

    A 1-bit mask has the values 0 and 255.

    Raises:
        DatasetCorruptError: not an image, broken, too large, or neither grey nor a palette;
            also grey of 2 or 4 bits, whose values Pillow scales to 0 to 255.
        ResourceError: not enough memory for the pixels.
    """
    with _open(path) as image:
        if image.mode not in MASK_MODES:
            raise _wrong_mode(path, image.mode, "grey or a palette (1, L or P)")
        if (raw := _raw_mode(image)).startswith(("L;2", "L;4")):
            raise _wrong_mode(path, f"{raw[2]}-bit grey ({raw})", "1 or 8 bits, or a palette")
        mask = _upright(image)
        mask = mask.convert("L") if mask.mode == "1" else mask
    return torch.from_numpy(np.array(mask))


def probe_image(path: Path) -> tuple[int, int, str]:
    """Return height and width of the upright image and Pillow's mode, from the header alone.

    Raises:
        DatasetCorruptError: not an image, a broken header, or too large.
    """
    with _open(path) as image:
        across = _orientation(image) in (5, 6, 7, 8)  # turned by a quarter: sides swap
        height, width = image.size if across else image.size[::-1]
        return height, width, image.mode


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open an image without reading its pixels; turn all of Pillow's exceptions into one."""
    size = ""
    try:
        if not path.is_file():
            raise _corrupt(path, "no such file")
        with _QUIET, path.open("rb") as file:
            _check_start(path, file)
            with Image.open(file, formats=FORMATS) as image:
                size = f"{image.width} x {image.height} pixels"
                if not 0 < image.width * image.height <= MAX_PIXELS:
                    raise _corrupt(path, f"{size}: expected 1 to {MAX_PIXELS:,}")
                yield image
    except UnidentifiedImageError as error:
        raise _corrupt(path, f"not a readable image; {_start(path)}") from error
    except MemoryError as error:
        raise ResourceError(f"{path}: out of memory for {size or 'its header'}") from error
    except PILLOW_ERRORS as error:
        reason = printable(str(error)) or type(error).__name__
        raise _corrupt(path, f"not a readable image: {reason}") from error


def _check_start(path: Path, file: IO[bytes]) -> None:
    start = file.read(512)
    file.seek(0)
    if not start:
        raise _corrupt(path, "an empty file, not an image")
    # A download that a login or error page replaced is common enough to get its own message.
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        raise _corrupt(path, "HTML, not an image")


def _start(path: Path) -> str:
    with path.open("rb") as file:
        return f"it starts with the bytes {file.read(8).hex(' ')}"


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of the header; None for TIFF, which Pillow turns itself."""
    if image.format == "TIFF":
        return None
    # Not image.getexif(): a PNG's own reads the pixels first.
    found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) else None


def _upright(image: Image.Image) -> Image.Image:
    """Read the pixels and turn the image upright."""
    # The orientation first: reading a PNG's pixels adds the EXIF data that may follow them.
    method = TRANSPOSES.get(_orientation(image) or 1)
    image.load()
    return image if method is None else image.transpose(method)


def _raw_mode(image: Image.Image) -> str:
    """Return how PNG and TIFF store a pixel, in Pillow's notation: "L;4" for 4-bit grey."""
    tiles = getattr(image, "tile", None)
    if not tiles or image.format not in ("PNG", "TIFF"):
        return ""
    arguments = tiles[0].args
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _wrong_mode(path: Path, mode: str, expected: str) -> DatasetCorruptError:
    grey = f"16-bit grey ({mode})" if mode.startswith("I;16") else f"mode {mode}"
    found = mode if " " in mode else NAMES.get(mode, grey)
    return DatasetCorruptError(f"{path}: {found}: expected {expected}", "convert it")


def _corrupt(path: Path, found: str) -> DatasetCorruptError:
    return DatasetCorruptError(f"{path}: {found}", f"formats: {', '.join(FORMATS)}")
