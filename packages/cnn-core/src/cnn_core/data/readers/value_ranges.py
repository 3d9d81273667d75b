"""Find images of more than 8 bits whose range of values is smaller than that of others."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cnn_core.data.images import open_image, raw_mode
from cnn_core.data.pixels import DEEP_MODES, UINT16
from cnn_core.data.tiff import Page
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted

__all__ = ["Ranges", "ranges_of", "value_bounds"]

MAX_DECODED = 20  # images of a group that are looked at, if there are few groups
MAX_IN_ALL = 200
DARK = 4  # times lower than the range of 16 bits
LOWER = 3.5  # times lower than the range of others; 10 bits are nearly 4 times lower than 12
LEAST = 3  # images of a group, to judge it by
FEW = 0.1  # of all images; a smaller group of files may be of dark scenes
BITS = (8, 10, 12, 14)  # of cameras
FULL = 0.9  # of the range of so many bits is used by a group of images of that range
SHOWN = 3  # groups that a line names


@dataclass(frozen=True)
class Ranges:
    """The highest value in each group of images, and in each image that was looked at."""

    groups: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[Path, float] = field(default_factory=dict)

    def unused(self, colour: bool) -> list[str]:
        """Return a line if all images have values of fewer than 16 bits, as of a 12-bit camera.

        Of files in `colour`, no other range can be read.
        """
        highest = max(self.images.values(), default=0.0)
        if not 0 < highest < UINT16[1] / DARK:
            return []
        way_out = f"value_range = [0, {_range(highest)}] may be meant"
        if colour:
            way_out = "save them with values up to 65535, or as arrays with numpy.save"
        return [
            f"values up to {highest:g} in {counted(len(self.images), 'image')}, read as 0 to "
            f"65535, become very dark: {way_out}"
        ]

    def different(self) -> tuple[list[str], list[str]]:
        """Return notes and faults on groups of images with a smaller range than others."""
        top = max(self.groups.values(), default=0.0)
        dark = {name: high for name, high in self.groups.items() if 0 < LOWER * high < top}
        if dark:
            bright = max(self.groups, key=self.groups.__getitem__)
            listed = ", ".join(f"{high:g} in {name}" for name, high in list(dark.items())[:SHOWN])
            more = ", …" if len(dark) > SHOWN else ""
            return [], [
                f"images of different ranges: values up to {top:g} in {bright}, but only up to "
                f"{listed}{more}: read alike, these are very dark; save all with one range, or "
                "declare value_range if they show dark things"
            ]
        return self._two_kinds()

    def _two_kinds(self) -> tuple[list[str], list[str]]:
        """Return notes and faults on files with a smaller range, without a class of their own."""
        order = sorted(self.images, key=self.images.__getitem__)
        high = [self.images[path] for path in order]
        least = max(LEAST, FEW * len(order))
        cuts = [n for n in range(1, len(high)) if high[n] > LOWER * high[n - 1] > 0]
        cuts = [n for n in cuts if min(n, len(high) - n) >= least]
        if not cuts:
            return [], []
        cut = cuts[-1]
        line = (
            f"images of two ranges: values up to {high[cut - 1]:g} in {cut:,} images, such "
            f"as {order[cut - 1]}, and {high[cut]:g} or more in {len(high) - cut:,}, such as "
            f"{order[-1]}: read alike, the former are very dark"
        )
        # Dark scenes end anywhere; a smaller range is used up to its end.
        ends = any(FULL * (2**bits - 1) <= high[cut - 1] < 2**bits for bits in BITS)
        return ([], [line]) if ends else ([line], [])


def ranges_of(groups: Mapping[str, Sequence[Path]], every: bool = False) -> Ranges:
    """Return the highest values in groups of images, in some images of each or in `every` one.

    Files that cannot be read are reported when all are decoded.
    """
    highest, images = {}, dict[Path, float]()
    most = min(MAX_DECODED, max(MAX_IN_ALL // max(len(groups), 1), LEAST))
    for name, paths in groups.items():
        step = 1 if every else -(-len(paths) // most)
        for path in paths[:: step or 1]:
            with contextlib.suppress(DatasetCorruptError):
                images[path] = value_bounds(path)[1]
        seen = [images[path] for path in paths if path in images]
        if len(seen) >= LEAST:
            highest[name] = max(seen)
    return Ranges(highest, images)


def _range(highest: float) -> int:
    """Return the highest value of the fewest bits that can hold `highest`."""
    return (1 << int(highest).bit_length()) - 1


def value_bounds(path: Path) -> tuple[float, float]:
    """Return the lowest and the highest value in a file, as they are stored.

    Of 16-bit colour, of which the upper 8 bits are read, they are multiples of 257.

    Raises:
        DatasetCorruptError: as for `read_image`.
    """
    with open_image(path) as image:
        scale = 1
        if isinstance(image, Image.Image) and ";16" in raw_mode(image):
            scale = 1 if image.mode in DEEP_MODES else 257
        values = image.pixels() if isinstance(image, Page) else np.asarray(image)
        return scale * float(values.min()), scale * float(values.max())
