"""Decode single samples of a split on disk, and cut random crops out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED, Draws
from cnn_core.data.mask_image import DEPTH, exif_orientation, hexadecimal, read_mask, turned
from cnn_core.data.resizing import resize_images
from cnn_core.data.splits import Files, Item, read_pixels
from cnn_core.errors import DatasetCorruptError

__all__ = ["Center", "Decoder", "Sample", "Size", "sides"]

MAX_LISTED = 12  # values that an error names

Sample = tuple[Tensor, Tensor]
Size = tuple[int, int]  # height, width
Center = Callable[[Tensor], Tensor]  # cuts out a part of an image, uint8 C H W


@dataclass(frozen=True)
class Decoder:
    """Read single samples of a split on disk: an image, uint8 C H W, and its target.

    Images are resized to `size`, if given; masks too, by nearest neighbour. With `draws`, images
    are randomly cropped before they are resized, with aspect ratios in pixels if `true_aspect`. If
    `required_size` is given, an image of another size raises DatasetCorruptError. A `center`, such
    as `Preprocessing.center_cropped`, replaces the resizing.
    """

    files: Files
    size: Size | None
    draws: Draws | None = None
    required_size: Size | None = None
    center: Center | None = None
    true_aspect: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        files, path = self.files, self.files.images[index]
        crop = None if self.draws is None else _Crop(self.draws, index, self.true_aspect)
        if isinstance(files.targets, Tensor):
            return self._resized(self._image(path, crop), crop), files.targets[index]
        image, mask = self._image(path), _read_classes(files, index)
        if mask.shape != image.shape[1:]:
            raise DatasetCorruptError(
                f"{files.targets[index]}: mask is {sides(mask.shape)}, its image is "
                f"{sides(image.shape)}{_exif_note(path)}"
            )
        return self._resized(image, crop), self._resized_mask(mask, crop)

    def _image(self, path: Path, crop: _Crop | None = None) -> Tensor:
        """Return an image, or one that is scaled down as far as its `crop` allows."""
        files, size = self.files, self.size

        def reduction(height: int, width: int) -> int:
            self._require_size(path, (height, width))
            return 1 if crop is None or size is None else crop.reduction(size, height, width)

        asked = None if crop is None else reduction
        image = read_pixels(path, files.channels, files.reading, asked)
        if crop is None or not crop.fractions:  # not asked, or of a format that is not reduced
            self._require_size(path, image.shape)
        return image

    def _require_size(self, path: Path, shape: Sequence[int]) -> None:
        # Packed images have the size that training needs.
        if self.required_size is None or isinstance(path, Item):
            return
        if tuple(shape[-2:]) != self.required_size:
            expected = sides(self.required_size)
            raise DatasetCorruptError(f"{path}: {sides(shape)} pixels, expected {expected}")

    def _resized(self, image: Tensor, crop: _Crop | None) -> Tensor:
        image = image if crop is None else crop(image)
        if self.center is not None:
            return self.center(image)
        if self.size is None or image.shape[-2:] == self.size:
            return image
        return resize_images(image[None], self.size, quick=crop is not None)[0]

    def _resized_mask(self, mask: Tensor, crop: _Crop | None) -> Tensor:
        mask = mask if crop is None else crop(mask)
        if self.size is None or mask.shape == self.size:
            return mask
        scaled = F.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")
        return scaled[0, 0].to(torch.uint8)


class _Crop:
    """The random crop of a sample, the same for its image and its mask.

    The in-memory pipeline mirrors before it crops. Here mirroring comes after, so the box is
    mirrored, to cut out the same region.
    """

    def __init__(self, draws: Draws, index: int, true_aspect: bool) -> None:
        self.draws, self.index, self.true_aspect = draws, np.array([index]), true_aspect
        self.mirrored = bool(draws.shifts(self.index).flipped[0])
        self.fractions: list[float] = []

    def __call__(self, image: Tensor) -> Tensor:
        """Return the crop of an image, … H W."""
        top, left, tall, wide = self.box(*image.shape[-2:])
        return image[..., top : top + tall, left : left + wide]

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop, rounded to whole pixels."""
        if not self.fractions:
            aspect = height / width if self.true_aspect else 1.0
            self.fractions = self.draws.crop_boxes(self.index, aspect)[0].tolist()
        down, across, high, broad = self.fractions
        tall, wide = max(round(high * height), 1), max(round(broad * width), 1)
        top, left = min(round(down * height), height - tall), round(across * width)
        left = min(left, width - wide)
        return top, width - wide - left if self.mirrored else left, tall, wide

    def reduction(self, size: Size, height: int, width: int) -> int:
        """Return by what factor an image may be scaled down, so that its crop still has `size`."""
        _, _, tall, wide = self.box(height, width)
        return max(min(tall // size[0], wide // size[1]), 1)


def _exif_note(path: Path) -> str:
    """Return a hint if EXIF turns an image, so that its mask may have another size, else ""."""
    turns = exif_orientation(path) != 1
    return " after EXIF turned it; see turn_masks in dataset.toml" if turns else ""


def sides(shape: Sequence[int]) -> str:
    """Return height and width, the last of a shape, as text: "375x500"."""
    return f"{shape[-2]}x{shape[-1]}"


def _read_classes(files: Files, index: int) -> Tensor:
    """Return a mask, uint8 H W, with its values replaced by class numbers."""
    path = files.targets[index]
    if isinstance(path, Item):  # of a pack, which has class numbers
        return path.read(path.index, 1, files.reading)
    assert not isinstance(path, Tensor)
    mask = read_mask(path, files.in_colour)
    if files.turn_masks and exif_orientation(path) == 1:
        mask = turned(mask, exif_orientation(files.images[index]))
    numbers = _class_numbers(mask, files)
    if (unknown := numbers > IGNORED).any():
        value, (row, column) = int(mask[unknown][0]), unknown.nonzero()[0].tolist()
        name = hexadecimal if files.in_colour else str
        allowed = ", ".join(name(known) for known in sorted(files.values)[:MAX_LISTED])
        more = ", …" if len(files.values) > MAX_LISTED else ""
        raise DatasetCorruptError(
            f"{path}: value {name(value)} at row {row}, column {column}, expected one of "
            f"{allowed}{more}"
        )
    return numbers.to(torch.uint8)


def _class_numbers(mask: Tensor, files: Files) -> Tensor:
    """Return class numbers, int16 H W; 256 marks values without a class."""
    if not files.in_colour:
        # Not uint8, which ends at 255.
        table = torch.full((DEPTH if mask.dtype != torch.uint8 else 256,), IGNORED + 1)
        for value, number in files.values.items():
            if value < len(table):
                table[value] = number
        return table.to(torch.int16)[mask.long()]
    keys = torch.tensor(sorted(files.values), dtype=torch.int32)
    numbers = torch.tensor([files.values[int(key)] for key in keys], dtype=torch.int16)
    place = torch.searchsorted(keys, mask.contiguous()).clamp(max=len(keys) - 1)
    return numbers[place].where(keys[place] == mask, IGNORED + 1)
