"""Use a dataset with a network that was trained on another one: match classes and channels."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset
from cnn_core.data.splits import Files, Split
from cnn_core.data.streaming import decode_to_memory
from cnn_core.errors import UsageError
from cnn_core.registry import get_spec
from cnn_core.text import printable
from cnn_core.weights.native import Weights

__all__ = ["matched", "with_channels"]

log: logging.Logger = logging.getLogger("cnn_core")

T = TypeVar("T", bound=Hashable)
SHOWN = 5  # class names in an error
LUMA = (19595, 38470, 7471)  # ITU-R 601, in 1/65536, as in Pillow


def matched(dataset: Dataset, weights: Weights, name: str) -> Dataset:
    """Return a dataset with the class numbers and the channels of a trained network.

    Classes are matched by name, regardless of case, spaces, hyphens and underscores. The dataset
    may lack some of the network's classes. `name` is the dataset's name for error messages.

    Raises:
        UsageError: a class of the dataset matches no class of the network, or several; two classes
            match the same one; or the network has another task.
    """
    task = weights.task or get_spec(weights.model).task
    if dataset.spec.task != task:
        raise UsageError(f"'{name}' is for {dataset.spec.task}, '{weights.model}' for {task}")
    numbers = _numbers(dataset.spec.classes, weights, name)
    if dataset.spec.classes != weights.classes:
        log.warning(
            "%s: classes matched by name: %s of the network's %s",
            printable(name),
            f"{len(numbers):,}",
            f"{len(weights.classes):,}",
        )
    own, needed = dataset.spec.image[0], weights.in_channels
    if own != needed and {own, needed} == {1, 3}:
        log.warning("%s: images converted to %s", printable(name), "RGB" if own == 1 else "grey")
    count = len(weights.classes)
    splits = {key: _renumbered(split, numbers, count) for key, split in dataset.splits.items()}
    splits = {key: _with_channels(split, weights) for key, split in splits.items()}
    spec = replace(
        dataset.spec,
        classes=weights.classes,
        mask_values=weights.mask_values,
        colours=weights.colours,
        background=weights.background,
    )
    return replace(dataset, spec=spec, splits=splits)


def _numbers(classes: tuple[str, ...], weights: Weights, name: str) -> list[int]:
    """Return the network's number of each class of a dataset."""
    if classes == weights.classes:
        return list(range(len(classes)))
    exact, folded = _by_name(weights.classes), _by_name(map(_folded, weights.classes))
    # Other spellings count only if no class has exactly this name.
    found = [exact.get(own) or folded.get(_folded(own), []) for own in classes]
    listed = [f"'{printable(own)}'" for own, n in zip(classes, found, strict=True) if len(n) != 1]
    if listed:
        more = f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
        own = ", ".join(printable(own) for own in weights.classes[:SHOWN])
        raise UsageError(
            f"'{printable(name)}': the network has no class, or several, called "
            f"{', '.join(listed[:SHOWN])}{more}",
            f"the network's classes: {own}{', …' if len(weights.classes) > SHOWN else ''}",
        )
    for number, same in _by_name(number for (number,) in found).items():
        if len(same) > 1:
            names = " and ".join(f"'{printable(classes[index])}'" for index in same)
            raise UsageError(
                f"'{printable(name)}': {names} are the same class of the network, "
                f"'{printable(weights.classes[number])}'"
            )
    return [number for (number,) in found]


def _by_name(names: Iterable[T]) -> dict[T, list[int]]:
    """Return the positions of each name."""
    positions: dict[T, list[int]] = {}
    for position, name in enumerate(names):
        positions.setdefault(name, []).append(position)
    return positions


def _folded(name: str) -> str:
    # The hyphen of -1 is a sign.
    return re.sub(r"([\s_]|(?!^-\d)-)+", " ", name).strip().casefold()


def _renumbered(split: Split | Files, numbers: list[int], count: int) -> Split | Files:
    """Return a split with its class numbers replaced by those of a network of `count` classes."""
    several = isinstance(split.targets, Tensor) and split.targets.ndim == 2
    if numbers == list(range(count if several else len(numbers))):
        return split
    if isinstance(split, Files) and not isinstance(split.targets, Tensor):
        return replace(split, values=_mapped(split.values, numbers))
    targets = split.targets
    assert isinstance(targets, Tensor)  # in memory, or class numbers of files
    if targets.ndim == 2:
        columns = targets.new_zeros(len(targets), count)
        columns[:, numbers] = targets
        return replace(split, targets=columns)
    # In masks, 255 and the values above the classes mean "ignored".
    table = torch.full((max(len(numbers), IGNORED + 1),), IGNORED)
    table[: len(numbers)] = torch.tensor(numbers)
    return replace(split, targets=table[targets.long()].to(targets.dtype))


def _mapped(values: Mapping[int, int], numbers: list[int]) -> dict[int, int]:
    return {value: n if n == IGNORED else numbers[n] for value, n in values.items()}


def _with_channels(split: Split | Files, weights: Weights) -> Split | Files:
    """Return a split with the network's number of channels, grey or RGB."""
    channels, preprocessing = weights.in_channels, weights.preprocessing
    if isinstance(split, Files):
        split = replace(split, channels=channels, reading=preprocessing.reading)
        # These networks were trained on images of one size, which streaming insists on.
        if any(preprocessing.image_size) and not preprocessing.tiled:
            center = preprocessing.center_square if preprocessing.crops else None
            return decode_to_memory(split, preprocessing.resize_to, center=center)
        return split
    return with_channels(split, channels)


def with_channels(split: Split, channels: int) -> Split:
    """Return a split in memory with another number of channels: grey or RGB.

    Raises:
        UsageError: it has neither, and not the right number.
    """
    own = split.images.shape[1]
    if own == channels:
        return split
    if own == 1:
        return replace(split, images=split.images.expand(-1, channels, -1, -1))
    if (own, channels) == (3, 1):
        factors = torch.tensor(LUMA, dtype=torch.int32)[:, None, None]
        grey = ((split.images.int() * factors).sum(1, keepdim=True) + (1 << 15)) >> 16
        return replace(split, images=grey.to(torch.uint8))
    raise UsageError(f"the images have {own} channels, the network takes {channels}")
