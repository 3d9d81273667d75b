"""TIFF files of several channels, such as those of a satellite or a microscope, with tifffile.

Grey and colour TIFFs, with or without alpha, are Pillow's. It reads none of these files right:
some are refused, of some only the first channels are read, and 16 bits in planes are garbled.

The files are untrusted. The size is checked from the tags of the first page before any pixel is
read. Of the codecs, few are used, and what they may unpack is bounded.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cnn_core.data.pixels import MAX_CHANNELS, MAX_PIXELS
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import printable

__all__ = ["Page", "multichannel_page"]

MAX_VALUES = 4 * MAX_PIXELS  # as many as the largest RGBA image
# Tags, by the numbers of TIFF 6.0.
BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 258, 259, 262, 274
WIDTH, HEIGHT, SAMPLES, PLANAR, EXTRA, SAMPLE_FORMAT = 256, 257, 277, 284, 338, 339
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # samples of a colour, by PHOTOMETRIC
GREY_OR_RGB = (1, 2)
ALPHA = (1, 2)  # in EXTRA: premultiplied or not
SEPARATE = 2  # in PLANAR: C H W
KINDS = {1: "u", 2: "i", 3: "f"}  # by SAMPLE_FORMAT
DEFLATE = (8, 32946)
CODECS = {1: "none", 5: "LZW", 32773: "PackBits", **dict.fromkeys(DEFLATE, "deflate")}
HINT = "save it without compression or with deflate, or as an array, H W C, with numpy.save"


@dataclass(frozen=True)
class Page:
    """The first page of a TIFF of several channels: what its tags say.

    `shape` is (height, width, channels), upright; `more` says that pages follow.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    orientation: int
    more: bool

    def pixels(self) -> npt.NDArray[Any]:
        """Read the values, H W C, upright.

        Raises:
            UsageError: tifffile is not installed.
            DatasetCorruptError: the page has no such pixels.
        """
        tifffile = _require_tifffile(self)
        try:
            with tifffile.TiffFile(self.path) as file:
                values = _values(file, self)
        except (DatasetCorruptError, MemoryError):
            raise
        except Exception as error:  # tifffile raises many types of exception on broken files
            reason = printable(str(error)) or type(error).__name__
            raise DatasetCorruptError(
                f"{self.path}: not a readable TIFF of several channels: {reason}", HINT
            ) from error
        return _upright(values, self.orientation)


def multichannel_page(path: Path, file: IO[bytes], head: bytes) -> Page | None:
    """Return the first page of a TIFF of several channels, or None if Pillow is to read the file.

    `head` is its beginning. Afterwards `file` is somewhere else.

    Raises:
        UsageError: tifffile is not installed.
        DatasetCorruptError: it is too large, or of a kind that is not read.
    """
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0"):
        return None
    try:
        tags = ImageFileDirectory_v2(head[: 16 if head[2] == ord("+") else 8])
        file.seek(tags.next)
        tags.load(file)
        if _is_pillows(tags):
            return None
    except Exception:  # of many types; Pillow says what is wrong when it opens the file
        return None
    height, width, channels = (int(tags.get(tag, 1)) for tag in (HEIGHT, WIDTH, SAMPLES))
    orientation = int(tags.get(ORIENTATION, 1))
    if orientation >= 5:  # turned by a quarter
        height, width = width, height
    page = Page(
        path, (height, width, channels), _dtype(path, tags), orientation, more=tags.next != 0
    )
    _require_size(page)
    if (found := tags.get(PHOTOMETRIC)) not in GREY_OR_RGB:
        raise DatasetCorruptError(
            f"{path}: {channels} channels of photometric interpretation {found}, expected 1 or 2",
            HINT,
        )
    _require_tifffile(page)  # now, not at the first image of an epoch
    return page


def _is_pillows(tags: Mapping[int, Any]) -> bool:
    """Return whether a page is grey or in colour, in a form that Pillow reads right."""
    samples, extra = tags.get(SAMPLES, 1), _all(tags.get(EXTRA, ()))
    if samples == 1:
        return True
    alpha = sum(kind in ALPHA for kind in extra)
    unnamed = samples - alpha > COLOURS.get(tags.get(PHOTOMETRIC, -1), samples)
    bits, deepest = _all(tags.get(BITS, 1)), 16
    if tags.get(PLANAR) == SEPARATE:
        deepest = 8
    kinds = _all(tags.get(SAMPLE_FORMAT, 1))
    return not unnamed and max(bits) <= deepest and set(kinds) == {1}


def _all(value: Any) -> tuple[Any, ...]:
    """Return the values of a tag, which Pillow gives as a number if there is only one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _dtype(path: Path, tags: Mapping[int, Any]) -> np.dtype:
    bits, kinds = ({*_all(tags.get(tag, 1))} for tag in (BITS, SAMPLE_FORMAT))
    if len(bits) == len(kinds) == 1:
        (size,), (kind,) = bits, kinds
        if kind in KINDS and size in (8, 16, 32, 64) and (kind, size) != (3, 8):
            return np.dtype(f"{KINDS[kind]}{size // 8}")
    raise DatasetCorruptError(
        f"{path}: channels of {sorted(bits)} bits in the sample formats {sorted(kinds)}: expected "
        "integers or floats, all of one kind, of 8, 16, 32 or 64 bits",
        HINT,
    )


def _require_size(page: Page) -> None:
    height, width, channels = page.shape
    if not 0 < channels <= MAX_CHANNELS:
        raise DatasetCorruptError(
            f"{page.path}: {channels:,} channels, expected at most {MAX_CHANNELS}"
        )
    if not 0 < height * width <= min(MAX_PIXELS, MAX_VALUES // channels):
        raise DatasetCorruptError(
            f"{page.path}: {width} x {height} pixels of {channels} channels: expected 1 to "
            f"{MAX_PIXELS:,} pixels, and at most {MAX_VALUES:,} values"
        )


def _require_tifffile(page: Page) -> Any:
    """Return the module tifffile; raise UsageError if it is not installed."""
    try:
        import tifffile
    except ImportError as error:
        message = f"{page.path}: a TIFF of {page.shape[2]} channels, and tifffile is not installed"
        raise UsageError(message, 'pip install "cnn-core[tiff]"') from error
    return tifffile


def _values(file: Any, page: Page) -> npt.NDArray[Any]:
    """Return the values of the first page, H W C, as they are stored.

    Raises:
        DatasetCorruptError: pixels are missing, or packed in a way that is not read.
    """
    found = file.pages[0]
    height, width, channels = page.shape
    if page.orientation >= 5:
        height, width = width, height
    # Two libraries have read the tags. Only what both say has been checked.
    depths, planes = (channels, 1) if found.planarconfig == SEPARATE else (1, channels)
    if (*found.shaped, found.dtype) != (depths, 1, height, width, planes, page.dtype):
        raise DatasetCorruptError(f"{page.path}: its tags contradict each other")
    _require_segments(found, page)
    values: npt.NDArray[Any] = found.asarray(squeeze=False, maxworkers=1)
    return np.moveaxis(values[:, 0], 0, 2).reshape(height, width, channels)


def _require_segments(found: Any, page: Page) -> None:
    """Raise DatasetCorruptError unless all strips or tiles are there and unpack to their size."""
    if (codec := int(found.compression)) not in CODECS:
        raise DatasetCorruptError(f"{page.path}: compressed with method {codec}", HINT)
    segments = list(zip(found.dataoffsets, found.databytecounts, strict=True))
    size = found.parent.filehandle.size
    # What is missing would be read as 0.
    whole = all(count > 0 and 0 < start <= size - count for start, count in segments)
    if not whole or len(segments) < (1 if found.is_contiguous else math.prod(found.chunked)):
        raise DatasetCorruptError(f"{page.path}: cut off: a part of the pixels is missing")
    values = math.prod(found.chunks)
    if values > MAX_VALUES:
        raise DatasetCorruptError(f"{page.path}: tiles of {values:,} values")
    if codec in DEFLATE:
        for start, count in segments:
            found.parent.filehandle.seek(start)
            packed, limit = found.parent.filehandle.read(count), values * page.dtype.itemsize
            # zlib.decompress, which tifffile uses, unpacks a small strip to any size.
            if len(zlib.decompressobj().decompress(packed, limit + 1)) > limit:
                raise DatasetCorruptError(f"{page.path}: a strip or tile unpacks to too much")


def _upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Return an image, H W C, turned upright as Pillow turns one with this orientation."""
    match orientation:
        case 2:
            return values[:, ::-1]
        case 3:
            return values[::-1, ::-1]
        case 4:
            return values[::-1]
        case 5:
            return values.swapaxes(0, 1)
        case 6:
            return values.swapaxes(0, 1)[:, ::-1]
        case 7:
            return values[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return values.swapaxes(0, 1)[::-1]
    return values
