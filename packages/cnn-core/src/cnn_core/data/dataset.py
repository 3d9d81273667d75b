"""The contract of a data set in memory, and loading one by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cnn_core import registry
from cnn_core.errors import DatasetCorruptError, PluginError, UsageError
from cnn_core.specs import DatasetSpec
from cnn_core.text import did_you_mean

__all__ = ["Dataset", "Split", "cache_dir", "load_dataset"]


@dataclass(frozen=True)
class Split:
    """Images as uint8, N C H W, and targets as int64, N: class numbers from 0."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Split:
        """Return the samples at `indices`."""
        return Split(self.images[indices], self.targets[indices])


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: what it is, and its splits by name."""

    spec: DatasetSpec
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Return one split; raises `UsageError` if there is none of that name."""
        if name not in self.splits:
            nearest = did_you_mean(name, self.splits)
            raise UsageError(
                f"data set '{self.spec.name}' has no split '{name}'{nearest}",
                f"it has: {', '.join(self.splits)}",
            )
        return self.splits[name]

    def hold_out(self, fraction: float, seed: int) -> tuple[Split, Split]:
        """Divide the training split in two by `seed`: (train, validation), each class alike."""
        train = self.split("train")
        held = torch.zeros(len(train), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for number in range(len(self.spec.classes)):
            members = (train.targets == number).nonzero().squeeze(1)
            order = torch.randperm(len(members), generator=generator)
            held[members[order[: round(fraction * len(members))]]] = True
        return train.subset((~held).nonzero().squeeze(1)), train.subset(held.nonzero().squeeze(1))


def load_dataset(
    name: str, *, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load the data set called `name` into memory.

    Looks in `data_dir`, else in the cache (`$CNNZOO_CACHE`, else ~/.cache/cnnzoo). Nothing is
    fetched unless `download` is true.

    Raises:
        UnknownNameError: there is no such data set.
        DatasetMissingError: its files are not there; says where it looked.
        DatasetCorruptError: a file breaks its format, or files contradict each other.
    """
    entry = registry.datasets().entry(name)
    load = registry.resolve(entry)
    root = Path(data_dir) if data_dir is not None else cache_dir() / entry.spec.name
    dataset = load(entry.spec, root, download)
    if not isinstance(dataset, Dataset):
        raise PluginError(
            f"data set '{name}' ({entry.plugin.origin}): {entry.spec.target} returned "
            f"{type(dataset).__name__}, expected Dataset"
        )
    for split_name, split in dataset.splits.items():
        _check(dataset.spec, split_name, split)
    return dataset


def cache_dir() -> Path:
    """Return where downloads go: $CNNZOO_CACHE, else cnnzoo in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("CNNZOO_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cnnzoo"


def _check(spec: DatasetSpec, name: str, split: Split) -> None:
    """Hold a split to its spec: counts of images and labels, image size, label range."""
    where = f"data set '{spec.name}', split '{name}'"
    images, targets = split.images, split.targets
    if len(images) != len(targets):
        raise DatasetCorruptError(f"{where}: {len(images)} images but {len(targets)} labels")
    if len(images) == 0:
        raise DatasetCorruptError(f"{where}: no images")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != spec.image:
        found = f"{images.dtype} {tuple(images.shape[1:])}"
        raise DatasetCorruptError(f"{where}: images are {found}, expected uint8 {spec.image}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= len(spec.classes):
        raise DatasetCorruptError(
            f"{where}: labels from {low} to {high}, expected 0 to {len(spec.classes) - 1}"
        )
