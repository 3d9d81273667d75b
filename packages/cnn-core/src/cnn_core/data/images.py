"""Read image files safely: few formats, a limit on pixels, one exception for any broken file.

Dataset files are untrusted. Few formats mean few decoders to attack, and the limit on pixels stops
a small file that decompresses to gigabytes. The bytes of a file decide its format, not its name.

All images become 8 bits per channel. Values of more bits are scaled from a range that is declared,
or from the range of 16-bit integers; nothing is clipped. Transparent parts are shown on white.

Images are rotated upright according to the EXIF orientation in the file's header. A PNG may also
have EXIF data after the pixels; it is ignored, so that `probe_image`, which reads only headers,
agrees with the functions that read pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from cnn_core.data.formats import FORMATS, HEAD, READ, described, is_readable
from cnn_core.data.pixels import (
    AS_USUAL,
    CHANNELS,
    DEEP_MODES,
    MAX_CHANNELS,
    MAX_PIXELS,
    UINT16,
    Reading,
    array_pixels,
    image_pixels,
    kind_name,
)
from cnn_core.data.tiff import Page, multichannel_page
from cnn_core.errors import DatasetCorruptError, ResourceError, UsageError
from cnn_core.text import printable

__all__ = [
    "MAX_PIXELS",
    "TRANSPOSES",
    "open_image",
    "orientation_of",
    "raw_mode",
    "read_image",
    "upright",
    "upright_copy",
    "wrong_mode",
]

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
PNG_START = b"\x89PNG\r\n\x1a\n"
# Colour profiles and texts, which the pixels do not need.
PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")


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


TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTERS = (5, 6, 7, 8)  # orientations that swap height and width


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


def read_image(
    path: Path,
    channels: int,
    reading: Reading = AS_USUAL,
    reduction: Callable[[int, int], int] | None = None,
) -> Tensor:
    """Read an image as uint8, C H W, upright, with 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    An array in a .npy file is H W or H W C and may have other numbers of channels; so may a TIFF,
    all of which are read. Of an animation, only the first frame is read. `reading` says how more
    than 8 bits and transparency are read. `reduction` returns, for a height and a width, by what
    factor the image may be scaled down while it is decoded. JPEG files are, by 2, 4 or 8, which
    takes a fraction of the time.

    Raises:
        UsageError: `channels` is not from 1 to 64, or tifffile, which reads TIFFs of several
            channels, is not installed.
        DatasetCorruptError: the file is missing, not an image, broken or too large, or has values
            of an undeclared range.
        ResourceError: there is not enough memory for the pixels.
    """
    with open_image(path, channels) as image:
        if isinstance(image, np.ndarray):
            return array_pixels(path, image, channels, reading)
        if isinstance(image, Page):
            # Nothing says that the fourth channel is alpha, as in an array beside RGB images.
            if image.shape[2] != channels:
                raise DatasetCorruptError(
                    f"{path}: {image.shape[2]} channels, expected {channels}"
                )
            return array_pixels(path, image.pixels(), channels, reading)
        _require_mode(path, image.mode)
        declared = _depth(path, image, reading)
        pixels = None
        if reduction is not None and isinstance(image, JpegImageFile):
            factor = _reduce(image, reduction)
            pixels = _decoded_quickly(image, channels) if factor == 1 else None
        if pixels is not None:
            return pixels
        return image_pixels(upright(image), channels, declared, path)


def _reduce(image: JpegImageFile, reduction: Callable[[int, int], int]) -> int:
    """Let the decoder scale an image down, in the frequency domain; return by what factor."""
    width, height = image.size
    factor = reduction(*upright_size(image))
    image.draft(image.mode, (width // factor, height // factor))
    return factor


def _decoded_quickly(image: JpegImageFile, channels: int) -> Tensor | None:
    """Return an RGB image from torchvision's decoder, or None if Pillow has to decode it.

    The pixels are those of Pillow, which copies them twice on their way to a tensor.
    """
    file = image.fp
    if file is None or image.mode != "RGB" or channels != 3 or (orientation_of(image) or 1) != 1:
        return None
    from torchvision.io import decode_jpeg

    file.seek(0)
    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        pixels: Tensor = decode_jpeg(data)
    except RuntimeError:  # Pillow has better messages, and reads some more files
        return None
    return pixels


def _depth(path: Path, image: Image.Image, reading: Reading) -> Reading:
    """Return `reading` with the file's range; raise if Pillow drops bits of the declared range."""
    raw = raw_mode(image)
    if ";16" in raw and image.mode not in DEEP_MODES and reading.value_range not in ((), UINT16):
        # Pillow keeps the upper 8 bits of each channel.
        raise DatasetCorruptError(
            f"{path}: 16-bit colour ({raw}), of which only the range 0 to 65535 can be read",
            "save it as an array, H W C, with numpy.save, or leave out value_range",
        )
    # Pillow scales the values of PGM files to 16 bits.
    known = UINT16 if image.mode == "I" and image.format == "PPM" else ()
    known = (0.0, 4095.0) if raw == "I;12" else known
    return replace(reading, value_range=reading.value_range or known)


def upright_copy(image: Image.Image, name: str) -> Image.Image:
    """Return an upright copy of an open image, with its pixels; `name` is for error messages.

    Raises:
        DatasetCorruptError: the pixels cannot be read.
    """
    _require_mode(name, image.mode)
    try:
        with _SUPPRESS_WARNINGS:
            return upright(image).copy()
    except PILLOW_ERRORS as error:
        reason = printable(str(error)) or type(error).__name__
        raise _corrupt(name, b"", f"not a readable image: {reason}") from error


@contextlib.contextmanager
def open_image(path: Path, channels: int = 1, pixels: bool = True) -> Iterator[Any]:
    """Open an image without decoding it; turn Pillow's exceptions into DatasetCorruptError.

    Yield an `Image.Image`, or an array, H W or H W C, for a .npy file, or a `Page` for a TIFF of
    several channels.
    """
    size, head = "", b""
    try:
        if not path.is_file():
            raise DatasetCorruptError(f"{path}: no such file", READ)
        with _SUPPRESS_WARNINGS, path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            if not is_readable(head, path):
                raise _corrupt(path, head)
            if head.startswith(b"\x93NUMPY"):
                yield _array(path)
                return
            if page := multichannel_page(path, file, head):
                yield page
                return
            file.seek(0)
            _require_channels(path, channels)
            with Image.open(_without_metadata(file, head, pixels), formats=FORMATS) as image:
                size = f"{image.width} x {image.height} pixels"
                if not 0 < image.width * image.height <= MAX_PIXELS:
                    raise _corrupt(path, head, f"{size}: expected 1 to {MAX_PIXELS:,}")
                yield image
    except MemoryError as error:
        raise ResourceError(f"{path}: out of memory for {size or 'its header'}") from error
    except Image.DecompressionBombError as error:
        found = f"too many pixels: expected 1 to {MAX_PIXELS:,}"
        raise _corrupt(path, head, found) from error
    except PILLOW_ERRORS as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "" if unknown else printable(str(error)) or type(error).__name__
        found = f"not a readable image: {reason or 'damaged or cut off'}"
        raise _corrupt(path, head, found) from error


def _require_channels(path: Path, channels: int) -> None:
    """Raise an error unless Pillow's images have so many channels."""
    if not 0 < channels <= MAX_CHANNELS:
        raise UsageError(f"channels = {channels}: expected 1 to {MAX_CHANNELS}")
    if channels not in CHANNELS:
        raise DatasetCorruptError(
            f"{path}: an image of 1, 3 or 4 channels, expected {channels}",
            "images of other numbers of channels are TIFFs or arrays (.npy), H W C",
        )


def _array(path: Path) -> np.ndarray:
    """Open an array, H W or H W C, without reading its values."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, so any error is possible
        raise ValueError(str(error)) from error
    numbers = array.dtype.kind in "biuf"
    channels = array.shape[2] if array.ndim == 3 else 1
    if not numbers or array.ndim not in (2, 3) or not 0 < channels <= MAX_CHANNELS:
        raise DatasetCorruptError(
            f"{path}: {array.dtype} values of shape {[*array.shape]}, expected numbers, H W or "
            f"H W C with at most {MAX_CHANNELS} channels",
            "numpy.moveaxis(array, 0, -1) turns C H W into H W C",
        )
    pixels = array.shape[0] * array.shape[1]
    if not 0 < pixels <= MAX_PIXELS:
        found = f"{array.shape[1]} x {array.shape[0]} pixels: expected 1 to {MAX_PIXELS:,}"
        raise _corrupt(path, b"", found)
    return array


def _without_metadata(file: IO[bytes], head: bytes, pixels: bool) -> IO[bytes]:
    """Return a PNG file without profiles and texts; any other file as it is.

    Pillow refuses a PNG whose profile or text inflates to more than 1 MiB, though its pixels are
    sound. Without them, nothing is inflated but the pixels, whose number is limited. Unless
    `pixels` are needed, the file is read only up to them.
    """
    if not head.startswith(PNG_START):
        return file
    kept, found = [file.read(len(PNG_START))], False
    while start := file.read(8):
        size, kind = int.from_bytes(start[:4], "big") + 4, start[4:]  # 4: the checksum
        if kind in PNG_METADATA:
            file.seek(size, io.SEEK_CUR)
            found = True
        elif kind == b"IDAT" and not pixels:
            kept.append(start)
            break
        else:
            kept.append(start + file.read(size))
    file.seek(0)
    return io.BytesIO(b"".join(kept)) if found or pixels else file


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation in the header of an image that is not decoded; 1 for none."""
    # Not image.getexif(): for a PNG, it would decode the pixels first.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) after an image that is not decoded is rotated upright."""
    width, height = image.size
    quarter = orientation_of(image) in QUARTERS
    if image.format == "TIFF":  # Pillow has swapped them already, if the orientation is a TIFF tag
        quarter ^= image.tag_v2.get(ExifTags.Base.Orientation) in QUARTERS  # type: ignore[attr-defined]
    return (width, height) if quarter else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """Decode the pixels and rotate the image upright."""
    # Get the orientation first: decoding a PNG adds the EXIF data that may follow the pixels.
    method = TRANSPOSES.get(orientation_of(image))
    image.load()
    # Pillow rotates TIFF itself while it decodes it.
    return image if method is None or image.format == "TIFF" else image.transpose(method)


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's raw mode of a PNG or TIFF, such as "L;4" for 4-bit grey; otherwise ""."""
    tiles = getattr(image, "tile", None)
    if not tiles or image.format not in ("PNG", "TIFF"):
        return ""
    arguments = tiles[0].args
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _require_mode(path: Path | str, mode: str) -> None:
    """Raise DatasetCorruptError unless the pixels can be converted."""
    if mode not in (*MODES, *DEEP_MODES):
        raise wrong_mode(path, mode, f"one of {', '.join(MODES)}")


def wrong_mode(path: Path | str, mode: str, expected: str) -> DatasetCorruptError:
    """Return the error for an image whose `mode`, Pillow's or a phrase, is not as expected."""
    return DatasetCorruptError(f"{path}: {kind_name(mode)}: expected {expected}", "convert it")


def _corrupt(path: Path | str, head: bytes, found: str = "") -> DatasetCorruptError:
    """Return the error for a file; without `found`, it says what the file is, if not an image."""
    text = found or described(head, Path(path))
    return DatasetCorruptError(f"{path}: {text}", READ)
