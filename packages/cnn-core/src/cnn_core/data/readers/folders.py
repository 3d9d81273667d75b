"""Read your own images with a folder per class, `imagefolder:PATH`; helpers for all readers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset, Files
from cnn_core.data.formats import SUFFIXES
from cnn_core.data.images import Facts, image_facts, value_bounds
from cnn_core.data.pixels import UINT16, Reading
from cnn_core.data.readers.description import read_description, with_description
from cnn_core.data.readers.layout import Layout, find_layout, split_folders
from cnn_core.data.readers.listing import count_loose, sorted_files, subfolders
from cnn_core.errors import DatasetCorruptError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, natural, printable

__all__ = [
    "ImageSurvey",
    "SUFFIXES",
    "held_out_note",
    "image_type",
    "load_images",
    "sorted_files",
    "split_folders",
    "survey_images",
    "with_test_split",
]

MAX_DECODED = 20  # images of more than 8 bits whose values are looked at
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
            *found.notes(reading),
        ),
        faults=(*layout.left_out.lines(missed=True), *layout.faults, *found.faults(reading)),
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
    spelling = {name: unicodedata.normalize("NFKC", name).casefold() for name in classes}
    same = Counter(spelling.values())
    if alike := [printable(name) for name in classes if same[spelling[name]] > 1]:
        folded = len({name.casefold() for name in alike}) < len(alike)
        what = "case" if folded else "case or Unicode form (NFC, NFD)"
        layout.faults.append(f"{train}: classes whose names differ only in {what}: {alike}")
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
        return [f"{where}: measured as the split 'test', since there is no other"]
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


@dataclasses.dataclass
class ImageSurvey:
    """What the headers of images say together.

    `channels` and `size`, which is (0, 0) if sizes differ, are those of the dataset.
    """

    channels: int = 3
    size: tuple[int, int] = (0, 0)
    oblong: int = 0
    total: int = 0
    alpha: int = 0
    turned: int = 0
    deep: int = 0
    sixteen: list[Path] = dataclasses.field(default_factory=list)  # of those, of 16 bits
    lost: dict[str, tuple[int, Path]] = dataclasses.field(default_factory=dict)

    def notes(self, reading: Reading) -> list[str]:
        """Return lines on how images are read."""
        lines, of = [], f"of {self.total:,} images"
        if self.turned:
            one, many = f"{of} is turned upright, as its", f"{of} are turned upright, as their"
            lines.append(f"{counted(self.turned, one, many)} EXIF data say")
        if self.oblong:
            lines.append(
                f"{counted(self.oblong, f'{of} is', f'{of} are')} not square, and sizes differ: "
                "all are squashed to a square, unless fit = crop or tile"
            )
        if self.alpha:
            how = f"are shown on {reading.alpha_background}"
            if reading.alpha_background == "drop":
                how = "show their hidden colours"
            lines.append(
                f"{self.alpha:,} {of} may have transparent parts, which {how} (alpha_background)"
            )
        if self.deep:
            low, high = reading.value_range or UINT16
            lines.append(
                f"{counted(self.deep, f'{of} has', f'{of} have')} more than 8 bits per channel: "
                f"{low:g} to {high:g} becomes 0 to 255 (value_range)"
            )
        return lines

    def faults(self, reading: Reading) -> list[str]:
        """Return lines on parts of images that are not read, and on a range that is too wide."""
        return [*self.unread(), *(() if reading.value_range else self._unused_range())]

    def unread(self) -> list[str]:
        """Return a line for each kind of part that is not read, such as pages."""
        return [
            f"left out: {what}, in {counted(count, 'image')}, such as {path}"
            for what, (count, path) in self.lost.items()
        ]

    def _unused_range(self) -> Iterator[str]:
        """Yield a line if 16-bit images hold values of fewer bits, as of a camera with 12."""
        seen = self.sixteen[:: -(-len(self.sixteen) // MAX_DECODED) or 1]
        highest = 0.0
        for path in seen:
            # Broken files are reported when all are decoded.
            with contextlib.suppress(DatasetCorruptError):
                highest = max(highest, value_bounds(path)[1])
        if 0 < highest < UINT16[1] / 4:
            bits = int(highest).bit_length()
            yield (
                f"values up to {highest:g} in {counted(len(seen), 'image')}, read as 0 to 65535, "
                f"become very dark: value_range = [0, {2**bits - 1}] may be meant"
            )


def survey_images(paths: Iterable[Path]) -> ImageSurvey:
    """Return what the headers of images say together.

    Files that cannot be read are skipped: all of them are reported later, when each is decoded.

    Raises:
        DatasetCorruptError: arrays differ in their channels.
    """
    result, channels, sizes = ImageSurvey(), dict[int, Path](), set()
    for path in paths:
        result.total += 1
        try:
            facts: Facts = image_facts(path)
        except DatasetCorruptError:
            continue
        channels.setdefault(facts.channels, path)
        sizes.add(facts.size)
        result.oblong += facts.size[0] != facts.size[1]
        result.alpha += facts.alpha
        result.deep += facts.deep
        result.sixteen += [path] * (facts.mode == "uint16" or facts.mode.startswith("I;16"))
        result.turned += facts.turned
        if facts.lost:
            count, first = result.lost.get(facts.lost, (0, path))
            result.lost[facts.lost] = (count + 1, first)
    result.channels = _channels(channels)
    # If all have one size, training says what becomes of their shape.
    result.oblong *= len(sizes) > 1
    result.size = sizes.pop() if len(sizes) == 1 else (0, 0)
    return result


def _channels(found: Mapping[int, Path]) -> int:
    """Return the number of channels of a dataset with these numbers of channels."""
    if len(found) == 1:
        return next(iter(found))
    # One colour image makes the dataset RGB: grey images can be read as RGB without loss.
    if found.keys() <= {1, 3, 4}:
        return 3
    first, second = sorted(found)[:2]
    raise DatasetCorruptError(
        f"{found[second]}: {second} channels, but {found[first]} has {first}"
    )


def image_type(paths: Iterable[Path]) -> tuple[int, tuple[int, int]]:
    """Return the number of channels and the (height, width), which is (0, 0) if sizes differ.

    Files that cannot be read are skipped: all of them are reported later, when each is decoded.
    """
    found = survey_images(paths)
    return found.channels, found.size
