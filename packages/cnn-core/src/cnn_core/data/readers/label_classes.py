"""Decide the classes of a table, and the class or the labels of each row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnn_core.data.readers.columns import SEPARATORS, Choice, Columns, Table
from cnn_core.data.readers.label_cells import NO_LABEL, evident_separator, list_in, words
from cnn_core.data.readers.spelling import (
    differ_in_marks,
    exact_number,
    has_decimal_comma,
    number_of,
    same_names,
    whole_numbers,
)
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted, printable

__all__ = ["Labels", "labels_of"]

GRADES = 10  # distinct fractions that still are classes
SHOWN = 3  # cells in an error
FLAGS = {"0", "1"}


@dataclass(frozen=True)
class Labels:
    """The classes of a table and the target of each row: N, or N x classes for multilabel."""

    task: str
    classes: tuple[str, ...]
    targets: Tensor
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def labels_of(table: Table, columns: Columns, choice: Choice) -> Labels:
    """Return the classes and targets of a table.

    Several columns of 0 and 1 are several classes of an image; if each row has exactly one 1, they
    are one class. Values such as a|b and ['a', 'b'] are several classes, and those such as "a b"
    with a separator or the task multilabel. Everything else is the name of a class.

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
    if choice.task != "classification" and (lists := _lists(table, column)) is not None:
        return _from_written_lists(table, column, lists, choice)
    piped = any("|" in value for value in values)
    if choice.separator or (piped and choice.task != "classification"):
        return _from_marks(table, column, choice.separator or "pipe", bool(choice.separator))
    if choice.task == "multilabel":
        return _split_as_seen(table, column)
    labels = _from_names(table, column, values)
    if choice.task or not (name := evident_separator(values)):
        return labels
    fault = (
        f"{_quoted(column)}: cells look like several labels separated by '{SEPARATORS[name]}', "
        f"but each is taken as one class: csv:FILE#separator={name}, or #task=classification"
    )
    return dataclasses.replace(labels, faults=(fault, *labels.faults))


def _lists(table: Table, column: str) -> list[list[str]] | None:
    """Return the lists in the cells of a column, such as ['a', 'b']; None if they hold names.

    Raises:
        DatasetCorruptError: only some cells are lists, or they are no flat lists.
    """
    values = table.values(column)
    found: dict[str, list[str] | None] = {}
    strange = set()
    for value in set(values) - {*NO_LABEL}:
        try:
            found[value] = list_in(value)
        except ValueError:
            strange.add(value)
    lists = {value: items for value, items in found.items() if items is not None}
    if lists and len(lists) == len(found) and not strange:
        return [lists.get(value, []) for value in values]
    # A name in brackets, such as [other], is a name if other cells have none.
    evident = strange | {v for v, items in lists.items() if len(items) > 1 or "'" in v or '"' in v}
    if not evident:
        return None
    rows = [row for row, value in enumerate(values) if value in evident]
    raise DatasetCorruptError(
        table.at_rows(
            rows,
            f"{_quoted(column)} holds lists"
            + (" that are not flat" if strange else ", but not in every row"),
            [values[row] for row in rows],
        ),
        "write several labels as a|b, or as ['a', 'b'] in every row; if each cell is the name of "
        "one class: csv:FILE#task=classification",
    )


def _from_written_lists(
    table: Table, column: str, lists: Sequence[Sequence[str]], choice: Choice
) -> Labels:
    """Return the labels of lists that a program has written into cells."""
    example = next(value for value in table.values(column) if value not in NO_LABEL)
    said = f"{_quoted(column)}: cells such as {printable(example)} are read as lists"
    if choice.task != "multilabel" and all(len(names) < 2 for names in lists):
        values = ["".join(names) for names in lists]
        labels = _from_names(table, column, values)
        said += " of one label, the class; if images may have several: #task=multilabel"
    else:
        _require_no_flags(table, column, lists)
        labels = _from_lists(column, lists)
        said += " of labels; to keep them as names: #task=classification"
    return dataclasses.replace(labels, notes=(said, *labels.notes))


def _require_no_flags(table: Table, column: str, lists: Sequence[Sequence[str]]) -> None:
    """Raise DatasetCorruptError for lists of 0 and 1, one for each class, instead of names."""
    lengths = {len(names) for names in lists}
    if len(lengths) > 1 or min(lengths) < 2 or not {n for names in lists for n in names} <= FLAGS:
        return
    raise DatasetCorruptError(
        table.at_rows(
            range(min(SHOWN, len(lists))),
            f"{_quoted(column)} holds 0 and 1 for each of {len(lists[0])} classes?",
            table.values(column)[:SHOWN],
        ),
        "write a column of 0 and 1 for each class, with its name in the header; if 0 and 1 are "
        "names of labels, write them as text, such as no and yes",
    )


def _from_marks(table: Table, column: str, name: str, chosen: bool) -> Labels:
    """Return the labels in cells such as a|b; `chosen` if the user gave the separator."""
    lists = _split(table.values(column), SEPARATORS[name])
    if not chosen:
        _require_no_flags(table, column, lists)
    return _from_lists(column, lists)


def _split(values: Iterable[str], mark: str) -> list[list[str]]:
    return [[] if value in NO_LABEL else words(value, mark) for value in values]


def _split_as_seen(table: Table, column: str) -> Labels:
    """Return the labels in the cells of a column without "|", and say what separates them.

    Raises:
        DatasetCorruptError: cells hold another separator, but do not look like lists.
    """
    values = table.values(column)
    if name := evident_separator(values):
        mark = SEPARATORS[name]
        labels = _from_lists(column, _split(values, mark))
        line = f"{_quoted(column)}: cells are split by '{mark}'; to keep them: #separator=pipe"
        return dataclasses.replace(labels, notes=(line, *labels.notes))
    marks = {name: mark for name, mark in SEPARATORS.items() if any(mark in v for v in values)}
    if not marks:
        return _from_lists(column, _split(values, "|"))
    name, mark = list(marks.items())[-1]
    rows = [row for row, value in enumerate(values) if mark in value]
    raise DatasetCorruptError(
        table.at_rows(rows, f"one label or several? No cell holds '|', some hold '{mark}'"),
        f"several: csv:FILE#separator={name}; one: csv:FILE#separator=pipe",
    )


def _from_names(table: Table, column: str, values: Sequence[str]) -> Labels:
    """Return a class for each distinct value; numbers are sorted as numbers."""
    if empty := [number for number, value in enumerate(values) if value in NO_LABEL]:
        found = sorted({values[number] for number in empty} - {""})
        said = f" but {', '.join(map(_quoted, found))}" if found else ""
        other = "; if it is a class, give it another name" if found else ""
        raise DatasetCorruptError(
            table.at_rows(empty, f"no label in {_quoted(column)}{said}"),
            f"leave out rows without a label{other}",
        )
    values, notes = _one_spelling(column, values)
    classes = _sorted(set(values))
    notes += _grades(table, column, classes)
    found_notes, faults = _spellings(column, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([numbers[value] for value in values], dtype=torch.int64)
    return Labels("classification", classes, targets, (*notes, *found_notes), faults)


def _grades(table: Table, column: str, classes: Sequence[str]) -> list[str]:
    """Return a line if classes are fractions.

    Raises:
        DatasetCorruptError: there are more than GRADES of them.
    """
    fractions = [name for name in classes if _is_fraction(name)]
    if not fractions:
        return []
    commas = "; write numbers with a point" if any(map(has_decimal_comma, fractions)) else ""
    if len(classes) > GRADES:
        raise DatasetCorruptError(
            f"{printable(table.name)}: {_quoted(column)} has {len(classes):,} different "
            f"numbers, such as {printable(fractions[0])}: they are not classes",
            f"two classes, below and above a threshold: csv:FILE#threshold=0.5{commas}",
        )
    return [
        f"{_quoted(column)} holds numbers, and each of its {len(classes)} values is a class; "
        f"for two classes: csv:FILE#threshold=0.5{commas}"
    ]


def _is_fraction(name: str) -> bool:
    number = number_of(name)
    return has_decimal_comma(name) if number is None else not number.is_integer()


def _one_spelling(column: str, values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values, with 1 for 1.0 if all are numbers and both occur, and lines on that."""
    names = set(values)
    if any(number_of(name) is None for name in names):
        return list(values), []
    merged, counts = whole_numbers(names), Counter(values)
    pairs = [f"{_quoted(name)} as {_quoted(whole)}" for name, whole in sorted(merged.items())]
    more = ", …" if len(pairs) > SHOWN else ""
    times = counted(sum(counts[name] for name in merged), "time")
    line = f"{_quoted(column)}: taken as one class: {', '.join(pairs[:SHOWN])}{more} ({times})"
    return [merged.get(value, value) for value in values], [line] if merged else []


def _spellings(column: str, classes: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return notes and faults on classes whose names differ only in spelling."""
    notes = [
        f"different classes: {' and '.join(map(_quoted, same))}"
        for same in differ_in_marks(classes)
    ]
    return notes, tuple(same_names(classes, _quoted(column)))


def _from_threshold(table: Table, column: str, threshold: float) -> Labels:
    """Return two classes: numbers below a threshold, and all others."""
    values = table.values(column)
    numbers = [number_of(value) for value in values]
    if wrong := [row for row, number in enumerate(numbers) if number is None]:
        text = values[wrong[0]]
        point = "write numbers with a point, such as 0.5, not with a comma"
        raise DatasetCorruptError(
            table.at_rows(wrong, f"{_quoted(column)} is not a number: {_quoted(text)}"),
            point if has_decimal_comma(text) else "",
        )
    above = [number is not None and number >= threshold for number in numbers]
    classes = (f"below {threshold:g}", f"{threshold:g} or more")
    return Labels("classification", classes, torch.tensor(above).long())


def _from_lists(column: str, lists: Sequence[Sequence[str]]) -> Labels:
    """Return all names in the lists of the rows, and which of them each row has."""
    spelled, lines = _one_spelling(column, [name for names in lists for name in names])
    in_order = iter(spelled)
    lists = [[next(in_order) for _ in names] for names in lists]
    classes = _sorted(set(spelled))
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.zeros(len(lists), len(classes), dtype=torch.uint8)
    for row, names in enumerate(lists):
        targets[row, [numbers[name] for name in names]] = 1
    notes, faults = _spellings(column, classes)
    return Labels("multilabel", classes, targets, (*lines, *notes, *_unlabelled(targets)), faults)


def _from_flags(table: Table, columns: tuple[str, ...], task: str) -> Labels:
    """Return a class for each of several columns of 0 and 1, or of -1 and 1."""
    columns_of_numbers = [[float(v) > 0 for v in table.values(column)] for column in columns]
    targets = torch.tensor(columns_of_numbers).T.to(torch.uint8)
    if task != "multilabel" and bool((targets.sum(1) == 1).all()):
        note = f"each row has exactly one 1 in {len(columns)} columns: it is the class"
        return Labels("classification", columns, targets.argmax(1), (note,))
    if task == "classification":
        many = (targets.sum(1) != 1).nonzero().flatten().tolist()
        raise DatasetCorruptError(table.at_rows(many, "not exactly one 1"))
    note = f"{len(columns)} columns of 0 and 1 are classes: {', '.join(columns[:5])}" + (
        ", …" if len(columns) > 5 else ""
    )
    return Labels("multilabel", columns, targets, (printable(note), *_unlabelled(targets)))


def _unlabelled(targets: Tensor) -> list[str]:
    none = int((targets.sum(1) == 0).sum())
    one, many = "image has no label: it belongs", "images have no label: they belong"
    return [f"{counted(none, one, many)} to no class"] if none else []


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in their order; numbers as numbers, without rounding them."""
    numbers = {name: exact_number(name) for name in names}
    known = [(number, name) for name, number in numbers.items() if number is not None]
    if len(known) < len(numbers):
        return tuple(sorted(numbers))
    return tuple(name for _, name in sorted(known))


def _quoted(name: str) -> str:
    return f"'{printable(name)}'"
