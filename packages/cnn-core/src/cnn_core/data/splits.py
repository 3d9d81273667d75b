"""The splits of a dataset, in memory or on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.compact import Compact
from cnn_core.data.images import read_image
from cnn_core.data.pixels import AS_USUAL, Reading

__all__ = [
    "Files",
    "Item",
    "Split",
    "Subset",
    "below_common_folder",
    "read_pixels",
    "single_classes",
]


@dataclass(frozen=True)
class Split:
    """A split in memory: images, uint8 N C H W, and targets.

    Targets are class numbers from 0: int64, N, for classification, and uint8, N H W, for
    segmentation, where 255 marks ignored pixels. For multilabel they are uint8, N x classes: 1 if
    an image is of the class, else 0. `weights`, float32, are loss weights of images, N, or of
    pixels, N H W; None weights all equally. `groups`, int64 N, number what images have in common,
    such as a patient: the images of one group are never divided between training and validation.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Split:
        """Return the samples at `indices`."""
        weights, groups = (
            None if values is None else values[indices] for values in (self.weights, self.groups)
        )
        return Split(self.images[indices], self.targets[indices], weights, groups)

    def view(self, indices: Tensor) -> Subset:
        """Return the samples at `indices`, which share the tensors of this split."""
        return Subset(self.images, self.targets, self.weights, self.groups, rows=indices)


@dataclass(frozen=True)
class Subset(Split):
    """Some samples of a split, sharing its tensors: `rows`, N, are their positions in them."""

    rows: Tensor = field(kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Tensor) -> Subset:
        """Return the samples at `indices`."""
        return replace(self, rows=self.rows[indices])

    view = subset


@dataclass(frozen=True)
class Files:
    """A split on disk: image files, with labels as in `Split`, or mask files as targets.

    `channels` is 1 (grey), 3 (RGB), or the number of channels of arrays; `reading` says how pixels
    become 8 bits. `values` maps mask values to class numbers, or to 255 for ignored pixels; with
    `in_colour` they are colours, 0xRRGGBB. With `turn_masks`, masks without an EXIF orientation
    are turned by that of their image. `groups` are as in `Split`.
    `weights`, float32 N, are the weights of the images in the loss, or None. `bad` records the
    files that cannot be decoded, and says how many may be skipped; None: none of them.
    """

    images: Sequence[Path]
    targets: Tensor | Sequence[Path]
    channels: int = 3
    values: Mapping[int, int] = field(default_factory=dict)
    in_colour: bool = False
    turn_masks: bool = False
    reading: Reading = field(default_factory=Reading)
    groups: Tensor | None = None
    weights: Tensor | None = None
    bad: BadSamples | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Files:
        """Return the samples at `indices`."""
        images = _taken(self.images, indices)
        weights, groups = (
            None if values is None else values[indices] for values in (self.weights, self.groups)
        )
        targets: Tensor | Sequence[Path]
        if isinstance(self.targets, Tensor):
            targets = self.targets[indices]
        else:
            targets = _taken(self.targets, indices)
        return replace(self, images=images, targets=targets, weights=weights, groups=groups)

    view = subset


def _taken(paths: Sequence[Path], indices: Tensor) -> Sequence[Path]:
    if isinstance(paths, Compact):
        return paths.take(indices)
    return tuple(paths[n] for n in indices.tolist())


@dataclass(frozen=True)
class Item:
    """An image of a Python object, used where files have a path.

    `read(index, channels, reading)` decodes it.
    """

    read: Callable[[int, int, Reading], Tensor]
    index: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def __fspath__(self) -> str:
        return f"/{self.name}/{self.index}"


def read_pixels(
    image: Path | Item,
    channels: int,
    reading: Reading = AS_USUAL,
    reduction: Callable[[int, int], int] | None = None,
) -> Tensor:
    """Return an image of a split on disk, uint8 C H W; for `reduction`, see `read_image`."""
    if isinstance(image, Item):
        return image.read(image.index, channels, reading)
    return read_image(image, channels, reading, reduction)


def below_common_folder(paths: Sequence[Path]) -> list[str]:
    """Return paths relative to the last folder that contains all of them."""
    names = [os.fspath(path) for path in paths]
    # What the first and the last have in common, all have.
    root = os.path.commonpath([min(names), max(names)])
    if any(".." in name for name in names):
        return [os.path.relpath(name, root) for name in names]
    start = len(os.path.join(root, ""))
    return [name[start:] for name in names]


def single_classes(targets: Tensor) -> Tensor:
    """Return one class for each image, N: the rarest of several; without any, a further number."""
    if targets.ndim == 1:
        return targets
    counts = targets.sum(0, dtype=torch.int64)
    frequencies = counts.where(targets.bool(), len(targets) + 1)
    return frequencies.argmin(1).where(targets.bool().any(1), targets.shape[1])
