"""Output of the commands: tables for people, one JSON object for programs."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from cnn_core.text import printable

__all__ = ["emit_json", "heading", "json_option", "line_writer", "listing", "say_path", "table"]

SCHEMA = 1

FC = TypeVar("FC", bound="Callable[..., Any] | click.Command")


def json_option(f: FC) -> FC:
    """Add the option `--json`, which the command receives as `as_json`."""
    option = click.option(
        "--json", "as_json", is_flag=True, help="Print the output as one JSON object."
    )
    return option(f)


def emit_json(noun: str, content: Any, **more: Any) -> None:
    """Print {"schema": 1, noun: content, …} on stdout, with NaN and infinity as null."""
    import json

    document = _plain({"schema": SCHEMA, noun: content, **more})
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Convert a value to JSON's types; NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def heading(text: str) -> None:
    """Print the heading of a table, in bold."""
    click.secho(printable(text), bold=True)


def say_path(path: object, *, err: bool = False) -> None:
    """Print a path. On a terminal, unsafe characters are escaped.

    In a pipe the path is printed unchanged, because the reading program needs the exact name.
    """
    is_terminal = (sys.stderr if err else sys.stdout).isatty()
    click.echo(printable(str(path)) if is_terminal or err else path, err=err)


def listing(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Print rows under column titles; columns in `right` are right-aligned.

    This does not use rich, because importing it would double the startup time of a listing.
    Lines are truncated to the width of a terminal, but not in a pipe, for grep and awk.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    write = line_writer(columns, widths, right=right)
    for row in cells:
        write(row)


def line_writer(
    columns: Sequence[str], widths: Sequence[int], *, right: Sequence[str] = ()
) -> Callable[[Sequence[object]], None]:
    """Print column titles; return a function that prints a row as soon as it is known.

    Columns are at least as wide as `widths`. See `listing` for the rest.
    """
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def write(row: Sequence[object], bold: bool = False) -> None:
        line = "  ".join(
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(columns, map(_cell, row), widths, strict=True)
        ).rstrip()
        if limit is not None and len(line) > limit:
            line = f"{line[: limit - 1]}…"
        click.secho(line, bold=bold)

    write(columns, bold=True)
    return write


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Print rows under column titles: with colour and rules on a terminal, plain in a pipe.

    Columns named in `right` are right-aligned.
    """
    if sys.stdout.isatty():
        cells = [[_cell(value) for value in row] for row in rows]
        _rich_table(columns, cells, right)
    else:
        listing(columns, rows, right=right)


def _cell(value: object) -> str:
    return printable(_text(value))


def _text(value: object) -> str:
    # Before int, since a bool is an int.
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rich_table(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text instead of str, because rich would interpret [brackets] in a str as markup.
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, title in enumerate(columns):
        grid.add_column(
            Text(title),
            justify="right" if title in right else "left",
            style="cyan" if number == 0 else "",
            no_wrap=number == 0 or title in right,
        )
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    Console(emoji=False).print(grid)
