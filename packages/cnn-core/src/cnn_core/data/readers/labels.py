"""Turn a table of paths and labels into a dataset, and account for every row and every file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cnn_core.data.dataset import Dataset
from cnn_core.data.pixels import AS_USUAL, Reading
from cnn_core.data.readers.columns import Choice, Columns, Table, find_columns
from cnn_core.data.readers.copies import with_sources
from cnn_core.data.readers.folders import with_test_split
from cnn_core.data.readers.label_classes import Labels, labels_of
from cnn_core.data.readers.label_files import files_of, unlisted
from cnn_core.data.readers.spelling import has_decimal_comma, number_of
from cnn_core.data.readers.survey import survey_images
from cnn_core.data.split_names import UNDERSTOOD, held_out_names, splits_among
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, printable

__all__ = ["labelled"]

SHOWN = 3  # rows in an error


def labelled(
    spec: DatasetSpec, table: Table, root: Path, choice: Choice, reading: Reading = AS_USUAL
) -> Dataset:
    """Return the dataset of a table; relative paths are relative to `root`.

    Raises:
        UsageError, DatasetCorruptError: as for `cnn_core.data.readers.csv_file.load`.
    """
    columns = find_columns(table, choice)
    labels = labels_of(table, columns, choice)
    paths, found = files_of(table, columns.path, root)
    names, weights = _splits(table, columns.split), _weights(table, columns.weight)
    kept, repeated = _distinct(table, paths, labels.targets, names)
    splits = {
        name: Files(
            tuple(paths[row] for row in rows),
            labels.targets[rows],
            weights=None if weights is None else weights[rows],
        )
        for name, rows in _by_split(kept, names).items()
    }
    with _said(labels.faults):
        _check_classes(table, labels, splits)
    images = survey_images(paths[row] for row in kept)
    splits = {
        name: dataclasses.replace(split, channels=images.channels, reading=reading)
        for name, split in splits.items()
    }
    splits, copies = with_sources(splits)
    images.grouped(splits, labels.classes)
    known = dataclasses.replace(spec, task=labels.task)
    with _said(labels.faults):
        dataset = with_test_split(known, labels.classes, splits, (images.channels, *images.size))
    notes = [
        *_understood(table, columns),
        *_called_test(table, columns.split),
        *labels.notes,
        *found,
        *repeated,
        *_held_out(dataset, splits),
        *unlisted(table, paths, root),
        *copies,
        *images.notes(reading),
    ]
    return dataclasses.replace(
        dataset,
        notes=tuple(notes),
        faults=(*labels.faults, *images.faults(reading)),
        labels=_digest(dataset),
        broken=images.broken,
        survey=images,
    )


@contextlib.contextmanager
def _said(faults: Sequence[str]) -> Iterator[None]:
    """Make the first fault of the labels, which may be the cause of an error, the error's hint."""
    try:
        yield
    except DatasetCorruptError as error:
        if not faults:
            raise
        raise DatasetCorruptError(error.message, faults[0]) from None


# Columns


def _understood(table: Table, columns: Columns) -> Iterator[str]:
    """Say how the columns were understood, if they have no names, and which are not used."""
    unused = [name for name in table.columns if name not in columns.used]
    if not table.header:
        yield (
            f"no header: {columns.path} is the path, {columns.labels[0]} the label; "
            "another one: csv:FILE#label=NUMBER"
        )
    if unused:
        listed = ", ".join(map(printable, unused[:8]))
        yield f"columns that are not used: {listed}{', …' if len(unused) > 8 else ''}"


# Rows


def _splits(table: Table, column: str) -> list[str]:
    """Return the split of each row; "train" in a table without splits."""
    if not column:
        return ["train"] * len(table.rows)
    values = table.values(column)
    meant = {name: split for split, same in splits_among(set(values)).items() for name in same}
    names = [meant.get(value, "") for value in values]
    if unknown := [row for row, name in enumerate(names) if not name]:
        counts = Counter(values[row] for row in unknown).most_common(SHOWN)
        listed = ", ".join(f"'{printable(value)}' ({counted(n, 'row')})" for value, n in counts)
        raise DatasetCorruptError(
            f"{table.at(unknown[0])}: unknown splits in {_quoted(column)}: {listed}",
            f"{UNDERSTOOD}; another column: csv:FILE#split=NAME",
        )
    if "train" not in names:
        found = ", ".join(sorted(set(names)))
        raise DatasetCorruptError(f"{printable(table.name)}: has {found}, but no row of 'train'")
    return names


def _called_test(table: Table, column: str) -> Iterator[str]:
    """Say which names are taken as the test split, if it is not evident."""
    for name in held_out_names(sorted(set(table.values(column)))) if column else ():
        yield f"{_quoted(column)}: {_quoted(name)} is taken as the split 'test'"


def _weights(table: Table, column: str) -> Tensor | None:
    """Return the weight of each row in the loss, float32, or None."""
    if not column:
        return None
    values = table.values(column)
    numbers = [number_of(value) for value in values]
    if wrong := [row for row, n in enumerate(numbers) if n is None or n < 0]:
        text = values[wrong[0]]
        hint = "give each image a weight" if not text else "weights are numbers such as 1 or 0.5"
        if has_decimal_comma(text):
            hint = f"write {text.replace(',', '.')}, with a point: a decimal comma is not read"
        raise DatasetCorruptError(
            table.at_rows(
                wrong, f"{_quoted(column)} is not a number of 0 or more: {_quoted(text)}"
            ),
            hint,
        )
    return torch.tensor(numbers, dtype=torch.float32)


def _distinct(
    table: Table, paths: Sequence[Path], targets: Tensor, names: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Return the rows to keep, one for each file, and a line about the others.

    Raises:
        DatasetCorruptError: two rows give one file different labels or splits.
    """
    first: dict[str, int] = {}
    wrong: list[int] = []
    kept = []
    for row, path in enumerate(paths):
        before = first.setdefault(os.path.realpath(path), row)
        if before == row:
            kept.append(row)
        elif names[before] != names[row] or not torch.equal(targets[before], targets[row]):
            wrong += [before, row]
    if wrong:
        shown = [f"{paths[row].name}" for row in wrong]
        raise DatasetCorruptError(
            table.at_rows(wrong, "one image with different labels or splits", shown),
            "keep one row; for several labels of an image, write them in one row: a|b",
        )
    repeated = len(paths) - len(kept)
    one, many = "row repeats an image", "rows repeat an image"
    once = "it counts once" if repeated == 1 else "they count once"
    lines = [f"{counted(repeated, one, many)} with the same label: {once}"]
    return kept, lines if repeated else []


def _by_split(kept: Iterable[int], names: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row in kept:
        rows.setdefault(names[row], []).append(row)
    return rows


def _check_classes(table: Table, labels: Labels, splits: dict[str, Files]) -> None:
    """Raise DatasetCorruptError for too few classes, or for one that is not in train."""
    least = 1 if labels.task == "multilabel" else 2
    if len(labels.classes) < least:
        raise DatasetCorruptError(
            f"{printable(table.name)}: {counted(len(labels.classes), 'class', 'classes')}, "
            f"expected at least {least}"
        )
    targets = splits["train"].targets
    assert isinstance(targets, Tensor)
    if labels.task == "multilabel":
        present = set(targets.any(0).nonzero().flatten().tolist())
    else:
        present = set(targets.tolist())
    missing = [name for number, name in enumerate(labels.classes) if number not in present]
    if missing:
        listed = ", ".join(_quoted(name) for name in missing[:SHOWN])
        raise DatasetCorruptError(
            f"{printable(table.name)}: no image of the training split has the label {listed}",
            "each class needs images to train on",
        )


def _held_out(dataset: Dataset, splits: dict[str, Files]) -> Iterator[str]:
    if "val" in dataset.aliases:
        yield "val: used as the split 'test', since there is no other"
    elif set(splits) == {"train"}:
        held = len(dataset.splits["test"])
        of = f"of {held + len(dataset.splits['train']):,} images"
        yield f"no splits: {counted(held, f'{of} is', f'{of} are')} the test split"


def _quoted(name: str) -> str:
    return f"'{printable(name)}'"


def _digest(dataset: Dataset) -> str:
    """Return a digest of the labels and weights, which are not in the names of the files."""
    digest = hashlib.sha256()
    for _, split in sorted(dataset.splits.items()):
        for part in (split.targets, split.weights):
            if isinstance(part, Tensor):
                digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]
