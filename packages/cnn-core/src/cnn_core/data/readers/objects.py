"""Datasets that are given as Python objects: tables, torchvision's and Hugging Face's datasets.

No library is imported for them: an object is recognised by its attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnn_core.data.dataset import Dataset, Given
from cnn_core.data.images import upright_copy
from cnn_core.data.pixels import DEEP_MODES, Reading, has_alpha, image_pixels
from cnn_core.data.readers.columns import Choice, Table
from cnn_core.data.readers.copies import with_sources
from cnn_core.data.readers.folders import with_test_split
from cnn_core.data.readers.label_cells import list_in
from cnn_core.data.readers.labels import labelled
from cnn_core.data.readers.spelling import same_names
from cnn_core.data.readers.survey import image_type, survey_images
from cnn_core.data.split_names import UNDERSTOOD, splits_among
from cnn_core.data.splits import Files, Item, Split, read_pixels
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, printable

__all__ = ["load"]

IN_MEMORY = 2**30  # bytes of decoded images of one size to keep; others are read when needed
GREY = ("1", "L", "LA", "La", *DEEP_MODES)


@dataclass(frozen=True)
class Samples:
    """A split of an object: how to read its images, and its labels, classes and files, if any."""

    name: str
    read: Callable[[int], Any]
    labels: Sequence[Any]
    classes: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()


def load(spec: DatasetSpec, root: Path | Given, download: bool) -> Dataset:
    """Return an object that a caller has given as a Dataset.

    It may be a Dataset; a table with a row for each image (pandas, Arrow, polars, or a mapping of
    columns), with columns as in `csv:FILE`; a dataset of torchvision or Hugging Face; or a mapping
    of splits to any of the last two.

    Raises:
        UsageError: it is none of them, or only the name of an object that was given earlier.
        DatasetCorruptError: its labels are not class numbers or names.
    """
    if not isinstance(root, Given):
        raise UsageError(
            f"'{printable(root.name)}' was given as a Python object, which no file records",
            "give it again in Python, data=…; or use other data: --data csv:FILE",
        )
    source = root.source
    if isinstance(source, Dataset):
        return source
    if table := _table(source):
        return labelled(spec, table, root.folder, Choice())
    if not isinstance(source, Mapping):
        source = {"train": source}
    parts = {name: _samples(key, part) for name, (key, part) in _splits(source).items()}
    if "train" not in parts:
        raise UsageError(f"a dataset with {', '.join(parts) or 'no splits'}, but without train")
    return _dataset(spec, parts)


def _splits(source: Mapping[Any, Any]) -> dict[str, tuple[str, Any]]:
    """Return the given name and the data of each split.

    Raises:
        UsageError: a name is not one of a split, or two mean the same one.
    """
    parts = {str(key): part for key, part in source.items()}
    meant = splits_among(parts)
    for key in parts:
        if not any(key in same for same in meant.values()):
            raise UsageError(f"split '{printable(key)}'", UNDERSTOOD)
    for split, same in meant.items():
        if len(same) > 1:
            raise UsageError(f"splits {' and '.join(map(printable, same))} both mean {split}")
    return {split: (key, parts[key]) for split, (key,) in meant.items()}


# Tables


def _table(source: Any) -> Table | None:
    """Return a table of pandas, Arrow or polars, or a mapping of columns; else None."""
    if hasattr(source, "features") or isinstance(source, str):
        return None  # a dataset of Hugging Face has columns, too
    if hasattr(source, "to_pydict"):  # Arrow
        columns = source.to_pydict()
    elif hasattr(source, "columns") and hasattr(source, "to_dict"):  # pandas, polars
        columns = {name: list(source[name]) for name in source.columns}
    elif isinstance(source, Mapping) and not _are_splits(source):
        columns = {name: list(values) for name, values in source.items()}
    else:
        return None
    if len({len(values) for values in columns.values()}) > 1:
        raise UsageError("the columns of the table differ in length")
    names = tuple(str(name) for name in columns)
    rows = zip(*([_as_text(v) for v in values] for values in columns.values()), strict=True)
    return Table("the table", names, list(enumerate(rows, 1)))


def _are_splits(source: Mapping[Any, Any]) -> bool:
    return sum(map(len, splits_among(map(str, source)).values())) == len(source)


def _as_text(value: Any) -> str:
    """Return a cell as text; "" if it is missing. A list of names becomes a|b."""
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        names = list(map(str, value))
        if parted := [name for name in names if "|" in name]:
            raise UsageError(f"label '{printable(parted[0])}': '|' separates labels, rename it")
        return "|".join(names)
    # NaN, and the missing values of pandas, are not equal to themselves.
    missing = value is None or str(value) in ("nan", "NaT", "<NA>")
    return "" if missing else str(value).strip()


# Datasets


def _samples(name: str, source: Any) -> Samples:
    """Return the samples of a dataset of Hugging Face or torchvision, or of one like them."""
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise UsageError(
            f"data: {type(source).__name__} is not a dataset: it needs a length and an index",
            "a table, or a dataset of torchvision or Hugging Face; without streaming=True",
        )
    if len(source) == 0:
        raise DatasetCorruptError(f"split '{printable(name)}': no images")
    if hasattr(source, "features"):
        return _of_rows(name, source)
    return _of_pairs(name, source)


def _of_rows(name: str, source: Any) -> Samples:
    """Return the samples of a Hugging Face dataset: rows with an image and a label."""
    features = source.features
    images = [key for key, f in features.items() if type(f).__name__ == "Image"]
    labels = [key for key, f in features.items() if _label_feature(f) is not None]
    image = _only(images, features, "Image") if images else _known(features, "image")
    label = _only(labels, features, "ClassLabel") if labels else _known(features, "label")
    feature = _label_feature(features[label])
    names = tuple(getattr(feature, "names", None) or ())
    return Samples(name, partial(_row_image, source, image), list(source[label]), names)


def _row_image(source: Any, column: str, index: int) -> Any:
    return source[index][column]


def _label_feature(feature: Any) -> Any:
    """Return the ClassLabel of a feature, or of a list of them; else None."""
    inner = getattr(feature, "feature", feature)
    return inner if type(inner).__name__ == "ClassLabel" else None


def _only(found: list[str], features: Mapping[str, Any], kind: str) -> str:
    if len(found) > 1:
        raise UsageError(
            f"columns {', '.join(map(printable, found))} are all of type {kind}",
            "keep one: dataset.remove_columns(…)",
        )
    return found[0]


def _known(features: Mapping[str, Any], kind: str) -> str:
    """Return the column of a usual name."""
    names = {"image": ("image", "img", "picture"), "label": ("label", "labels", "class", "target")}
    for name in names[kind]:
        if name in features:
            return name
    raise UsageError(
        f"no column of {kind}s among {', '.join(map(printable, features))}",
        f"rename it: dataset.rename_column(…, '{kind}')",
    )


def _of_pairs(name: str, source: Any) -> Samples:
    """Return the samples of a dataset of pairs (image, label), as torchvision's."""
    classes = _class_names(source)
    files = getattr(source, "samples", None)
    # As in ImageFolder. Its files are read as other files are, without its transform.
    if isinstance(files, list) and files and isinstance(files[0][0], str | Path):
        paths = tuple(Path(path) for path, _ in files)
        labels = [label for _, label in files]
        return Samples(name, partial(_pair_image, source), labels, classes, paths)
    columns: list[Any] = [getattr(source, key, None) for key in ("targets", "labels")]
    labels = next((list(column) for column in columns if _is_column(column, source)), [])
    # Otherwise only the samples have the labels; this reads all images once.
    labels = labels or [_pair(source[index])[1] for index in range(len(source))]
    return Samples(name, partial(_pair_image, source), labels, classes)


def _pair_image(source: Any, index: int) -> Any:
    return _pair(source[index])[0]


def _is_column(found: Any, source: Any) -> bool:
    return hasattr(found, "__len__") and len(found) == len(source) and not isinstance(found, str)


def _pair(sample: Any) -> tuple[Any, Any]:
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise UsageError(f"data: samples are {type(sample).__name__}, expected (image, label)")
    return sample[0], sample[1]


def _class_names(source: Any) -> tuple[str, ...]:
    names = getattr(source, "classes", None)
    if names is None and isinstance(numbers := getattr(source, "class_to_idx", None), dict):
        names = sorted(numbers, key=lambda name: numbers[name])
    return tuple(map(str, names)) if names is not None else ()


# Splits


def _dataset(spec: DatasetSpec, parts: Mapping[str, Samples]) -> Dataset:
    """Return the dataset of all splits."""
    task, classes, targets = _targets(parts)
    splits = {name: _split(part, targets[name]) for name, part in parts.items()}
    channels = max(split.channels for split in splits.values())
    splits, copies = with_sources(
        {name: replace(split, channels=channels) for name, split in splits.items()}
    )
    known = replace(spec, task=task)
    found = with_test_split(known, classes, splits, (channels, 0, 0))
    # How other images are read is not known before there is a recipe.
    found = _in_memory(found) if all(map(_is_plain, parts.values())) else found
    notes = [*found.notes, *copies]
    if set(parts) == {"train"}:
        held = len(found.splits["test"])
        of = f"of {len(targets['train']):,} images"
        notes += [f"no splits: {counted(held, f'{of} is', f'{of} are')} the test split"]
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in targets.values()))
    faults = (*found.faults, *same_names(classes, "labels"))
    return replace(found, notes=tuple(notes), faults=faults, labels=digest.hexdigest()[:16])


def _targets(parts: Mapping[str, Samples]) -> tuple[str, tuple[str, ...], dict[str, Tensor]]:
    """Return the task, the classes, and the targets of each split."""
    classes = next((part.classes for part in parts.values() if part.classes), ())
    if any(part.classes not in ((), classes) for part in parts.values()):
        raise UsageError("the splits have different classes")
    labels = {name: [_plain(label) for label in part.labels] for name, part in parts.items()}
    if any(isinstance(label, list) for label in labels["train"]):
        return "multilabel", *_several(labels, classes)
    _require_no_lists(label for column in labels.values() for label in column)
    if not classes:
        values = {label for column in labels.values() for label in column}
        classes = tuple(map(str, sorted(values, key=lambda v: (isinstance(v, str), v))))
    numbers: dict[Any, int] = {name: number for number, name in enumerate(classes)}
    if all(isinstance(label, int) for column in labels.values() for label in column):
        own_numbers = any(part.classes for part in parts.values())
        numbers = {(n if own_numbers else int(name)): n for n, name in enumerate(classes)}
    return (
        "classification",
        classes,
        {
            name: torch.tensor([_number(numbers, label, name) for label in column])
            for name, column in labels.items()
        },
    )


def _require_no_lists(labels: Iterable[Any]) -> None:
    """Raise DatasetCorruptError for a list as text, such as "['a', 'b']"."""
    for label in labels:
        try:
            quoted = isinstance(label, str) and label[-2:-1] in ("'", '"')
            is_list = quoted and bool(list_in(label))
        except ValueError:
            is_list = True
        if is_list:
            raise DatasetCorruptError(
                f"label {printable(repr(label))} is a list, but as text",
                "give lists of names, such as ast.literal_eval makes of such a text",
            )


def _number(numbers: Mapping[Any, int], label: Any, split: str) -> int:
    if label not in numbers:
        raise DatasetCorruptError(
            f"split '{split}': label {printable(repr(label))} is none of {len(numbers)} classes",
            "leave out a split without labels: data={'train': …, 'test': …}",
        )
    return numbers[label]


def _several(
    labels: Mapping[str, list[Any]], classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the classes and targets of images with several labels: 0 and 1, or lists of them."""
    rows = [row for column in labels.values() for row in column]
    lengths = {len(row) for row in rows}
    flags = len(lengths) == 1 and all(value in (0, 1) for row in rows for value in row)
    # With two classes, [0, 1] may be flags or numbers: a list with one entry per class is flags.
    if flags and (not classes or lengths == {len(classes)}):
        count = lengths.pop()
        names = classes or tuple(map(str, range(count)))
        return names, {n: torch.tensor(v).to(torch.uint8) for n, v in labels.items()}
    names = classes or tuple(map(str, sorted({value for row in rows for value in row})))
    numbers: dict[Any, int] = {name: n for n, name in enumerate(names)}
    # Numbers are those of the given classes, or else names themselves.
    numbers |= {
        n if classes else int(name): n
        for n, name in enumerate(names)
        if classes or name.isdecimal()
    }
    found = {}
    for name, column in labels.items():
        found[name] = torch.zeros(len(column), len(names), dtype=torch.uint8)
        for row, values in enumerate(column):
            found[name][row, [_number(numbers, value, name) for value in values]] = 1
    return names, found


def _plain(label: Any) -> Any:
    """Return a label as an int, a text, or a list of them."""
    if hasattr(label, "tolist"):  # numpy and torch
        label = label.tolist()
    if isinstance(label, tuple):
        label = list(label)
    if isinstance(label, bool | int):
        return int(label)
    if isinstance(label, str | list):
        return label
    raise DatasetCorruptError(
        f"labels are {type(label).__name__}, expected a class number or name, or a list of them"
    )


def _split(part: Samples, targets: Tensor) -> Files:
    """Return a split whose images are read from the object when they are needed."""
    if part.paths:
        return Files(part.paths, targets, image_type(part.paths)[0])
    items = (Item(partial(_pixels, part), n, part.name) for n in range(len(part.labels)))
    return Files(cast("tuple[Path, ...]", tuple(items)), targets, _channels(part))


def _pixels(part: Samples, index: int, channels: int, reading: Reading) -> Tensor:
    """Return an image of an object, uint8 C H W."""
    name = f"{part.name}[{index}]"
    image = upright_copy(_as_image(part.read(index), name), name)
    return image_pixels(image, channels, reading, name)


def _in_memory(dataset: Dataset) -> Dataset:
    """Return the dataset with its images in memory if they have one size and are not too many."""
    splits = cast("Mapping[str, Files]", dataset.splits)
    items = [image for split in splits.values() for image in split.images]
    if not all(isinstance(item, Item) for item in items):
        seen = survey_images(item for item in items if isinstance(item, Path))
        seen.grouped(splits, dataset.spec.classes)
        return replace(
            dataset,
            spec=replace(dataset.spec, image=(dataset.spec.image[0], *seen.size)),
            notes=tuple(seen.notes(dataset.reading)),
            faults=tuple(seen.faults(dataset.reading)),
            broken=seen.broken,
            survey=seen,
        )
    if len(items) * read_pixels(items[0], dataset.spec.image[0]).numel() > IN_MEMORY:
        return dataset
    found = {}
    for name, split in splits.items():
        images = [read_pixels(item, split.channels) for item in split.images]
        found[name] = images
    shapes = {tuple(image.shape) for images in found.values() for image in images}
    if len(shapes) > 1:
        return dataset
    ((channels, height, width),) = shapes
    return replace(
        dataset,
        spec=replace(dataset.spec, image=(channels, height, width)),
        splits={
            n: Split(torch.stack(found[n]), cast("Tensor", s.targets)) for n, s in splits.items()
        },
    )


def _as_image(image: Any, name: str) -> Image.Image:
    """Return a Pillow image, an array H W (C) or a tensor C H W as a Pillow image."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    if not isinstance(image, np.ndarray):
        raise UsageError(f"{name}: the image is {type(image).__name__}")
    if image.dtype != np.uint8:
        if not np.issubdtype(image.dtype, np.floating) or image.min() < 0 or image.max() > 1:
            raise UsageError(
                f"{name}: values from {image.min():g} to {image.max():g}, expected uint8, or "
                "floats from 0 to 1",
                "leave out Normalize: cnnzoo normalises images itself",
            )
        image = (image * 255).round().astype(np.uint8)
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def _channels(part: Samples) -> int:
    """Return 1 if all images of a sample, evenly spaced, are grey, else 3."""
    return 1 if all(image.mode in GREY for image in _some_images(part)) else 3


def _is_plain(part: Samples) -> bool:
    """Return whether images have 8 bits per channel and no transparency, as far as is seen."""
    return bool(part.paths) or not any(
        image.mode in DEEP_MODES or has_alpha(image) for image in _some_images(part)
    )


def _some_images(part: Samples) -> Iterator[Image.Image]:
    for index in range(0, len(part.labels), max(len(part.labels) // 20, 1)):
        yield _as_image(part.read(index), f"{part.name}[{index}]")
