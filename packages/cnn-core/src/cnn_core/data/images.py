"""Read image files safely: five formats, a limit on pixels, one exception for any broken file.

Dataset files are untrusted. Few formats mean few decoders to attack, and the limit on pixels stops
a small file that decompresses to gigabytes.

Images are rotated upright according to the EXIF orientation in the file's header. A PNG may also
have EXIF data after the pixels; it is ignored, so that `probe_image`, which reads only headers,
agrees with the functions that read pixels.
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
from torch.nn import functional as F

from cnn_core.errors import DatasetCorruptError, ResourceError, UsageError
from cnn_core.text import printable

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "image_pixels",
    "probe_image",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_images",
    "upright_copy",
]

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000  # 300 MB as RGB

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
MASK_MODES = ("1", "L", "P")
MODE_NAMES = {"I": "32-bit integers (I)", "F": "32-bit floats (F)"}

# Undocumented: Pillow's decoders raise these exceptions on broken and on malicious files.
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

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _SuppressWarnings:
    """Suppress warnings while any thread reads an image.

    Warning filters are per process, not per thread. If each thread saved and restored them, one
    thread could permanently restore the filters of another. So the first reader saves them, and
    the last one restores them.
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


_SUPPRESS_WARNINGS = _SuppressWarnings()


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image as uint8, C H W, upright, with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Of an animation, only the first frame is read. Without a fourth channel, transparency is
    dropped.

    Raises:
        UsageError: `channels` is not 1, 3 or 4.
        DatasetCorruptError: the file is missing, not an image, broken or too large, or has more
            than 8 bits per channel.
        ResourceError: there is not enough memory for the pixels.
    """
    if channels not in CHANNELS:
        raise UsageError(f"channels = {channels}: expected 1, 3 or 4")
    with _open(path) as image:
        _require_mode(path, image.mode)
        return image_pixels(_upright(image), channels)


def image_pixels(image: Image.Image, channels: int) -> Tensor:
    """Return an image as uint8, C H W, with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    mode = CHANNELS[channels]
    converted = image if image.mode == mode else image.convert(mode)  # convert() would copy
    pixels = torch.from_numpy(np.array(converted))
    return pixels.view(converted.height, converted.width, channels).permute(2, 0, 1).contiguous()


def upright_copy(image: Image.Image, name: str) -> Image.Image:
    """Return an upright copy of an open image, with its pixels; `name` is for error messages.

    Raises:
        DatasetCorruptError: the pixels cannot be read, or have more than 8 bits per channel.
    """
    _require_mode(name, image.mode)
    try:
        with _SUPPRESS_WARNINGS:
            return _upright(image).copy()
    except PILLOW_ERRORS as error:
        reason = printable(str(error)) or type(error).__name__
        raise _corrupt(name, f"not a readable image: {reason}") from error


def read_mask(path: Path) -> Tensor:
    """Read a mask as uint8, H W, upright: its grey values or palette indices.

    A 1-bit mask has the values 0 and 255.

    Raises:
        DatasetCorruptError: the file is missing, not an image, broken or too large; is neither
            grey nor a palette image; or has 2 or 4 bits of grey, which Pillow rescales to 0-255.
        ResourceError: there is not enough memory for the pixels.
    """
    with _open(path) as image:
        if image.mode not in MASK_MODES:
            raise _wrong_mode(path, image.mode, "grey or a palette (1, L or P)")
        if (raw := _raw_mode(image)).startswith(("L;2", "L;4")):
            raise _wrong_mode(path, f"{raw[2]}-bit grey ({raw})", "1 or 8 bits, or a palette")
        mask = _upright(image)
        mask = mask.convert("L") if mask.mode == "1" else mask
    return torch.from_numpy(np.array(mask))


def resize_image(image: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resize an image, uint8 C H W, to (height, width) with Pillow's antialiasing.

    `interpolation` is "bilinear" or "bicubic". torch's antialiasing differs from Pillow's by up to
    one grey level, and published weights were evaluated with Pillow.
    """
    # Pillow has images of three channels, and of one, but not of two or five.
    parts = [image] if len(image) == 3 else image.split(1)
    resized = [
        np.asarray(
            Image.fromarray(part.permute(1, 2, 0).squeeze(2).numpy()).resize(
                size[::-1], RESAMPLING[interpolation]
            )
        )
        for part in parts
    ]
    pixels = torch.from_numpy(np.stack(resized, -1) if len(image) != 3 else resized[0].copy())
    return pixels.permute(2, 0, 1).contiguous()


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images, uint8 N C H W, to (height, width), bilinear with torch's antialiasing.

    The pixels are rounded to whole grey levels again.
    """
    scaled = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def probe_image(path: Path) -> tuple[int, int, str]:
    """Return height and width of the upright image and its Pillow mode; read only the header.

    Raises:
        DatasetCorruptError: the file is missing, not an image or too large, or its header is
            broken.
    """
    with _open(path) as image:
        quarter_turn = _orientation(image) in (5, 6, 7, 8)  # it swaps height and width
        height, width = image.size if quarter_turn else image.size[::-1]
        return height, width, image.mode


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding it; turn Pillow's exceptions into DatasetCorruptError."""
    size = ""
    try:
        if not path.is_file():
            raise _corrupt(path, "no such file")
        with _SUPPRESS_WARNINGS, path.open("rb") as file:
            _check_start(path, file)
            with Image.open(file, formats=FORMATS) as image:
                size = f"{image.width} x {image.height} pixels"
                if not 0 < image.width * image.height <= MAX_PIXELS:
                    raise _corrupt(path, f"{size}: expected 1 to {MAX_PIXELS:,}")
                yield image
    except UnidentifiedImageError as error:
        raise _corrupt(path, f"not a readable image; {_first_bytes(path)}") from error
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
    # Servers often send a login or error page instead of the file: give it its own message.
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        raise _corrupt(path, "HTML, not an image")


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return f"it starts with the bytes {file.read(8).hex(' ')}"


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation in the header; None for TIFF, which Pillow rotates itself."""
    if image.format == "TIFF":
        return None
    # Not image.getexif(): for a PNG, it would decode the pixels first.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) else None


def _upright(image: Image.Image) -> Image.Image:
    """Decode the pixels and rotate the image upright."""
    # Get the orientation first: decoding a PNG adds the EXIF data that may follow the pixels.
    method = TRANSPOSES.get(_orientation(image) or 1)
    image.load()
    return image if method is None else image.transpose(method)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's raw mode of a PNG or TIFF, such as "L;4" for 4-bit grey; otherwise ""."""
    tiles = getattr(image, "tile", None)
    if not tiles or image.format not in ("PNG", "TIFF"):
        return ""
    arguments = tiles[0].args
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _require_mode(path: Path | str, mode: str) -> None:
    """Raise DatasetCorruptError unless the pixels can be converted without loss of depth."""
    if mode not in MODES:
        deep = mode.startswith("I") or mode == "F"
        # Pillow would silently convert deep images to 8 bits, and clip most values.
        expected = "8 bits per channel" if deep else f"one of {', '.join(MODES)}"
        raise _wrong_mode(path, mode, expected)


def _wrong_mode(path: Path | str, mode: str, expected: str) -> DatasetCorruptError:
    default = f"16-bit grey ({mode})" if mode.startswith("I;16") else f"mode {mode}"
    found = mode if " " in mode else MODE_NAMES.get(mode, default)
    return DatasetCorruptError(f"{path}: {found}: expected {expected}", "convert it")


def _corrupt(path: Path | str, found: str) -> DatasetCorruptError:
    return DatasetCorruptError(f"{path}: {found}", f"formats: {', '.join(FORMATS)}")
