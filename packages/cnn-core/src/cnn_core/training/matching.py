"""Use a dataset with a network that was trained on another one: match classes and channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset, Files, Split
from cnn_core.data.streaming import decode_to_memory
from cnn_core.errors import UsageError
from cnn_core.registry import get_spec
from cnn_core.text import printable
from cnn_core.weights.native import Weights

__all__ = ["matched", "with_channels"]

SHOWN = 5  # class names in an error
LUMA = (19595, 38470, 7471)  # ITU-R 601, in 1/65536, as in Pillow


def matched(dataset: Dataset, weights: Weights, name: str) -> Dataset:
    """Return a dataset with the class numbers and the channels of a trained network.

    Classes are matched by name, regardless of case, spaces, hyphens and underscores. The dataset
    may lack some of the network's classes. `name` is the dataset's name for error messages.

    Raises:
        UsageError: the network does not know a class of the dataset, or it has another task.
    """
    task = get_spec(weights.model).task
    if dataset.spec.task != task:
        raise UsageError(f"'{name}' is for {dataset.spec.task}, '{weights.model}' for {task}")
    numbers = _numbers(dataset.spec.classes, weights, name)
    splits = {key: _renumbered(split, numbers) for key, split in dataset.splits.items()}
    splits = {key: _with_channels(split, weights) for key, split in splits.items()}
    return Dataset(replace(dataset.spec, classes=weights.classes), splits)


def _numbers(classes: tuple[str, ...], weights: Weights, name: str) -> list[int]:
    """Return the network's number of each class of a dataset."""
    if classes == weights.classes:
        return list(range(len(classes)))
    known: dict[str, list[int]] = {}
    for number, own in enumerate(weights.classes):
        known.setdefault(_folded(own), []).append(number)
    # ImageNet has two classes called "crane": a folder of that name could be either.
    unknown = [own for own in classes if len(known.get(_folded(own), ())) != 1]
    if unknown:
        listed = ", ".join(f"'{printable(own)}'" for own in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
        own = ", ".join(printable(own) for own in weights.classes[:SHOWN])
        raise UsageError(
            f"'{printable(name)}': the network does not know its classes {listed}{more}",
            f"the network's classes: {own}{', …' if len(weights.classes) > SHOWN else ''}",
        )
    return [known[_folded(own)][0] for own in classes]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _renumbered(split: Split | Files, numbers: list[int]) -> Split | Files:
    """Return a split with its class numbers replaced."""
    if numbers == list(range(len(numbers))):
        return split
    if isinstance(split, Files) and not isinstance(split.targets, Tensor):
        return replace(split, values=_mapped(split.values, numbers))
    targets = split.targets
    assert isinstance(targets, Tensor)  # in memory, or class numbers of files
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
        split = replace(split, channels=channels)
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
