"""Read your own images with a folder per class, `imagefolder:PATH`; helpers for all readers."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset
from cnn_core.data.formats import SUFFIXES
from cnn_core.data.readers.copies import with_sources
from cnn_core.data.readers.description import read_description, with_description
from cnn_core.data.readers.layout import Layout, find_layout, split_folders
from cnn_core.data.readers.listing import count_loose, sorted_files, subfolders
from cnn_core.data.readers.spelling import same_names
from cnn_core.data.readers.survey import survey_images
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, natural, printable

__all__ = [
    "SUFFIXES",
    "held_out_note",
    "load_images",
    "sorted_files",
    "split_folders",
    "with_test_split",
]

TEST_FRACTION = 0.2  # of each class, for the test split if there is no folder test or val


def load_images(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the images in PATH/CLASS/FILE, or in PATH/SPLIT/CLASS/FILE (train, val, test).

    Classes are the folder names, 2 before 10. Without a folder test, val becomes the test split;
    without either, a fifth of each class does. PATH/dataset.toml may say more: see `Description`.
    Files that are not read, and how the folders were understood, are in the dataset's `notes` and
    `faults`.

    Raises:
        UsageError: there is no such folder, or dataset.toml does not fit it.
        DatasetCorruptError: there are too few classes or images, a class is not in train, or the
            folders can be understood in two ways.
    """
    layout = find_layout(root)
    classes = _classes(root, layout)
    for folder in {root, *layout.splits.values()}:
        count_loose(folder, layout.left_out)
    splits = {
        name: _labelled(folder, classes, layout, name == "train")
        for name, folder in layout.splits.items()
    }
    found = survey_images(itertools.chain(*(split.images for split in splits.values())))
    description = read_description(root, "classification")
    reading = description.reading
    splits = {
        name: dataclasses.replace(split, channels=found.channels, reading=reading)
        for name, split in splits.items()
    }
    splits, copies = with_sources(splits)
    found.grouped(splits, classes)
    dataset = with_test_split(spec, tuple(classes), splits, (found.channels, *found.size))
    # The test split above must stay the same whatever the order and the names of the classes.
    ordered = dataset.with_class_order(tuple(sorted(classes, key=natural)))
    return dataclasses.replace(
        with_description(ordered, description),
        notes=(
            *layout.left_out.lines(missed=False),
            *layout.notes,
            *held_out_note(dataset, layout.splits),
            *_tables(root, layout),
            *copies,
            *found.notes(reading),
        ),
        faults=(*layout.left_out.lines(missed=True), *layout.faults, *found.faults(reading)),
        broken=found.broken,
        survey=found,
    )


def _classes(root: Path, layout: Layout) -> list[str]:
    """Return the names of the classes, sorted by their characters."""
    train = layout.splits["train"]
    folders = subfolders(train, layout.left_out if train != root else None)
    classes = [folder.name for folder in folders]
    if len(classes) < 2:
        hint = f"{train}/CLASS/FILE" + f", or {root}/train/CLASS/FILE" * (train == root)
        if folders and subfolders(folders[0]):
            hint = f"the classes may be one folder further down: imagefolder:{folders[0]}"
        raise DatasetCorruptError(
            f"{train}: {counted(len(classes), 'folder')} of images, expected at least 2, one for "
            "each class",
            hint,
        )
    layout.faults += same_names(classes, str(train))
    return classes


def _tables(root: Path, layout: Layout) -> Iterator[str]:
    """Name the tables beside the folders, which may have other labels."""
    for folder in dict.fromkeys((root, *layout.splits.values())):
        for path in sorted(folder.glob("*.csv")):
            yield f"{path}: not read, since folders are the classes; csv:{path} reads it"


def held_out_note(dataset: Dataset, found: Mapping[str, object]) -> list[str]:
    """Return a line on the test split if it is not among the splits that were found."""
    if "val" in dataset.aliases:
        where = found["val"] if isinstance(found["val"], Path) else "val"
        return [f"{where}: used as the split 'test', since there is no other"]
    if "test" in found:
        return []
    whole = " of each class" if dataset.spec.task == "classification" else ""
    count = counted(len(dataset.split("test")), "image")
    return [f"test: a fifth{whole} ({count}), since there is no folder test"]


def with_test_split(
    spec: DatasetSpec,
    classes: tuple[str, ...],
    splits: Mapping[str, Files],
    image: tuple[int, int, int],
) -> Dataset:
    """Return the dataset with a test split, and with a spec completed from the files."""
    found = dataclasses.replace(spec, classes=classes, image=image)
    splits, aliases = dict(splits), {}
    divided = not splits.keys() & {"test", "val"}
    if "test" not in splits and "val" in splits:
        splits["test"], aliases = splits.pop("val"), {"val": "test"}
    if divided:
        # Always seed 0: the test split must not change with the seed of a run.
        kept, held_out = Dataset(found, splits).hold_out(TEST_FRACTION, seed=0)
        if len(held_out) == 0:
            own = "add a folder test beside train"
            if spec.name in ("csv", "object"):
                own = "say in a column 'split' which rows are train and which are test"
            raise DatasetCorruptError(
                f"{counted(len(kept), 'image is', 'images are')} too few to hold out a fifth of "
                "each class for testing",
                f"add images until each class has three, or {own}",
            )
        splits = {"train": kept, "test": held_out}  # type: ignore[dict-item]
    counts = {name: len(split) for name, split in splits.items()}
    spec = dataclasses.replace(found, splits=counts)
    return Dataset(spec, splits, aliases=aliases, divided=divided)


def _labelled(folder: Path, classes: list[str], layout: Layout, training: bool) -> Files:
    """Return the files of a split with their class numbers."""
    names = [f.name for f in subfolders(folder)]
    # Every split uses the class numbers of train: other classes have no output unit.
    for name in names:
        if name not in classes:
            raise _unknown_class(folder, name, classes)
    images, targets = [], []
    for number, name in enumerate(classes):
        files = sorted_files(folder / name, layout.left_out) if name in names else []
        if training and not files:
            missed = layout.left_out.lines(missed=True)
            raise DatasetCorruptError(
                f"{folder / name}: no images{''.join(f'; {line}' for line in missed)}",
                "each folder is a class: add images, move it, or start its name with a dot",
            )
        images += files
        targets += [number] * len(files)
    return Files(tuple(images), torch.tensor(targets, dtype=torch.int64))


def _unknown_class(folder: Path, name: str, classes: list[str]) -> DatasetCorruptError:
    """Return the error for a class that is not in the training split."""
    shown = sorted(classes, key=natural)[:8]
    hint = f"the classes of training: {', '.join(map(printable, shown))}"
    form = unicodedata.normalize("NFC", name)
    for known in classes:
        if unicodedata.normalize("NFC", known) == form:
            hint = (
                f"'{printable(known)}' there has other characters that look the same (Unicode "
                "NFC or NFD): give both folders one name"
            )
    return DatasetCorruptError(
        f"{folder}: class '{printable(name)}' is not in the training split", hint
    )
