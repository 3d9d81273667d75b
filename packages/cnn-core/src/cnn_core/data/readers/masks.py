"""Read your own images with masks, `maskfolder:PATH`."""

from __future__ import annotations

from pathlib import Path

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset, Files
from cnn_core.data.images import read_mask
from cnn_core.data.readers.folders import (
    image_type,
    sorted_files,
    split_folders,
    with_test_split,
)
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.specs import DatasetSpec

__all__ = ["load_masks"]


def load_masks(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images, PATH/images/NAME.*, with their masks, PATH/masks/NAME.*.

    PATH may also contain train, val and test with these two folders each. Masks are grey or
    palette images of class numbers. If they have exactly two values, such as 0 and 255, the lower
    is class 0. PATH/classes.txt may name the classes, one per line.

    Raises:
        UsageError: there is no such folder.
        DatasetCorruptError: images and masks do not pair up, or masks have other values.
        UsageError: the number of names in classes.txt is not the number of classes.
    """
    folders = {"train": root}
    if not (root / "images").is_dir():
        folders = split_folders(root)
    pairs = {name: _pairs(folder) for name, folder in folders.items()}
    masks = [mask for images, masks in pairs.values() for mask in masks]
    values = _class_numbers(masks)
    images = [image for images, _ in pairs.values() for image in images]
    channels, size = image_type(images)
    splits = {name: Files(i, m, channels, values) for name, (i, m) in pairs.items()}
    count = len(set(values.values()) - {IGNORED})
    return with_test_split(spec, _class_names(root, count), splits, (channels, *size))


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
