"""Append a row for every epoch of every run to one CSV file: CNN_TRACK_CSV, ./experiments.csv.

cnnzoo imports this module at every start: it knows nothing that is slow to import. What it raises
costs one line on stderr; training goes on without it.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_core import hookimpl

if TYPE_CHECKING:
    from cnn_core.training import Run

try:
    import fcntl
except ImportError:  # Windows: no lock, and one run at a time
    fcntl = None  # type: ignore[assignment]

FIRST = ["run", "model", "data", "epoch"]


@hookimpl
def cnnzoo_epoch_end(run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
    _append(_file(), {**_who(run), **metrics, "epoch": epoch})


@hookimpl
def cnnzoo_fit_end(run: Run, metrics: Mapping[str, float]) -> None:
    _append(_file(), {**_who(run), **metrics})  # "epoch" is the one whose weights were kept


def _file() -> Path:
    return Path(os.environ.get("CNN_TRACK_CSV") or "experiments.csv").expanduser()


def _who(run: Run) -> dict[str, str]:
    recipe = run.recipe
    return {"run": str(run.path.absolute()), "model": recipe.model, "data": recipe.data}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row; if it has columns that the file lacks, write the file again with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        header = _header(path)
        columns = header or FIRST
        columns = [*columns, *(name for name in row if name not in columns)]
        if columns == header:
            with path.open("a", encoding="utf-8", newline="") as file:
                if not _ends_a_line(path):  # a power cut in the middle of a row: it stays alone
                    file.write("\n")
                csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        else:
            _rewrite(path, columns, row)


def _header(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _rewrite(path: Path, columns: list[str], row: Mapping[str, Any]) -> None:
    """Write what is there and the row under more columns; the file is the old or the new one."""
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
    os.replace(temporary, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time change the file. Its lock is a file of its own: it stays."""
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        yield
