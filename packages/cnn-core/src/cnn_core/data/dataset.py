"""Datasets and their splits, in memory or on disk, and the function that loads one by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cnn_core import registry
from cnn_core.data.fetching.cache import cache_dir
from cnn_core.data.pixels import Reading
from cnn_core.data.split_names import split_of
from cnn_core.data.splits import Files, Split, below_common_folder, single_classes
from cnn_core.data.splitting import fold_numbers, held_out
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.files import expanded
from cnn_core.plugins import isolated, required
from cnn_core.plugins.discovery import Plugin
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, did_you_mean, printable

__all__ = [
    "ALL",
    "Dataset",
    "Given",
    "load_dataset",
    "object_name",
]


TARGETS = {  # by task: dtype, number of dimensions, and both in words
    "classification": (torch.int64, 1, "int64, N"),
    "segmentation": (torch.uint8, 3, "uint8, N H W"),
    "multilabel": (torch.uint8, 2, "uint8, N classes"),
}

WHOLE = (0, 0)  # no folds
ALL = "all"  # the name of all splits together


@dataclass(frozen=True)
class Given:
    """A Python object to load as a dataset; its relative paths are relative to `folder`."""

    source: Any
    folder: Path


class ReadingLines(Protocol):
    """The lines on how the images of a dataset are read, which depend on what is declared."""

    def notes(self, reading: Reading) -> list[str]:
        """Return lines on what is unusual but sound."""

    def faults(self, reading: Reading, every: bool = False) -> list[str]:
        """Return lines on what may be wrong, from some images or from `every` one."""


@dataclass(frozen=True)
class Dataset:
    """A dataset: its description and its splits by name, in memory or on disk.

    `notes` are lines for the user on how its files were understood. `faults` are lines on files
    and parts of files that are not read, although the user may want them. `aliases` are other
    names of splits. `labels` is a digest of labels that are not in the names of the files, or "".
    `divided` is true if the test split was held out from a folder that has no folders of splits.
    `broken` are images whose headers cannot be read, or that are cut off, with the errors.
    `survey` gives the lines on how images are read, which are among the notes and faults.
    """

    spec: DatasetSpec
    splits: Mapping[str, Split | Files]
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    labels: str = ""
    divided: bool = False
    broken: Mapping[Path, str] = field(default_factory=dict)
    survey: ReadingLines | None = field(default=None, repr=False, compare=False)

    def split(self, name: str) -> Split | Files:
        """Return the split called `name`; other names, such as "valid", are understood.

        "all" is the images of all splits. In memory, they are copied.

        Raises:
            UsageError: there is no such split.
        """
        known = self.split_name(name)
        if known == ALL and ALL not in self.splits:
            everything: Split | Files = _joined(list(self.splits.values()))
            return everything
        if known not in self.splits:
            nearest = did_you_mean(name, self.splits)
            raise UsageError(
                f"dataset '{self.spec.name}' has no split '{printable(name)}'{nearest}",
                f"one of {', '.join(self.splits)}; or {ALL}",
            )
        return self.splits[known]

    def split_name(self, name: str) -> str:
        """Return the name in `splits` of the split that `name` means, or `name` if there is none.

        "valid" and "dev" mean "val". "val" means the images of the folder val, even if these
        became the "test" split because there is no other.
        """
        if name in self.splits:
            return name
        meant, others = split_of(name)
        found = self.aliases.get(meant, meant)
        return found if found in self.splits and not others else name

    def with_class_order(self, classes: tuple[str, ...]) -> Dataset:
        """Return the dataset with its classes, and the samples on disk, in another order.

        The samples of a class keep their order. If images may have several classes, all samples
        keep theirs. For labelled files only.
        """
        if classes == self.spec.classes:
            return self
        rank = torch.tensor([classes.index(name) for name in self.spec.classes])
        splits = {}
        for name, split in self.splits.items():
            assert isinstance(split.targets, Tensor)
            if split.targets.ndim == 2:  # images x classes
                splits[name] = replace(split, targets=split.targets[:, rank.argsort()])
                continue
            numbers = rank[split.targets]
            order = numbers.argsort(stable=True)
            splits[name] = replace(split.subset(order), targets=numbers[order])
        return replace(self, spec=replace(self.spec, classes=classes), splits=splits)

    def read_as(self, reading: Reading) -> Dataset:
        """Return the dataset with its files read in another way, and lines on that."""
        splits = {
            name: replace(split, reading=reading) if isinstance(split, Files) else split
            for name, split in self.splits.items()
        }
        if self.survey is None or reading == self.reading:
            return replace(self, splits=splits)
        before = {*self.survey.notes(self.reading), *self.survey.faults(self.reading)}
        notes, faults = (
            (*(line for line in lines if line not in before), *now)
            for lines, now in (
                (self.notes, self.survey.notes(reading)),
                (self.faults, self.survey.faults(reading)),
            )
        )
        return replace(self, splits=splits, notes=notes, faults=faults)

    def hold_out(
        self, fraction: float, seed: int, fold: tuple[int, int] = WHOLE
    ) -> tuple[Split | Files, Split | Files]:
        """Return (train, validation): the dataset's own splits, or train divided at random.

        `fraction`, from 0 to 1, of the training split becomes the validation split; if images
        have class labels, this fraction of each class. With `fold`, such as (2, 5), it is instead
        the second of five equal parts. Groups of images stay together. `seed` determines the
        choice. Dividing a split in memory copies its tensors.
        """
        train = self.split("train")
        if "val" in self.splits:
            return train, self.splits["val"]
        kept, held = self._divide_indices(fraction, seed, fold)
        return train.subset(kept), train.subset(held)

    def divide(
        self, fraction: float, seed: int, fold: tuple[int, int] = WHOLE
    ) -> tuple[Split | Files, Split | Files]:
        """Like `hold_out`, but return views that share the tensors of a split in memory."""
        train = self.split("train")
        if "val" in self.splits or isinstance(train, Files):
            return self.hold_out(fraction, seed, fold)
        kept, held = self._divide_indices(fraction, seed, fold)
        # Both parts share the tensors: a copy would double the memory of the training split.
        return train.view(kept), train.view(held)

    def _divide_indices(
        self, fraction: float, seed: int, fold: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the sample indices to keep and the ones to hold out, both ascending."""
        held = self.held_out(fraction, seed, fold)
        return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)

    @property
    def reading(self) -> Reading:
        """How the files are read; the same in all splits."""
        files = [split for split in self.splits.values() if isinstance(split, Files)]
        return files[0].reading if files else Reading()

    def held_out(self, fraction: float, seed: int, fold: tuple[int, int] = WHOLE) -> Tensor:
        """Return which training images to hold out, bool N; the arguments are as in `hold_out`."""
        train = self.split("train")
        labels = torch.zeros(len(train), dtype=torch.int64)
        if isinstance(train.targets, Tensor) and train.targets.ndim < 3:
            labels = single_classes(train.targets)
        number, folds = fold
        if folds:
            return fold_numbers(labels, folds, seed, train.groups) == number - 1
        return held_out(labels, fraction, seed, train.groups)

    def pooled(self) -> Dataset:
        """Return the dataset with val joined to train, so that both can be divided into folds."""
        splits = dict(self.splits)
        if (val := splits.pop("val", None)) is None:
            return self
        splits["train"] = _joined([splits["train"], val])
        counts = {name: len(split) for name, split in splits.items()}
        return replace(self, spec=replace(self.spec, splits=counts), splits=splits)

    def fingerprint(self) -> str:
        """Return 16 hex digits of a hash over classes, split sizes, file names and mask values.

        Pixels are not hashed: there may be many gigabytes of them.
        """
        digest = hashlib.sha256((repr(self.spec.classes) + self.labels).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(f"{name}/{len(split)}".encode())
            # Relative to the common folder, so that moving the dataset changes nothing.
            if isinstance(split, Files) and len(split) > 1:
                names = "\n".join(below_common_folder(split.images))
                # File names on Linux are bytes that need not be UTF-8.
                digest.update(names.encode("utf-8", "surrogateescape"))
            # If the values mean something else, the same files have other targets.
            if isinstance(split, Files) and self.spec.mask_values:
                meaning = (sorted(split.values.items()), split.in_colour, split.turn_masks)
                digest.update(repr(meaning).encode())
        return digest.hexdigest()[:16]


def _joined(splits: Sequence[Any]) -> Any:
    """Return the samples of several splits of the same kind, in this order.

    Raises:
        UsageError: their images have different sizes.
    """
    first, *others = splits
    for other in others:
        if isinstance(first, Split) and first.images.shape[1:] != other.images.shape[1:]:
            raise UsageError("the splits have images of different sizes: they cannot be joined")
        joined = {
            name: torch.cat([one, two]) if isinstance(one, Tensor) else (*one, *two)
            for name in ("images", "targets", "weights", "groups")
            if (one := getattr(first, name)) is not None
            and (two := getattr(other, name)) is not None
        }
        first = replace(first, **joined)
    return first


def load_dataset(
    name: Any, *, data_dir: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load the dataset called `name`, into memory or as a list of files to decode later.

    "imagefolder:PATH", "maskfolder:PATH" and "csv:FILE" load your own files. Other datasets are
    read from `data_dir`, by default from a folder in the cache (see `cache_dir`). Nothing is
    downloaded unless `download` is true.

    `name` may also be an object: a table with columns as in a labels file (pandas, Arrow, polars,
    or a mapping of columns), whose paths are relative to `data_dir`, by default to the working
    directory; a dataset of torchvision or Hugging Face; or a mapping of splits to such datasets.

    Raises:
        UnknownNameError: there is no such dataset.
        UsageError: the dataset needs a path and got none, or takes none and got one, `data_dir` is
            given beside a path, or the path does not exist.
        DatasetMissingError: files were not found; the message names the folder.
        DatasetCorruptError: a file is broken, or the data do not match the spec.
        PluginError: the dataset's plugin failed, or returned something other than a Dataset.
    """
    base_name, colon, path = object_name(name).partition(":")
    entry = registry.datasets().entry(base_name)
    _require_path(entry.spec, path, bool(colon))
    if colon and data_dir is not None and isinstance(name, str):
        raise UsageError(
            f"--data-dir {data_dir} does not apply: '{printable(name)}' gives the path itself"
        )
    root: Path | Given
    if not isinstance(name, str):
        root = Given(name, expanded(data_dir or "."))
    elif colon:
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


def object_name(data: Any) -> str:
    """Return the name of a dataset, "object:KIND" if it is given as a Python object."""
    if isinstance(data, str):
        return data
    if isinstance(data, Dataset):
        return f"object:{data.spec.name}"
    part = next(iter(data.values()), data) if isinstance(data, Mapping) else data
    return f"object:{type(part).__name__}"


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
        what = "file" if spec.name == "csv" else "folder"
        raise UsageError(f"dataset '{spec.name}' needs a {what}", f"{spec.name}:PATH")
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
        labels = counted(len(targets), "label")
        raise DatasetCorruptError(f"{location}: {counted(len(images), 'image')} but {labels}")
    if len(images) == 0:
        raise DatasetCorruptError(f"{location}: no images")
    if isinstance(images, Tensor):
        _check_images(spec, location, images)
    if isinstance(targets, Tensor):
        _check_target_type(spec.task, location, targets)
        _check_labels(spec, location, targets)


def _check_target_type(task: str, location: str, targets: Tensor) -> None:
    """Check the dtype and shape of the targets of a task."""
    dtype, dims, expected = TARGETS[task]
    if targets.dtype != dtype or targets.ndim != dims:
        found = f"{targets.dtype} {tuple(targets.shape)}".removeprefix("torch.")
        raise DatasetCorruptError(f"{location}: labels are {found}, expected {expected}")


def _check_images(spec: DatasetSpec, location: str, images: Tensor) -> None:
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != spec.image:
        found = f"{images.dtype} {tuple(images.shape[1:])}"
        raise DatasetCorruptError(f"{location}: images are {found}, expected uint8 {spec.image}")


def _check_labels(spec: DatasetSpec, location: str, targets: Tensor) -> None:
    if targets.ndim == 2:
        if targets.shape[1] != len(spec.classes) or bool((targets > 1).any()):
            raise DatasetCorruptError(
                f"{location}: labels of {targets.shape[1]} classes, up to {int(targets.max())}; "
                f"expected 0 or 1 for each of {len(spec.classes)}"
            )
        return
    counted = targets[targets != 255] if targets.ndim == 3 else targets
    if len(counted) == 0:
        raise DatasetCorruptError(f"{location}: every mask pixel is ignored (255)")
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= len(spec.classes):
        raise DatasetCorruptError(
            f"{location}: labels from {low} to {high}, expected 0 to {len(spec.classes) - 1}"
        )
