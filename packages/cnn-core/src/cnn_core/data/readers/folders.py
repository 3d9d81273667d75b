"""Read your own files: `imagefolder:PATH`, with a folder per class, and `maskfolder:PATH`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset, Files
from cnn_core.data.images import probe_image, read_mask
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.specs import DatasetSpec
from cnn_core.text import printable

__all__ = ["SUFFIXES", "load_images", "load_masks", "sorted_files"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
GREY = ("1", "L", "LA")
TEST_FRACTION = 0.2  # of each class, for the test split if there is no folder test or val


def load_images(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the images in PATH/CLASS/FILE, or in PATH/SPLIT/CLASS/FILE (train, val, test).

    Classes are the folder names, sorted. Without a folder test, val becomes the test split;
    without either, a fifth of each class does.

    Raises:
        UsageError: there is no such folder.
        DatasetCorruptError: there are too few classes or images, or a class is not in train.
    """
    folders = _split_folders(root)
    classes = sorted(folder.name for folder in _subfolders(folders["train"]))
    if len(classes) < 2:
        raise DatasetCorruptError(
            f"{root}: {len(classes)} folders of images, expected at least 2, one for each class",
            f"{root}/CLASS/FILE or {root}/train/CLASS/FILE, files {', '.join(SUFFIXES)}",
        )
    splits = {
        name: _labelled(folder, classes, name == "train") for name, folder in folders.items()
    }
    channels, size = _image_type(itertools.chain(*(split.images for split in splits.values())))
    splits = {n: dataclasses.replace(split, channels=channels) for n, split in splits.items()}
    return _with_test_split(spec, tuple(classes), splits, (channels, *size))


def load_masks(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images, PATH/images/NAME.*, with their masks, PATH/masks/NAME.*.

    PATH may also contain train, val and test with these two folders each. Masks are grey or
    palette images of class numbers. If they have exactly two values, such as 0 and 255, the lower
    is class 0. PATH/classes.txt may name the classes, one per line.

    Raises:
        DatasetCorruptError: images and masks do not pair up, or masks have other values.
        UsageError: there is no such folder, or classes.txt has another number of names than there
            are classes.
    """
    folders = {"train": root}
    if not (root / "images").is_dir():
        folders = _split_folders(root)
    pairs = {name: _pairs(folder) for name, folder in folders.items()}
    masks = [mask for images, masks in pairs.values() for mask in masks]
    values = _class_numbers(masks)
    images = [image for images, _ in pairs.values() for image in images]
    channels, size = _image_type(images)
    splits = {name: Files(i, m, channels, values) for name, (i, m) in pairs.items()}
    count = len(set(values.values()) - {IGNORED})
    return _with_test_split(spec, _class_names(root, count), splits, (channels, *size))


def _with_test_split(
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


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits; if there are none, `root` as train."""
    if not root.is_dir():
        raise UsageError(
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


def _image_type(paths: Iterable[Path]) -> tuple[int, tuple[int, int]]:
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


def _pairs(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the images and masks of a folder, paired by their relative paths without suffix."""
    images, masks = _by_name(folder / "images"), _by_name(folder / "masks")
    for one, other, missing in ((images, masks, "mask"), (masks, images, "image")):
        if alone := sorted(one.keys() - other.keys()):
            count = f"{len(alone)} files have none"
            raise DatasetCorruptError(f"{one[alone[0]]}: has no {missing} ({count})")
    return tuple(images.values()), tuple(masks[name] for name in images)


def _by_name(folder: Path) -> dict[Path, Path]:
    """Return the image files in a folder, keyed by their relative paths without suffix."""
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder", f"{folder.parent}/images/NAME.* and masks/NAME.*"
        )
    found: dict[Path, Path] = {}
    for path in sorted_files(folder):
        name = path.relative_to(folder).with_suffix("")
        if name in found:
            raise DatasetCorruptError(f"{path}: same name as {found[name].name}")
        found[name] = path
    return found


def _class_numbers(masks: list[Path]) -> dict[int, int]:
    """Return the class number of each value in masks.

    Values 0, 1, 2, … are class numbers, and 255 is ignored. If there are exactly two values,
    whatever they are, they become classes 0 and 1. Masks that cannot be read are skipped: they are
    reported later, when each is decoded.
    """
    found: dict[int, Path] = {}  # the first mask with each value
    for mask in masks:
        try:
            values = read_mask(mask).unique().tolist()
        except DatasetCorruptError:
            continue
        for value in values:
            found.setdefault(value, mask)
    # Binary masks come with any two values: 0 and 255, 0 and 1, or palette indices.
    if len(found) == 2:
        return {value: number for number, value in enumerate(sorted(found))}
    numbers = sorted(found.keys() - {IGNORED})
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        unexpected = next((n for number, n in enumerate(numbers) if n != number), None)
        path = found[unexpected] if unexpected is not None else masks[0].parent
        raise DatasetCorruptError(
            f"{path}: masks have the values {', '.join(map(str, numbers[:8]))}, "
            "expected class numbers from 0, or two values",
        )
    return {value: value for value in (*numbers, IGNORED)}


def _class_names(root: Path, count: int) -> tuple[str, ...]:
    """Return the names in classes.txt; without this file, "0", "1", …"""
    path = root / "classes.txt"
    if not path.is_file():
        return tuple(map(str, range(count)))
    names = tuple(path.read_text("utf-8").split("\n"))
    names = tuple(name.strip() for name in names if name.strip())
    if len(names) != count:
        raise UsageError(f"{path}: {len(names)} names, but the masks have {count} classes")
    return names
