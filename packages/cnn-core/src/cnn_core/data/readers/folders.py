"""Read your own images with a folder per class, `imagefolder:PATH`; what all folders share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset, Files
from cnn_core.data.images import probe_image
from cnn_core.data.readers.description import with_description
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec
from cnn_core.text import printable

__all__ = [
    "SUFFIXES",
    "image_type",
    "load_images",
    "sorted_files",
    "split_folders",
    "with_test_split",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
GREY = ("1", "L", "LA")
TEST_FRACTION = 0.2  # of each class, for the test split if there is no folder test or val


def load_images(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the images in PATH/CLASS/FILE, or in PATH/SPLIT/CLASS/FILE (train, val, test).

    Classes are the folder names, sorted. Without a folder test, val becomes the test split;
    without either, a fifth of each class does.

    Raises:
        DatasetMissingError: there is no such folder.
        DatasetCorruptError: there are too few classes or images, or a class is not in train.
    """
    folders = split_folders(root)
    classes = sorted(folder.name for folder in _subfolders(folders["train"]))
    if len(classes) < 2:
        raise DatasetCorruptError(
            f"{root}: {len(classes)} folders of images, expected at least 2, one for each class",
            f"{root}/CLASS/FILE or {root}/train/CLASS/FILE, files {', '.join(SUFFIXES)}",
        )
    splits = {
        name: _labelled(folder, classes, name == "train") for name, folder in folders.items()
    }
    channels, size = image_type(itertools.chain(*(split.images for split in splits.values())))
    splits = {n: dataclasses.replace(split, channels=channels) for n, split in splits.items()}
    loaded = with_test_split(spec, tuple(classes), splits, (channels, *size))
    return with_description(loaded, root)


def with_test_split(
    spec: DatasetSpec,
    classes: tuple[str, ...],
    splits: Mapping[str, Files],
    image: tuple[int, int, int],
) -> Dataset:
    """Return the dataset with a test split, and with a spec completed from the files."""
    found = dataclasses.replace(spec, classes=classes, image=image)
    splits = dict(splits)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    if "test" not in splits:
        # Always seed 0: the test split must not change with the seed of a run.
        kept, held_out = Dataset(found, splits).hold_out(TEST_FRACTION, seed=0)
        if len(held_out) == 0:
            raise DatasetCorruptError(
                f"{len(kept)} images are too few to hold out a fifth of each class for testing",
                "add images until each class has three, or add a folder test beside train",
            )
        splits = {"train": kept, "test": held_out}  # type: ignore[dict-item]
    counts = {name: len(split) for name, split in splits.items()}
    return Dataset(dataclasses.replace(found, splits=counts), splits)


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits; if there are none, `root` as train."""
    if not root.is_dir():
        raise DatasetMissingError(
            f"{root}: no such folder",
            "give its path after ':'; if a run's folder has moved, use --data-dir DIR",
        )
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        if split := SPLITS.get(folder.name.lower()):
            if split in found:
                raise DatasetCorruptError(
                    f"{folder}: a second {split} split, besides {found[split]}"
                )
            found[split] = folder
    if found and "train" not in found:
        raise DatasetCorruptError(f"{root}: has {', '.join(sorted(found))}, but no folder 'train'")
    return found or {"train": root}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def sorted_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden ones.

    Sorted, since file systems list files in different orders, and random splits depend on it.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _labelled(folder: Path, classes: list[str], training: bool) -> Files:
    """Return the files of a split with their class numbers."""
    names = [f.name for f in _subfolders(folder)]
    # Every split uses the class numbers of train: other classes have no output unit.
    for name in names:
        if name not in classes:
            raise DatasetCorruptError(
                f"{folder}: class '{printable(name)}' is not in the training split"
            )
    images, targets = [], []
    for number, name in enumerate(classes):
        files = sorted_files(folder / name) if name in names else []
        if training and not files:
            raise DatasetCorruptError(
                f"{folder / name}: no images ({', '.join(SUFFIXES)})",
                "each folder is a class: add images, move it, or start its name with a dot",
            )
        images += files
        targets += [number] * len(files)
    return Files(tuple(images), torch.tensor(targets, dtype=torch.int64))


def image_type(paths: Iterable[Path]) -> tuple[int, tuple[int, int]]:
    """Return the number of channels and the (height, width), which is (0, 0) if sizes differ.

    Files that cannot be read are skipped: all of them are reported later, when each is decoded.
    """
    modes, sizes = set(), set()
    for path in paths:
        try:
            height, width, mode = probe_image(path)
        except DatasetCorruptError:
            continue
        modes.add(mode)
        sizes.add((height, width))
    # One colour image makes the dataset RGB: grey images can be read as RGB without loss.
    channels = 1 if modes and modes <= set(GREY) else 3
    return channels, sizes.pop() if len(sizes) == 1 else (0, 0)
