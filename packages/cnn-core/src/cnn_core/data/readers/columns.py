"""Tables with a row for each image: which column is the path, the label, the split, the weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from cnn_core.data.formats import SUFFIXES
from cnn_core.data.readers.spelling import number_of
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted, did_you_mean, printable

__all__ = ["Choice", "Columns", "SEPARATORS", "Table", "find_columns", "is_header"]

_NAMES = {  # without case, spaces, hyphens and underscores
    "path": (
        "path filepath filepaths imagepath imgpath image images img imgs filename filenames file "
        "files imagefile imagefilename imagename imgname imageid imgid fname photo picture id name"
    ),
    "label": (
        "label labels class classes classname target targets category categories tag tags "
        "species breed diagnosis y annotation"
    ),
    "split": "split splits subset set partition",
    "weight": "weight weights sampleweight imageweight",
}
NAMES: dict[str, tuple[str, ...]] = {kind: tuple(n.split()) for kind, n in _NAMES.items()}
SHOWN = 8  # columns in an error
ROWS = 3  # rows in an error
SEPARATORS = {"pipe": "|", "space": " ", "comma": ",", "semicolon": ";"}  # of labels in a cell


@dataclass(frozen=True)
class Choice:
    """A user's choices for a table: columns by name or number, a threshold, a task, a separator.

    `separator`, a key of SEPARATORS, names what separates labels in a cell; the task is then
    multilabel.
    """

    path: str = ""
    label: str = ""
    split: str = ""
    weight: str = ""
    threshold: float | None = None
    task: str = ""
    separator: str = ""

    @classmethod
    def of(cls, choices: Mapping[str, Any]) -> Choice:
        """Return the choices; a threshold is text or a number.

        Raises:
            UsageError: the threshold is not a number, there is no such task or
                separator, or two choices exclude each other.
        """
        found = dict(choices)
        if "threshold" in found:
            found["threshold"] = number_of(text := str(found["threshold"]))
            if found["threshold"] is None:
                raise UsageError(f"threshold = '{printable(text)}'", "a number such as 0.5")
        if found.get("task", "") not in ("", "classification", "multilabel"):
            raise UsageError(
                f"task = '{printable(found['task'])}'", "classification, or multilabel"
            )
        _check_separator(found)
        return cls(**found)


def _check_separator(found: Mapping[str, Any]) -> None:
    if "separator" not in found:
        return
    if found["separator"] not in SEPARATORS:
        raise UsageError(f"separator = '{printable(found['separator'])}'", ", ".join(SEPARATORS))
    if found.get("task") == "classification" or "threshold" in found:
        raise UsageError(
            "separator is for several labels of an image (multilabel)",
            "leave out separator, or task=classification and threshold",
        )


@dataclass(frozen=True)
class Table:
    """Rows of text with their line numbers, and the names of the columns."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[int, Sequence[str]]] = field(repr=False)
    header: bool = True

    def values(self, column: str) -> list[str]:
        """Return the values of a column, row by row."""
        number = self.columns.index(column)
        return [row[number] for _, row in self.rows]

    def at(self, number: int) -> str:
        """Return where a row is, for messages: its file and line."""
        return f"{printable(self.name)}:{self.rows[number][0]}"

    def at_rows(self, numbers: Sequence[int], problem: str, values: Sequence[str] = ()) -> str:
        """Return a message that begins with the lines of the first rows, and their `values`."""
        lines = [self.at(numbers[0]), *(str(self.rows[row][0]) for row in numbers[1:ROWS])]
        more = f" ({counted(len(numbers), 'row')})" if len(numbers) > 1 else ""
        named = f"{', '.join(map(printable, values[:ROWS]))}: " if values else ""
        return f"{', '.join(lines)}: {named}{problem}{more}"


@dataclass(frozen=True)
class Columns:
    """The columns of a table: the labels are in one column, or in several of 0 and 1."""

    path: str
    labels: tuple[str, ...]
    split: str = ""
    weight: str = ""

    @property
    def used(self) -> tuple[str, ...]:
        """The names of all these columns."""
        return tuple(filter(None, (self.path, *self.labels, self.split, self.weight)))


def is_header(first: Sequence[str], second: Sequence[str] | None) -> bool:
    """Return whether the first row of a file has names of columns, not an image."""
    if any(_looks_like_image(value) for value in first):
        return False
    known = {name for names in NAMES.values() for name in names}
    if known & {_folded(value) for value in first}:
        return True
    return second is not None and any(_looks_like_image(value) for value in second)


def find_columns(table: Table, choice: Choice) -> Columns:
    """Return the columns that a user chose, else those with known names, else by their content.

    Raises:
        UsageError: there is no such column.
        DatasetCorruptError: no column, or more than one, can be the path or the label.
    """
    path = _chosen(table, choice.path) or _named(table, "path") or _of_images(table)
    split = _chosen(table, choice.split) or _named(table, "split", besides=(path,))
    weight = _chosen(table, choice.weight) or _named(table, "weight", besides=(path,))
    taken = (path, split, weight)
    label = _chosen(table, choice.label) or _named(table, "label", besides=taken)
    rest = [column for column in table.columns if column not in taken]
    return Columns(path, (label,) if label else _label_columns(table, rest), split, weight)


def _label_columns(table: Table, rest: list[str]) -> tuple[str, ...]:
    """Return the columns of 0 and 1; if there are none, the only column that is left.

    For a table in which no column has a usual name for labels.
    """
    if not table.header:
        return (_only(table, rest[:1]),)  # names say nothing here: the label follows the path
    flags = tuple(c for c in rest if {_flag(v) for v in set(table.values(c))} <= {"0", "1"})
    signs = tuple(c for c in rest if {_flag(v) for v in set(table.values(c))} <= {"-1", "1"})
    found = max(flags, signs, key=len)
    return found if len(found) > 1 else (_only(table, rest),)


def _flag(value: str) -> str:
    """Return a number without zeros after the point: "1" for "1.0", too."""
    return re.sub(r"\.0*$", "", value)


def _only(table: Table, rest: list[str]) -> str:
    if len(rest) == 1:
        return rest[0]
    listed = ", ".join(f"'{printable(name)}'" for name in table.columns[:SHOWN])
    raise DatasetCorruptError(
        f"{printable(table.name)}: which column is the label? It has {listed}",
        f"choose it: csv:FILE#label=NAME, or call it {NAMES['label'][0]}",
    )


def _chosen(table: Table, name: str) -> str:
    """Return the column that a user gave by name or by number from 1; "" if none was given."""
    if not name or name in table.columns:
        return name
    if name.isdecimal() and 1 <= int(name) <= len(table.columns):
        return table.columns[int(name) - 1]
    listed = ", ".join(map(printable, table.columns[:SHOWN]))
    raise UsageError(
        f"{printable(table.name)}: no column '{printable(name)}'"
        f"{did_you_mean(name, table.columns)}",
        f"columns: {listed}; or a number from 1 to {len(table.columns)}",
    )


def _named(table: Table, kind: str, besides: Sequence[str] = ()) -> str:
    """Return the column with the first of the usual names of a kind, or ""."""
    if not table.header:
        return ""
    by_name: dict[str, list[str]] = {}
    for column in table.columns:
        if column not in besides:
            by_name.setdefault(_folded(column), []).append(column)
    for name in NAMES[kind]:
        for column in by_name.get(name, ()):
            if kind != "path" or _can_be_path(table, column):
                return column
    return ""


def _can_be_path(table: Table, column: str) -> bool:
    """Return whether a column can hold paths: a column of images wins over one called "id"."""
    others = any(_looks_like_image(value) for _, row in table.rows[:1] for value in row)
    first = table.rows[0][1][table.columns.index(column)] if table.rows else ""
    return _looks_like_image(first) or not others


def _of_images(table: Table) -> str:
    """Return the column whose values look like names of image files."""
    first = table.rows[0][1] if table.rows else ()
    found = [name for name, v in zip(table.columns, first, strict=False) if _looks_like_image(v)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"'{printable(name)}'" for name in table.columns[:SHOWN])
    raise DatasetCorruptError(
        f"{printable(table.name)}: which column is the path of the image? It has {listed}",
        "call it path, or choose it: csv:FILE#path=NAME; names of columns are in the first line\n"
        f"images end in {', '.join(SUFFIXES)}",
    )


def _looks_like_image(value: str) -> bool:
    return PurePath(value.replace("\\", "/")).suffix.lower() in SUFFIXES


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()
