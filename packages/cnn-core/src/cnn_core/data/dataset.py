"""Datasets and their splits, in memory or on disk, and the function that loads one by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cnn_core import registry
from cnn_core.data.fetching.cache import cache_dir
from cnn_core.data.pixels import Reading
from cnn_core.data.split_names import split_of
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.files import expanded
from cnn_core.plugins import isolated, required
from cnn_core.plugins.discovery import Plugin
from cnn_core.specs import DatasetSpec
from cnn_core.text import did_you_mean, printable

__all__ = ["ALL", "Dataset", "Files", "Split", "Subset", "load_dataset"]


ALL = "all"  # the name of all splits together


@dataclass(frozen=True)
class Split:
    """A split in memory: images, uint8 N C H W, and targets, which are class numbers from 0.

    Targets are int64, N, for classification and uint8, N H W, for segmentation, where 255 marks
    ignored pixels. `weights`, float32 N H W, are the weights of the pixels in the loss; None
    weights all pixels equally.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Split:
        """Return the samples at `indices`."""
        weights = None if self.weights is None else self.weights[indices]
        return Split(self.images[indices], self.targets[indices], weights)


@dataclass(frozen=True)
class Subset(Split):
    """Some samples of a split, sharing its tensors: `rows`, N, are their positions in them."""

    rows: Tensor = field(kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Tensor) -> Subset:
        """Return the samples at `indices`."""
        return replace(self, rows=self.rows[indices])


@dataclass(frozen=True)
class Files:
    """A split on disk: image files, with class numbers, int64 N, or mask files as targets.

    `channels` is 1 (grey), 3 (RGB), or the number of channels of arrays. `values` maps mask values
    to class numbers, or to 255 for ignored pixels. `reading` says how pixels become 8 bits.
    """

    images: tuple[Path, ...]
    targets: Tensor | tuple[Path, ...]
    channels: int = 3
    values: Mapping[int, int] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Files:
        """Return the samples at `indices`."""
        numbers = indices.tolist()
        images = tuple(self.images[n] for n in numbers)
        if isinstance(self.targets, Tensor):
            return replace(self, images=images, targets=self.targets[indices])
        return replace(self, images=images, targets=tuple(self.targets[n] for n in numbers))


@dataclass(frozen=True)
class Dataset:
    """A dataset: its description and its splits by name, in memory or on disk.

    `notes` are lines for the user on how its files were understood, and `faults` on files and
    parts of files that were not, but may be meant. `aliases` are other names of splits. `divided`
    says that the test split is a part of the only folder, since the files have no splits.
    """

    spec: DatasetSpec
    splits: Mapping[str, Split | Files]
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    divided: bool = False

    def split(self, name: str) -> Split | Files:
        """Return the split called `name`; other names, such as "valid", are understood.

        "all" is the images of all splits. In memory, they are copied.

        Raises:
            UsageError: there is no such split.
        """
        known = self.split_name(name)
        if known == ALL and ALL not in self.splits:
            return _joined(list(self.splits.values()))
        if known not in self.splits:
            nearest = did_you_mean(name, self.splits)
            raise UsageError(
                f"dataset '{self.spec.name}' has no split '{printable(name)}'{nearest}",
                f"one of {', '.join(self.splits)}; or {ALL}",
            )
        return self.splits[known]

    def split_name(self, name: str) -> str:
        """Return the name in `splits` of the split that `name` means, or `name` if there is none.

        "valid" and "dev" mean "val", and "val" the split of that folder, even if it is the "test"
        split, since there is no other.
        """
        if name in self.splits:
            return name
        meant, others = split_of(name)
        found = self.aliases.get(meant, meant)
        return found if found in self.splits and not others else name

    def with_class_order(self, classes: tuple[str, ...]) -> Dataset:
        """Return the dataset with its classes, and the samples on disk, in another order.

        The samples of a class keep their order. For labelled files only.
        """
        if classes == self.spec.classes:
            return self
        rank = torch.tensor([classes.index(name) for name in self.spec.classes])
        splits = {}
        for name, split in self.splits.items():
            assert isinstance(split.targets, Tensor)
            numbers = rank[split.targets]
            order = numbers.argsort(stable=True)
            splits[name] = replace(split.subset(order), targets=numbers[order])
        return replace(self, spec=replace(self.spec, classes=classes), splits=splits)

    def read_as(self, reading: Reading) -> Dataset:
        """Return the dataset with its files read in another way."""
        splits = {
            name: replace(split, reading=reading) if isinstance(split, Files) else split
            for name, split in self.splits.items()
        }
        return replace(self, splits=splits)

    def hold_out(self, fraction: float, seed: int) -> tuple[Split | Files, Split | Files]:
        """Return (train, validation): the dataset's own splits, or train divided at random.

        `fraction`, from 0 to 1, of the training split becomes the validation split; if images
        have class labels, this fraction of each class. `seed` determines the choice. Dividing a
        split in memory copies its tensors.
        """
        train = self.split("train")
        if "val" in self.splits:
            return train, self.splits["val"]
        kept, held = self._divide_indices(fraction, seed)
        return train.subset(kept), train.subset(held)

    def divide(self, fraction: float, seed: int) -> tuple[Split | Files, Split | Files]:
        """Like `hold_out`, but return views that share the tensors of a split in memory."""
        train = self.split("train")
        if "val" in self.splits or isinstance(train, Files):
            return self.hold_out(fraction, seed)
        kept, held = self._divide_indices(fraction, seed)
        # Both parts share the tensors: a copy would double the memory of the training split.
        whole = (train.images, train.targets, train.weights)
        return Subset(*whole, rows=kept), Subset(*whole, rows=held)

    def _divide_indices(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Return the sample indices to keep and the ones to hold out, both ascending."""
        train = self.split("train")
        groups = [torch.arange(len(train))]
        # Class by class: otherwise a rare class could be missing from one of the parts.
        if isinstance(train.targets, Tensor) and train.targets.ndim == 1:
            numbers = range(len(self.spec.classes))
            groups = [(train.targets == number).nonzero().squeeze(1) for number in numbers]
        held = torch.zeros(len(train), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for members in groups:
            order = torch.randperm(len(members), generator=generator)
            held[members[order[: round(fraction * len(members))]]] = True
        return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)

    @property
    def reading(self) -> Reading:
        """How the files are read; the same in all splits."""
        files = [split for split in self.splits.values() if isinstance(split, Files)]
        return files[0].reading if files else Reading()

    def fingerprint(self) -> str:
        """Return 16 hex digits of a hash over the classes, the split sizes and the file names.

        Pixels are not hashed: there may be many gigabytes of them.
        """
        digest = hashlib.sha256(repr(self.spec.classes).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(f"{name}/{len(split)}".encode())
            # Relative to the common folder, so that moving the dataset changes nothing.
            if isinstance(split, Files) and len(split) > 1:
                root = os.path.commonpath(split.images)
                names = "\n".join(os.path.relpath(path, root) for path in split.images)
                # File names on Linux are bytes that need not be UTF-8.
                digest.update(names.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def _joined(splits: Sequence[Split | Files]) -> Split | Files:
    """Return the samples of all splits."""
    first, *others = splits
    for other in others:
        first = _both(first, other)
    return first


def _both(one: Split | Files, two: Split | Files) -> Split | Files:
    """Return the samples of two splits of a dataset."""
    if isinstance(one, Files) and isinstance(two, Files):
        images = one.images + two.images
        if isinstance(one.targets, Tensor) and isinstance(two.targets, Tensor):
            return replace(one, images=images, targets=torch.cat([one.targets, two.targets]))
        return replace(one, images=images, targets=(*one.targets, *two.targets))
    assert isinstance(one, Split)  # a reader returns one kind
    assert isinstance(two, Split)
    if one.images.shape[1:] != two.images.shape[1:]:
        raise UsageError("the splits have images of different sizes: they cannot be put together")
    weights = None
    if one.weights is not None and two.weights is not None:
        weights = torch.cat([one.weights, two.weights])
    return Split(
        torch.cat([one.images, two.images]), torch.cat([one.targets, two.targets]), weights
    )


def load_dataset(
    name: str, *, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load the dataset called `name`, into memory or as a list of files to decode later.

    "imagefolder:PATH" and "maskfolder:PATH" load your own files. Other datasets are read from
    `data_dir`, by default from a folder in the cache (see `cache_dir`). Nothing is downloaded
    unless `download` is true.

    Raises:
        UnknownNameError: there is no such dataset.
        UsageError: the dataset needs a path and got none, or takes none and got one, `data_dir` is
            given beside a path, or the path does not exist.
        DatasetMissingError: files were not found; the message names the folder.
        DatasetCorruptError: a file is broken, or the data do not match the spec.
        PluginError: the dataset's plugin failed, or returned something other than a Dataset.
    """
    base_name, colon, path = name.partition(":")
    entry = registry.datasets().entry(base_name)
    _require_path(entry.spec, path, bool(colon))
    if colon and data_dir is not None:
        raise UsageError(
            f"--data-dir {data_dir} does not apply: '{printable(name)}' gives the path itself"
        )
    if colon:
        root = expanded(path)
    else:
        root = expanded(data_dir) if data_dir is not None else cache_dir() / entry.spec.name
    load = registry.resolve(entry)
    label = f"dataset '{entry.spec.name}' ({entry.plugin.origin})"
    failed = required(entry.plugin, f"{label} cannot be loaded")
    with isolated(entry.plugin, f"loading of {entry.spec.name}", failed=failed):
        dataset = load(entry.spec, root, download)
    # The loader may be third-party: wrong types are its plugin's fault, wrong data the files'.
    _check_types(entry.plugin, f"{label}: {entry.spec.target} returned", dataset)
    assert isinstance(dataset, Dataset)
    for split_name, split in dataset.splits.items():
        _check(dataset.spec, split_name, split)
    return dataset


def _check_types(plugin: Plugin, returned: str, dataset: object) -> None:
    """Raise PluginError unless a loader returned a Dataset with the splits of its spec."""
    if not isinstance(dataset, Dataset):
        raise plugin.failure(f"{returned} {type(dataset).__name__}, expected Dataset")
    if not isinstance(dataset.splits, Mapping):
        raise plugin.failure(f"{returned} {_type_name(dataset.splits)} of splits, expected a dict")
    for name, split in dataset.splits.items():
        if fault := _wrong_type(split):
            raise plugin.failure(f"{returned} split '{name}' as {fault}")
    missing = [name for name in dataset.spec.splits if name not in dataset.splits]
    if missing:
        raise plugin.failure(f"{returned} no split '{missing[0]}', which its spec has")


def _wrong_type(split: object) -> str:
    """Return a message with the actual and the expected type of a split, or "" if it is right."""
    if isinstance(split, Files):
        if not isinstance(split.targets, Tensor | tuple):
            found = _type_name(split.targets)
            return f"Files with {found} of targets, expected a Tensor or a tuple"
        return ""
    if not isinstance(split, Split):
        return f"{_type_name(split)}, expected Split or Files"
    for name in ("images", "targets"):
        if not isinstance(getattr(split, name), Tensor):
            return f"a Split with {_type_name(getattr(split, name))} of {name}, expected a Tensor"
    return ""


def _type_name(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _require_path(spec: DatasetSpec, path: str, given: bool) -> None:
    """Raise UsageError if a required path is missing, or if the dataset takes no path."""
    if spec.folder and not path:
        raise UsageError(f"dataset '{spec.name}' needs a folder", f"{spec.name}:PATH")
    if given and not spec.folder:
        raise UsageError(
            f"dataset '{spec.name}' takes no path, found ':{printable(path)}'", "--data-dir DIR"
        )


def _check(spec: DatasetSpec, name: str, split: Split | Files) -> None:
    """Check a split against its spec: number of images and labels, image size, label range."""
    # Check at loading: later, on a GPU, a label out of range would fail an assertion that names
    # neither the dataset nor the sample.
    location = f"dataset '{spec.name}', split '{name}'"
    images, targets = split.images, split.targets
    if len(images) != len(targets):
        raise DatasetCorruptError(f"{location}: {len(images)} images but {len(targets)} labels")
    if len(images) == 0:
        raise DatasetCorruptError(f"{location}: no images")
    if isinstance(images, Tensor):
        _check_images(spec, location, images)
    if isinstance(targets, Tensor):
        _check_target_type(spec.task, location, targets)
        _check_labels(spec, location, targets)


def _check_target_type(task: str, location: str, targets: Tensor) -> None:
    """Check the dtype and shape of targets: a class number for each image, or for each pixel."""
    dtype, dims, expected = (torch.int64, 1, "int64, N")
    if task == "segmentation":
        dtype, dims, expected = (torch.uint8, 3, "uint8, N H W")
    if targets.dtype != dtype or targets.ndim != dims:
        found = f"{targets.dtype} {tuple(targets.shape)}".removeprefix("torch.")
        raise DatasetCorruptError(f"{location}: labels are {found}, expected {expected}")


def _check_images(spec: DatasetSpec, location: str, images: Tensor) -> None:
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != spec.image:
        found = f"{images.dtype} {tuple(images.shape[1:])}"
        raise DatasetCorruptError(f"{location}: images are {found}, expected uint8 {spec.image}")


def _check_labels(spec: DatasetSpec, location: str, targets: Tensor) -> None:
    counted = targets[targets != 255] if targets.ndim == 3 else targets
    if len(counted) == 0:
        raise DatasetCorruptError(f"{location}: every mask pixel is ignored (255)")
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= len(spec.classes):
        raise DatasetCorruptError(
            f"{location}: labels from {low} to {high}, expected 0 to {len(spec.classes) - 1}"
        )
