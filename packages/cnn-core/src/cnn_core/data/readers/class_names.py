"""Read the names of classes from a file: names in their order, or each with its value in masks."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnn_core.data.readers.description import MAX_VALUE, MaskValue
from cnn_core.errors import UsageError
from cnn_core.text import printable

__all__ = ["ClassNames", "read_names"]

Pairs = list[tuple[MaskValue, str]]  # values with their names

INTEGER = re.compile(r"\d{1,5}", re.ASCII)
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
COLOUR_LINES = (  # "R G B NAME", "NAME R G B", "#rrggbb NAME"
    re.compile(r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})[\s,;]+(?P<name>\S.*)"),
    re.compile(r"(?P<name>.*\S)[\s,;]+(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})"),
    re.compile(r"(?P<hex>#[0-9a-fA-F]{6})[\s,;]+(?P<name>\S.*)"),
    # labelmap.txt of CVAT: label:color_rgb:parts:actions
    re.compile(r"(?P<name>[^:]*\S)\s*:(?P<r>\d{1,3}),(?P<g>\d{1,3}),(?P<b>\d{1,3}):.*"),
)
VALUE_LINES = (  # "0: NAME", "0. NAME" or "0 NAME"
    re.compile(r"(?P<value>\d{1,5})(\s*[,;:=]\s*|[.)]\s+|\s+-\s+|\s+)(?P<name>\S.*)", re.ASCII),
)
NUMBERED = re.compile(r"^\d{1,5}\s*[,;\t]\s*|\s*[,;\t]\s*\d{1,5}$")  # beside a name with a colour
# The header of a file with one column; a class may have such a name, too.
HEADERS = re.compile(r"((class|label|category)(name)?(e?s)?|names?|categories)", re.IGNORECASE)
EXPECTED = "write VALUE,NAME in every line; R,G,B,NAME for masks in colour; or only names"


@dataclass(frozen=True)
class ClassNames:
    """Names of classes as a file lists them: in their order, and by value if it gives values."""

    path: Path
    names: tuple[str, ...] = ()
    by_value: Mapping[MaskValue, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """A line on how the file was read, if it gives values; else ""."""
        if not self.by_value:
            return ""
        value, name = next(iter(self.by_value.items()))
        return f"{self.path}: read as values and names: {value} is '{printable(name)}', …"


def read_names(path: Path) -> ClassNames:
    """Return the names in a file, one per line, each with its value or colour if all have one.

    Lines are NAME, "VALUE,NAME", "R G B NAME" or the like. The header of a table is no name.

    Raises:
        UsageError: there is no such file, it has no lines, only some lines have a value, or it is
            a table of other columns.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("# ")]
    if not lines:
        raise UsageError(f"{path}: expected a name, or a value and a name, in every line")
    if lines[0][0] in "[{<":
        raise UsageError(f"{path}: not a list of names: '{printable(lines[0][:20])}'", EXPECTED)
    pairs = _from_lines(path, lines, COLOUR_LINES) or _from_table(path, lines)
    pairs = pairs or _from_lines(path, lines, VALUE_LINES)
    names = [name for _, name in pairs] if pairs else _alone(path, lines)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{path}: '{printable(twice[0])}' occurs twice")
    if twice := [str(v) for n, (v, _) in enumerate(pairs) if v in [v for v, _ in pairs[:n]]]:
        raise UsageError(f"{path}: {twice[0]} is the value of two names")
    return ClassNames(path, tuple(names), dict(pairs))


def _from_lines(path: Path, lines: Sequence[str], patterns: Sequence[re.Pattern[str]]) -> Pairs:
    """Return values and names if all lines but a header match one pattern; [] if few do.

    Raises:
        UsageError: most lines match, but not all.
    """
    best: Sequence[re.Match[str] | None] = []
    for pattern in patterns:
        rows = [pattern.fullmatch(line) for line in lines]
        best = max(best, rows, key=lambda rows: sum(map(bool, rows)))
    has_header = len(best) > 1 and best[0] is None
    found = [row for row in best if row is not None]
    if 2 * len(found) < len(lines) or not found:
        return []
    pairs = [(_value(row.groupdict()), row["name"].strip()) for row in found]
    if all(NUMBERED.search(name) for _, name in pairs):
        pairs = [(value, NUMBERED.sub("", name, count=1)) for value, name in pairs]
    if len({name for _, name in pairs}) < len(pairs) and patterns is VALUE_LINES:
        return []  # names such as "1 euro" and "2 euro"
    if len(found) < len(lines) - has_header:
        missed = next(line for line, row in list(zip(lines, best, strict=True))[1:] if row is None)
        raise UsageError(
            f"{path}: '{printable(missed)}' has no value, but other lines do", EXPECTED
        )
    return pairs


def _value(groups: Mapping[str, str | None]) -> MaskValue:
    if value := groups.get("value"):
        return int(value)
    if text := groups.get("hex"):
        return text.lower()
    red, green, blue = (min(int(groups[key] or 0), 255) for key in "rgb")
    return f"#{red:02x}{green:02x}{blue:02x}"


def _from_table(path: Path, lines: Sequence[str]) -> Pairs:
    """Return the values and names of a table with a column of each; [] if it is no table.

    Raises:
        UsageError: it has other columns of numbers.
    """
    for mark in (",", ";", "\t"):
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(lines, delimiter=mark, skipinitialspace=True)
        ]
        if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            break
    else:
        return []
    columns = list(zip(*rows, strict=True))
    values = [n for n, column in enumerate(columns) if all(map(_is_value, column[1:]))]
    if len(rows) < 2 or not values:
        return []  # names with commas
    has_header = not all(_is_value(columns[n][0]) for n in values)
    texts = [n for n in range(len(columns)) if n not in values]
    if len(values) != 1 or len(texts) != 1:
        shown = mark.join(rows[0])[:60]
        raise UsageError(f"{path}: a table with other columns: '{printable(shown)}'", EXPECTED)
    found = list(zip(columns[values[0]], columns[texts[0]], strict=True))[has_header:]
    return [(int(v) if INTEGER.fullmatch(v) else v.lower(), name) for v, name in found]


def _is_value(text: str) -> bool:
    if INTEGER.fullmatch(text):
        return int(text) <= MAX_VALUE
    return COLOUR.fullmatch(text) is not None


def _alone(path: Path, lines: Sequence[str]) -> list[str]:
    """Return names without values; the first of them may not look like a header."""
    if len(lines) > 1 and HEADERS.fullmatch(re.sub(r"[\s_:\"-]", "", lines[0])):
        raise UsageError(
            f"{path}: is '{printable(lines[0])}' the name of a class, or a header?",
            "delete it if it is a header; if it is a class, write VALUE,NAME in every line",
        )
    quoted = all(len(line) > 1 and line[0] == line[-1] == '"' for line in lines)
    return [line[1:-1].strip() for line in lines] if quoted else list(lines)
