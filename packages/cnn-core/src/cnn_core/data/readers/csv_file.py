"""Read a text file with a row for each image, `csv:FILE`: separators, encodings, headers."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnn_core.data.dataset import Dataset
from cnn_core.data.readers.columns import Choice, Table, is_header
from cnn_core.data.readers.description import read_description, with_description
from cnn_core.data.readers.labels import labelled
from cnn_core.errors import DatasetCorruptError, DatasetMissingError, UsageError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, did_you_mean, printable

__all__ = ["load", "read_table"]

SEPARATORS = (",", ";", "\t", " ")  # in this order, if several give rows of one length
LOOKED_AT = 200  # rows that choose the separator
MAX_BYTES = 2**30
OPTIONS = ("path", "label", "split", "weight", "threshold", "task", "separator")


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the images that a text file lists, with their labels.

    `root` is the path of the file, or "FILE#label=NAME,threshold=0.5" with choices of columns. A
    file dataset.toml beside it says how the images are read, as in `load_images`.

    Raises:
        DatasetMissingError: there is no such file.
        UsageError: a choice is unknown, or names a column that the file does not have.
        DatasetCorruptError: the file is not a table of images and labels, a file it lists does not
            exist, or an image has contradicting labels. The message gives the line.
    """
    file, choice = _with_choice(root)
    if not file.is_file():
        listed = sorted(path.name for path in file.glob("*.csv")) if file.is_dir() else []
        found = f": it is a folder, with {', '.join(map(printable, listed[:5]))}" if listed else ""
        raise DatasetMissingError(
            f"{printable(str(file))}: no such file{found}", f"give its path: {spec.name}:FILE"
        )
    description = read_description(file.parent, "classification")
    dataset = labelled(spec, read_table(file), file.parent, choice, description.reading)
    return with_description(dataset, description)


def _with_choice(root: Path) -> tuple[Path, Choice]:
    """Split FILE#KEY=VALUE,… into the file and the choices."""
    name, mark, text = str(root).rpartition("#")
    if not mark or root.exists() or not re.match(r"\w+=", text):
        return root, Choice()
    choices: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in OPTIONS or not value:
            nearest = did_you_mean(key, OPTIONS)
            raise UsageError(
                f"'#{printable(part)}': no such choice{nearest}",
                f"{printable(name)}#KEY=VALUE, with KEY one of {', '.join(OPTIONS)}",
            )
        choices[key] = value
    return Path(name), Choice.of(choices)


def read_table(file: Path) -> Table:
    """Return the rows of a text file, and the names of its columns.

    Raises:
        DatasetCorruptError: it is not text, has no rows, or a row has another number of fields.
    """
    text, declared = _without_declaration(_text(file))
    separator = declared or _separator(text)
    rows = list(_rows(text, separator))
    if not rows:
        raise DatasetCorruptError(f"{file}: no rows")
    (first_line, first), width = rows[0], len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise DatasetCorruptError(
                f"{file}:{line}: {counted(len(row), 'field')}, but line {first_line} has {width}",
                "put fields that contain the separator in double quotes, and begin with the names "
                "of the columns: no title, no comment",
            )
    if not is_header(first, rows[1][1] if len(rows) > 1 else None):
        names = tuple(f"column {number}" for number in range(1, width + 1))
        return Table(str(file), names, rows, header=False)
    if repeated := [name for name, count in Counter(_named(first)).items() if count > 1]:
        raise DatasetCorruptError(f"{file}: two columns are called '{printable(repeated[0])}'")
    return Table(str(file), _named(first), rows[1:], header=True)


def _named(header: Sequence[str]) -> tuple[str, ...]:
    """Return the names of columns; one without a name, as of pandas' index, gets its number."""
    return tuple(name or f"column {number}" for number, name in enumerate(header, 1))


def _without_declaration(text: str) -> tuple[str, str]:
    """Return the text with an empty first line for Excel's "sep=;", and the separator, or ""."""
    first, end, rest = text.partition("\n")
    found = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    return (end + rest, found[1]) if found else (text, "")


def _text(file: Path) -> str:
    """Return the text of a file: UTF-8, with or without a byte order mark, or UTF-16 with one."""
    if file.stat().st_size > MAX_BYTES:
        raise DatasetCorruptError(f"{file}: {file.stat().st_size:,} bytes, at most {MAX_BYTES:,}")
    data = file.read_bytes()
    if data.startswith(b"PK"):
        raise DatasetCorruptError(f"{file}: not text; a workbook?", "save it as CSV (UTF-8)")
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetCorruptError(
            f"{file}: not UTF-8 at byte {error.start:,}", "save it as CSV (UTF-8)"
        ) from error
    if "\0" in text:
        raise DatasetCorruptError(f"{file}: not text: it contains NUL characters")
    return text


def _separator(text: str) -> str:
    """Return the separator that splits all of the first rows into equally many fields."""
    head = "".join(text.splitlines(keepends=True)[:LOOKED_AT])
    by_separator = {mark: [len(row) for _, row in _rows(head, mark)] for mark in SEPARATORS}
    for mark, lengths in by_separator.items():
        if len(set(lengths)) == 1 and lengths[0] > 1:
            return mark
    # Rows of different lengths are an error that `read_table` explains.
    most = {mark: Counter(lengths).most_common(1) for mark, lengths in by_separator.items()}
    return next((mark for mark, common in most.items() if common and common[0][0] > 1), ",")


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each row that is not empty."""
    if separator == " ":  # any number of spaces and tabs
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, next(csv.reader([re.sub(r"\s+", " ", line.strip())], delimiter=" "))
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, [field.strip() for field in row]
    except csv.Error as error:
        raise DatasetCorruptError(f"line {reader.line_num}: {error}") from error
