"""Append a row for every epoch of every run to one CSV file.

The file is $CNN_TRACK_CSV, by default ./experiments.csv. Every cnnzoo command imports this module,
so it imports nothing slow. If a hook raises, cnnzoo prints a line on stderr and continues training
without it.
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
except ImportError:  # Windows has no lock: only one run at a time may write
    fcntl = None  # type: ignore[assignment]

FIRST_COLUMNS = ["run", "model", "data", "epoch"]


@hookimpl
def cnnzoo_epoch_end(run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
    _append(_csv_path(), {**_run_columns(run), **metrics, "epoch": epoch})


@hookimpl
def cnnzoo_fit_end(run: Run, metrics: Mapping[str, float]) -> None:
    # `metrics` includes the best epoch, whose weights were evaluated.
    _append(_csv_path(), {**_run_columns(run), **metrics})


def _csv_path() -> Path:
    return Path(os.environ.get("CNN_TRACK_CSV") or "experiments.csv").expanduser()


def _run_columns(run: Run) -> dict[str, str]:
    recipe = run.recipe
    return {"run": str(run.path.absolute()), "model": recipe.model, "data": recipe.data}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row; if it has new columns, rewrite the file with them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        header = _header(path)
        columns = header or FIRST_COLUMNS
        columns = [*columns, *(name for name in row if name not in columns)]
        if columns == header:
            with path.open("a", encoding="utf-8", newline="") as file:
                if not _ends_a_line(path):  # a crash left half a row: begin a new line
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
    """Rewrite the file with the new row and its new columns.

    Write to a temporary file, then rename it: a crash leaves either the old file or the new one.
    """
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
    """Let only one process at a time change the CSV file.

    The lock is a file of its own, since the CSV file is replaced by a rename. It is never deleted:
    another process may be waiting for it.
    """
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield
