"""Turn a table of paths and labels into a dataset, and account for every row and every file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cnn_core.data.dataset import Dataset, Files
from cnn_core.data.pixels import AS_USUAL, Reading
from cnn_core.data.readers.columns import SEPARATORS, Choice, Columns, Table, find_columns
from cnn_core.data.readers.folders import with_test_split
from cnn_core.data.readers.listing import sorted_files
from cnn_core.data.readers.survey import survey_images
from cnn_core.data.split_names import UNDERSTOOD, held_out_names, splits_among
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, printable

__all__ = ["Labels", "labelled", "labels_of"]

SHOWN = 3  # rows in an error
# What programs write for an empty cell.
NO_LABEL = ("", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "null", "NULL")
GRADES = 10  # distinct fractions that still are classes


@dataclass(frozen=True)
class Labels:
    """The classes of a table and the target of each row: N, or N x classes for multilabel."""

    task: str
    classes: tuple[str, ...]
    targets: Tensor
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def labelled(
    spec: DatasetSpec, table: Table, root: Path, choice: Choice, reading: Reading = AS_USUAL
) -> Dataset:
    """Return the dataset of a table; relative paths are relative to `root`.

    Raises:
        UsageError, DatasetCorruptError: as for `cnn_core.data.readers.csv_file.load`.
    """
    columns = find_columns(table, choice)
    labels = labels_of(table, columns, choice)
    paths, found = _files(table, columns.path, root)
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
        *_unlisted(table, paths, root),
        *images.notes(reading),
    ]
    return dataclasses.replace(
        dataset,
        notes=tuple(notes),
        faults=(*labels.faults, *images.faults(reading)),
        labels=_digest(dataset),
        broken=images.broken,
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


# Labels


def labels_of(table: Table, columns: Columns, choice: Choice) -> Labels:
    """Return the classes and targets of a table.

    Several columns of 0 and 1 are several classes of an image; if each row has exactly one 1, they
    are one class. Values such as a|b are several classes, and those such as "a b" with a separator
    or the task multilabel. Everything else is the name of a class.

    Raises:
        UsageError: a separator was chosen for columns of 0 and 1.
        DatasetCorruptError: the labels cannot be read; the message gives the line.
    """
    if len(columns.labels) > 1:
        if choice.separator:
            raise UsageError(
                f"separator: the labels are in {len(columns.labels)} columns, not in one",
                "leave it out, or choose a column: csv:FILE#label=NAME",
            )
        return _from_flags(table, columns.labels, choice.task)
    (column,) = columns.labels
    values = table.values(column)
    if choice.threshold is not None:
        return _from_threshold(table, column, choice.threshold)
    piped = any("|" in value for value in values)
    if choice.separator or (piped and choice.task != "classification"):
        return _from_lists(values, SEPARATORS[choice.separator or "pipe"])
    if choice.task == "multilabel":
        return _split_as_seen(table, column)
    labels = _from_names(table, column)
    if choice.task or not (name := _evident_separator(values)):
        return labels
    fault = (
        f"{_quoted(column)}: cells look like several labels separated by '{SEPARATORS[name]}', "
        f"but each is taken as one class: csv:FILE#separator={name}, or #task=classification"
    )
    return dataclasses.replace(labels, faults=(fault,))


def _split_as_seen(table: Table, column: str) -> Labels:
    """Return the labels in the cells of a column without "|", and say what separates them.

    Raises:
        DatasetCorruptError: cells hold another separator, but do not look like lists.
    """
    values = table.values(column)
    if name := _evident_separator(values):
        labels = _from_lists(values, mark := SEPARATORS[name])
        line = f"{_quoted(column)}: cells are split by '{mark}'; to keep them: #separator=pipe"
        return dataclasses.replace(labels, notes=(line, *labels.notes))
    marks = {name: mark for name, mark in SEPARATORS.items() if any(mark in v for v in values)}
    if not marks:
        return _from_lists(values, "|")
    name, mark = list(marks.items())[-1]
    rows = [row for row, value in enumerate(values) if mark in value]
    raise DatasetCorruptError(
        _rows(table, rows, f"one label or several? No cell holds '|', some hold '{mark}'"),
        f"several: csv:FILE#separator={name}; one: csv:FILE#separator=pipe",
    )


def _evident_separator(values: Iterable[str]) -> str:
    """Return the key in SEPARATORS of the mark between labels, if cells look like lists, or "".

    They do if most of their words are in other cells, too. Names of classes such as "black cat"
    and "black dog" have spaces: with spaces, one of the words must also be a cell of its own.
    """
    distinct = set(values)
    for name in ("semicolon", "comma", "space"):
        lists = {value: set(_words(value, SEPARATORS[name])) for value in distinct}
        counts = Counter(word for words in lists.values() for word in words)
        inside = {word for words in lists.values() if len(words) > 1 for word in words}
        shared = sum(counts[word] > 1 for word in inside)
        if 2 * shared > len(inside) and (name != "space" or inside & distinct):
            return name
    return ""


def _words(value: str, mark: str) -> list[str]:
    return [word.strip() for word in value.split(mark) if word.strip()]


def _from_names(table: Table, column: str) -> Labels:
    """Return a class for each distinct value of a column; numbers are sorted as numbers."""
    values = table.values(column)
    if empty := [number for number, value in enumerate(values) if value in NO_LABEL]:
        found = sorted({values[number] for number in empty} - {""})
        said = f" but {', '.join(map(_quoted, found))}" if found else ""
        other = "; if it is a class, give it another name" if found else ""
        raise DatasetCorruptError(
            _rows(table, empty, f"no label in {_quoted(column)}{said}"),
            f"leave out rows without a label{other}",
        )
    values = _one_spelling(values)
    classes = _sorted(set(values))
    notes = []
    if fractions := [v for v in classes if _number(v) is not None and not _is_integer(v)]:
        if len(classes) > GRADES:
            raise DatasetCorruptError(
                f"{printable(table.name)}: {_quoted(column)} has {len(classes):,} different "
                f"numbers, such as {printable(fractions[0])}: they are not classes",
                "two classes, below and above a threshold: csv:FILE#threshold=0.5",
            )
        notes.append(
            f"{_quoted(column)} holds numbers, and each of its {len(classes)} values is a class; "
            "for two classes: csv:FILE#threshold=0.5"
        )
    notes += _alike(classes)
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([numbers[value] for value in values], dtype=torch.int64)
    return Labels("classification", classes, targets, tuple(notes))


def _one_spelling(values: Sequence[str]) -> list[str]:
    """Return the values; if all are numbers, with one spelling of each: 1 and 1.0 are the same."""
    numbers = {value: _number(value) for value in set(values)}
    if None in numbers.values():
        return list(values)
    shortest: dict[float | None, str] = {}
    for value in sorted(numbers, key=lambda value: (len(value), value)):
        shortest.setdefault(numbers[value], value)
    return [shortest[numbers[value]] for value in values]


def _from_threshold(table: Table, column: str, threshold: float) -> Labels:
    """Return two classes: numbers below a threshold, and all others."""
    numbers = [_number(value) for value in table.values(column)]
    if wrong := [row for row, number in enumerate(numbers) if number is None]:
        raise DatasetCorruptError(_rows(table, wrong, f"{_quoted(column)} is not a number"))
    above = [number is not None and number >= threshold for number in numbers]
    classes = (f"below {threshold:g}", f"{threshold:g} or more")
    return Labels("classification", classes, torch.tensor(above).long())


def _from_lists(values: Sequence[str], mark: str) -> Labels:
    """Return all names in values such as a|b, where `mark` is "|", and which of them each row has.

    NaN, None and the like are not names.
    """
    lists = [[] if value in NO_LABEL else _words(value, mark) for value in values]
    classes = _sorted({name for names in lists for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.zeros(len(values), len(classes), dtype=torch.uint8)
    for row, names in enumerate(lists):
        targets[row, [numbers[name] for name in names]] = 1
    return Labels("multilabel", classes, targets, (*_alike(classes), *_unlabelled(targets)))


def _from_flags(table: Table, columns: tuple[str, ...], task: str) -> Labels:
    """Return a class for each of several columns of 0 and 1, or of -1 and 1."""
    columns_of_numbers = [[float(v) > 0 for v in table.values(column)] for column in columns]
    targets = torch.tensor(columns_of_numbers).T.to(torch.uint8)
    if task != "multilabel" and bool((targets.sum(1) == 1).all()):
        note = f"each row has exactly one 1 in {len(columns)} columns: it is the class"
        return Labels("classification", columns, targets.argmax(1), (note,))
    if task == "classification":
        many = (targets.sum(1) != 1).nonzero().flatten().tolist()
        raise DatasetCorruptError(_rows(table, many, "not exactly one 1"))
    note = f"{len(columns)} columns of 0 and 1 are classes: {', '.join(columns[:5])}" + (
        ", …" if len(columns) > 5 else ""
    )
    return Labels("multilabel", columns, targets, (printable(note), *_unlabelled(targets)))


def _unlabelled(targets: Tensor) -> list[str]:
    none = int((targets.sum(1) == 0).sum())
    one, many = "image has no label: it belongs", "images have no label: they belong"
    return [f"{counted(none, one, many)} to no class"] if none else []


def _alike(classes: Iterable[str]) -> list[str]:
    """Report classes whose names differ only in spelling."""
    spellings: dict[str, list[str]] = {}
    for name in classes:
        form = unicodedata.normalize("NFC", name)
        spellings.setdefault(re.sub(r"[\s_-]+", "", form).casefold(), []).append(name)
    return [
        f"different classes: {' and '.join(_quoted(name) for name in same)}{_unlike(same)}"
        for same in spellings.values()
        if len(same) > 1
    ]


def _unlike(names: Sequence[str]) -> str:
    """Return what a message adds about different names that look the same."""
    forms = {unicodedata.normalize("NFC", name) for name in names}
    return " (they look the same: Unicode NFC and NFD)" if len(forms) < len(names) else ""


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    numbers = {name: _number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))
    return tuple(sorted(numbers))


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_integer(value: str) -> bool:
    number = _number(value)
    return number is not None and number.is_integer()


# Files


def _files(table: Table, column: str, root: Path) -> tuple[list[Path], list[str]]:
    """Return the file of each row, and lines about files that were found elsewhere."""
    values = table.values(column)
    paths: list[Path | None] = [_beside(root, value) for value in values]
    missing = [row for row, path in enumerate(paths) if path is None]
    if not missing:
        return [path for path in paths if path is not None], []
    found = _found_by_name(root, [values[row] for row in missing])
    _require_one(table, root, {row: values[row] for row in missing}, found)
    for row in missing:
        (paths[row],) = found[values[row]]
    images = {path for same in found.values() for path in same}
    folders = sorted({str(path.parent.relative_to(root)) for path in images})
    found_by = "images were found by their names"
    line = (
        f"{counted(len(images), 'image was found by its name', found_by)} in "
        f"{', '.join(folders[:3])}{', …' if len(folders) > 3 else ''}"
    )
    return [path for path in paths if path is not None], [line]


def _require_one(
    table: Table, root: Path, values: Mapping[int, str], found: Mapping[str, list[Path]]
) -> None:
    """Raise DatasetCorruptError unless exactly one file was found for the path in each row."""
    if lost := [row for row, value in values.items() if not found[value]]:
        raise DatasetCorruptError(
            _rows(table, lost, "no such file", [values[row] for row in lost]),
            f"paths are relative to {printable(str(root))}; correct them, or remove the rows",
        )
    if several := [row for row, value in values.items() if len(found[value]) > 1]:
        same = [path.relative_to(root) for path in found[values[several[0]]]]
        folders, missing = [str(path.parent) for path in same], "folder"
        if len(set(folders)) < len(same):
            folders, missing = list(map(str, same)), "whole name"
        where = printable(" and ".join(folders[:SHOWN]))
        raise DatasetCorruptError(
            _rows(table, several, f"found in {where}", [values[row] for row in several]),
            f"give the {missing}, such as {printable(str(same[0]))}",
        )


def _beside(root: Path, value: str) -> Path | None:
    """Return the file of a path relative to `root`, or None; \\ may separate folders."""
    for name in dict.fromkeys((value, value.replace("\\", "/"))):
        if name and (path := root / Path(name).expanduser()).is_file():
            return path
    return None


def _found_by_name(root: Path, values: Iterable[str]) -> dict[str, list[Path]]:
    """Return the images below `root` of each name, with or without its suffix.

    If the value names folders, those of the image must be the same.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted_files(root):
        for name in {path.name, path.stem}:
            by_name.setdefault(name, []).append(path)
    found = {}
    for value in values:
        *folders, name = value.replace("\\", "/").split("/")
        same = by_name.get(name, [])
        found[value] = [path for path in same if _in_folders(path, root, folders)]
    return found


def _in_folders(path: Path, root: Path, folders: list[str]) -> bool:
    """Return whether a file lies in these folders: one list of folders ends with the other."""
    named = [folder for folder in folders if folder not in ("", ".")]
    own = list(path.absolute().parent.parts)
    # The folders may be those of another machine: then they end with the file's folders below
    # that of the table.
    inner = own[len(root.absolute().parts) :] or own[-1:]
    return not named or own[-len(named) :] == named or named[-len(inner) :] == inner


def _unlisted(table: Table, paths: Sequence[Path], root: Path) -> Iterator[str]:
    """Count the images that lie beside those of the table, but are not in it."""
    listed = {os.path.realpath(path) for path in paths}
    others = 0
    for folder in {path.parent for path in paths}:
        if folder.is_relative_to(root):
            files = (file for file in sorted_files(folder) if file.parent == folder)
            others += sum(os.path.realpath(file) not in listed for file in files)
    if others:
        beside = counted(others, "image beside them is", "images beside them are")
        yield f"{beside} not in {printable(Path(table.name).name)}"


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
    numbers = [_number(value) for value in table.values(column)]
    if wrong := [row for row, n in enumerate(numbers) if n is None or n < 0]:
        raise DatasetCorruptError(
            _rows(table, wrong, f"{_quoted(column)} is not a number of 0 or more"),
            "give each image a weight",
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
            _rows(table, wrong, "one image with different labels or splits", shown),
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


def _rows(table: Table, rows: Sequence[int], problem: str, values: Sequence[str] = ()) -> str:
    """Return a message about rows, with the lines of the first ones and the number of all."""
    lines = [table.at(rows[0]), *(str(table.rows[row][0]) for row in rows[1:SHOWN])]
    more = f" ({len(rows):,} rows)" if len(rows) > 1 else ""
    named = f"{', '.join(map(printable, values[:SHOWN]))}: " if values else ""
    return f"{', '.join(lines)}: {named}{problem}{more}"


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
