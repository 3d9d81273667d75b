"""Say what the header of an image file tells, without reading the pixels."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cnn_core.data.images import (
    PILLOW_ERRORS,
    TRANSPOSES,
    open_image,
    orientation_of,
    raw_mode,
    upright_size,
)
from cnn_core.data.pixels import DEEP_MODES, has_alpha
from cnn_core.data.tiff import Page

__all__ = ["Facts", "image_facts", "probe_image"]

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TRAILER = 4096  # bytes at the end of a file in which its end marker is looked for


@dataclass(frozen=True)
class Facts:
    """What the header of an image file says.

    `size` is (height, width), upright. `mode` is Pillow's, or the type of an array's values.
    `channels` is 1 for grey, 3 for colour, or those of an array or a TIFF of several channels.
    `turned` says that the EXIF orientation turns or mirrors it, `alpha` that it may have
    transparent parts, `deep` that it has more than 8 bits per channel, `sixteen` that it has the
    range 0 to 65535 unless another one is declared, and `lost` what is not read, or "". `whole` is
    false if a JPEG or PNG file may be cut off.
    """

    size: tuple[int, int]
    mode: str
    channels: int
    turned: bool = False
    alpha: bool = False
    deep: bool = False
    sixteen: bool = False
    lost: str = ""
    whole: bool = True


def probe_image(path: Path) -> tuple[int, int, str]:
    """Return height and width of the upright image and its Pillow mode; read only the header.

    Raises:
        DatasetCorruptError: the file is missing, not an image or too large, or its header is
            broken.
    """
    facts = image_facts(path)
    return *facts.size, facts.mode


def image_facts(path: Path) -> Facts:
    """Return what the header of an image says, without reading the pixels.

    Raises:
        DatasetCorruptError: as for `probe_image`.
    """
    with open_image(path, pixels=False) as image:
        if isinstance(image, np.ndarray):
            channels = 1 if image.ndim == 2 else image.shape[2]
            kind, deep = str(image.dtype), image.dtype not in (np.uint8, np.bool_)
            return Facts(image.shape[:2], kind, channels, deep=deep, sixteen=kind == "uint16")
        if isinstance(image, Page):
            return Facts(
                size=image.shape[:2],
                mode=str(image.dtype),
                channels=image.shape[2],
                turned=image.orientation in TRANSPOSES,
                deep=image.dtype != np.uint8,
                sixteen=image.dtype == np.uint16,
                lost=PAGES if image.more else "",
            )
        raw = raw_mode(image)
        return Facts(
            size=upright_size(image),
            mode=image.mode,
            channels=1 if image.mode in (*GREY, *DEEP_MODES) else 3,
            turned=orientation_of(image) in TRANSPOSES,
            alpha=has_alpha(image),
            deep=image.mode in DEEP_MODES or ";16" in raw,
            sixteen=";16" in image.mode + raw or (image.mode == "I" and image.format == "PPM"),
            lost=_lost(image),
            whole=_is_whole(path, image),
        )


GREY = ("1", "L", "LA", "La")
PAGES = "frames or pages after the first"


def _is_whole(path: Path, image: Image.Image) -> bool:
    """Return whether a JPEG or PNG file has its end marker; True for other formats.

    After a broken download, it has not. If there is much data behind the image, it is not found.
    """
    marker = END_MARKERS.get(image.format or "")
    if marker is None:
        return True
    if isinstance(image, JpegImageFile) and image.fp is not None:  # saves opening it again
        return marker in _end_of(image.fp)
    with path.open("rb") as file:
        return marker in _end_of(file)


def _end_of(file: IO[bytes]) -> bytes:
    file.seek(max(file.seek(0, io.SEEK_END) - TRAILER, 0))
    return file.read()


def _lost(image: Image.Image) -> str:
    """Return which part of an image file is not read, or "" if all of it is."""
    # The second image of an MPO is a preview, or the same scene for another display.
    # Errors are ignored: the first frame may be sound even if later ones are broken.
    with contextlib.suppress(*PILLOW_ERRORS):
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            return PAGES
    return ""
