"""CSV and JSON Lines files of predictions, written batch by batch, that survive a kill.

A batch is one write of whole lines. A killed process leaves at most one incomplete line, which is
removed when the file is continued. Then the last rows, at least a batch of them, are predicted
again, before all others. So batches are the same as without the kill, and the file is the same to
the byte. If the rows are from another network or other options, this is noticed before anything is
written.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from cnn_core.errors import CorruptError, UsageError
from cnn_core.runs.destinations import folder_of
from cnn_core.text import counted, printable

if TYPE_CHECKING:
    from cnn_core.training.prediction import Prediction

__all__ = ["CsvRows", "JsonRows", "LabelRows", "PredictionFile", "STDOUT", "continue_files"]

STDOUT = Path("-")
# Largest difference of a probability when an image is predicted again. With the same batches and
# options it is 0; another number of threads changes results by 1e-6, --flips by far more.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """A line of a file: the image, its most likely class, all probabilities, and the bytes."""

    image: str
    best: str
    probabilities: tuple[float, ...]
    content: bytes


class Rows(Protocol):
    """A file format. `header` is the first line, or empty."""

    header: bytes

    def encode(self, prediction: Prediction) -> Row:
        """Return the row of a prediction."""

    def decode(self, content: bytes) -> Row:
        """Return the row of a complete line; raise ValueError if it has another format."""

    def is_complete(self, line: bytes) -> bool:
        """Return whether a line that ends in a newline is a whole row."""


class CsvRows:
    """CSV: image, class_1, probability_1, class_2, …; one row per image (RFC 4180, but with LF).

    Bytes of file names that are not UTF-8 are escaped as \\\\udcXX, for readers that expect UTF-8.
    """

    def __init__(self, top_k: int) -> None:
        ranks = range(1, top_k + 1)
        columns = [f"{name}_{rank}" for rank in ranks for name in ("class", "probability")]
        self.header: bytes = _csv_line(["image", *columns])

    def encode(self, prediction: Prediction) -> Row:
        """Return the row of a prediction."""
        image, cells = _text(str(prediction.path)), []
        for name, value in zip(prediction.classes, prediction.probabilities, strict=True):
            cells += [_text(name), f"{value:.6g}"]
        return Row(image, cells[0], _numbers(cells[1::2]), _csv_line([image, *cells]))

    def decode(self, content: bytes) -> Row:
        """Return the row of a complete line; raise ValueError if it has another format."""
        (cells,) = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        if len(cells) != self.header.count(b",") + 1:
            raise ValueError
        return Row(cells[0], cells[1], _numbers(cells[2::2]), content)

    def is_complete(self, line: bytes) -> bool:
        """Return whether a line is whole."""
        return line.count(b'"') % 2 == 0  # otherwise the newline is part of a name


class LabelRows(CsvRows):
    """CSV for multilabel: image, classes and probabilities, each a list such as a|b."""

    def __init__(self) -> None:
        self.header: bytes = _csv_line(["image", "classes", "probabilities"])

    def encode(self, prediction: Prediction) -> Row:
        """Return the row of a prediction."""
        image, names = _text(str(prediction.path)), "|".join(map(_text, prediction.classes))
        values = [f"{value:.6g}" for value in prediction.probabilities]
        line = _csv_line([image, names, "|".join(values)])
        return Row(image, names, _numbers(values), line)

    def decode(self, content: bytes) -> Row:
        """Return the row of a complete line; raise ValueError if it has another format."""
        (cells,) = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        if len(cells) != 3:
            raise ValueError
        values = cells[2].split("|") if cells[2] else ()
        return Row(cells[0], cells[1], _numbers(values), content)


class JsonRows:
    """JSON Lines: {"path": …, "classes": […], "probabilities": […]}, one object per image."""

    header: bytes = b""

    def encode(self, prediction: Prediction) -> Row:
        """Return the line of a prediction."""
        path, classes = str(prediction.path), prediction.classes
        found = {"path": path, "classes": classes, "probabilities": prediction.probabilities}
        content = json.dumps(found).encode() + b"\n"
        best = _text(classes[0]) if classes else ""
        return Row(_text(path), best, prediction.probabilities, content)

    def decode(self, content: bytes) -> Row:
        """Return the row of a complete line; raise ValueError if it has another format."""
        try:
            found = json.loads(content)
            path, best = found["path"], [*found["classes"], ""][0]
            return Row(_text(path), _text(best), _numbers(found["probabilities"]), content)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError from error

    def is_complete(self, line: bytes) -> bool:
        """Return whether a line is whole."""
        return True  # JSON escapes the newlines of names


def _csv_line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    # With its default line ending, the writer also quotes carriage returns.
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue().removesuffix("\r\n").encode() + b"\n"


def _numbers(cells: Iterable[str | float]) -> tuple[float, ...]:
    return tuple(map(float, cells))


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


class PredictionFile:
    """A file of predictions, or stdout, that is written batch by batch; a context manager.

    `continue_files` sets `kept`, the rows to keep of an existing file, and `again`, the rows after
    them, whose images are predicted again. The first write replaces the rows in `again`.

    Raises:
        UsageError: on `add`, if the existing rows were written by another network.
    """

    def __init__(self, path: Path, rows: Rows, batch_size: int) -> None:
        self.path: Path = path
        self.rows: Rows = rows
        self.batch_size: int = batch_size
        self.kept: Sequence[Row] = ()
        self.again: Sequence[Row] = ()
        self._pending: list[bytes] = []

    def __enter__(self) -> PredictionFile:
        self._expected = {row.image: row for row in self.again}
        if self.path == STDOUT:
            # Bytes, because a text stream may have another encoding or other line endings.
            sys.stdout.flush()
            self._file: IO[bytes] = sys.stdout.buffer
            self._file.write(self.rows.header)
        else:
            folder_of(self.path)
            self.path.touch()
            # Unbuffered, so that a batch is a single write.
            self._file = self.path.open("r+b", buffering=0)
            self._truncate(self.kept, self.again)
        return self

    def add(self, prediction: Prediction) -> None:
        """Add a prediction; write the batch when it is full."""
        row = self.rows.encode(prediction)
        if (before := self._expected.pop(row.image, None)) is not None:
            _require_same(self.path, before, row)
        self._pending.append(row.content)
        # The first write replaces the rows of `again`, so it waits until all of them are compared.
        if len(self._pending) == max(self.batch_size, len(self.again)):
            self._write_batch()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            # After an error the batch is incomplete: it will be predicted again.
            if error is None and self._pending:
                self._write_batch()
        finally:
            if self.path != STDOUT:
                self._file.close()

    def _write_batch(self) -> None:
        if self.again:
            self._truncate(self.kept)
            self.again = ()
        content, self._pending = b"".join(self._pending), []
        if self.path == STDOUT:
            self._file.write(content)
            self._file.flush()
        else:
            self._append(content)

    def _truncate(self, *parts: Sequence[Row]) -> None:
        """Leave only the header and these rows in the file."""
        header = self.rows.header
        if self._file.seek(0, io.SEEK_END) < len(header):  # new, or killed at the first write
            self._file.truncate(0)
            self._append(header)
        size = len(header) + sum(len(row.content) for rows in parts for row in rows)
        self._file.truncate(size)

    def _append(self, content: bytes) -> None:
        """Write all of the content or, after Ctrl-C or on a full disk, nothing."""
        start, remaining = self._file.seek(0, io.SEEK_END), memoryview(content)
        try:
            while remaining:  # a raw file may write a part only
                remaining = remaining[self._file.write(remaining) :]
        except BaseException:
            self._file.truncate(start)
            raise


def _require_same(path: Path, before: Row, now: Row) -> None:
    """Raise UsageError if an image that was predicted again has another result."""
    same_count = len(before.probabilities) == len(now.probabilities)
    pairs = zip(before.probabilities, now.probabilities, strict=same_count)
    if same_count and before.best == now.best and all(abs(a - b) <= TOLERANCE for a, b in pairs):
        return
    if same_count:
        was, is_now = (
            f"'{printable(row.best)}' ({max(row.probabilities, default=0):.6f})"
            for row in (before, now)
        )
        found = f"is {was} there, and now {is_now}"
    else:
        found = f"has {len(before.probabilities)} classes there, and now {len(now.probabilities)}"
    raise UsageError(
        f"{path}: was written by another network or with other options: {printable(now.image)} "
        f"{found}",
        "write another file, or use the source, options and device of the first start",
    )


def continue_files(
    files: Sequence[PredictionFile], images: Sequence[str], *, resume: bool
) -> list[int]:
    """Return the indices of the images to predict; set the rows that the files keep.

    With `resume`, images that are in all files are skipped, except those of the last rows: these
    are predicted again, before all others.

    Raises:
        UsageError: a file exists and `resume` is false, or it has other columns, another order, or
            images that are not given.
        CorruptError: a line of a file cannot be read.
    """
    for file in files:
        if file.path != STDOUT and file.path.exists() and not resume:
            raise UsageError(
                f"{file.path}: already exists", "--resume continues it; or delete it first"
            )
    if not resume:
        return list(range(len(images)))
    found = [list(_read_rows(file)) for file in files]
    # A process that writes two files may be killed between the two.
    count = min(map(len, found))
    _require_alike(files, found, count)
    names = [_text(image) for image in images]
    rows = [row.image for row in found[0][:count]]
    _require_given(files[0].path, names, rows)
    # A batch or more: a single row might be the same with other options by chance.
    size = files[0].batch_size
    split = max(count - size, 0) // size * size
    for file, own in zip(files, found, strict=True):
        file.kept, file.again = own[:split], own[split:count]
    left = _not_among(names, rows[:split])
    new = set(_not_among(names, rows))
    # The rows to compare come first, even if images added since come before them in order.
    return sorted(left, key=lambda index: index in new)


def _require_given(path: Path, names: Sequence[str], rows: Sequence[str]) -> None:
    """Raise UsageError if a file has rows of images that are not among the names."""
    others = list((Counter(rows) - Counter(names)).elements())
    if others:
        of = f"of its {len(rows):,} rows"
        one, many = f"{of} is of an image that is not", f"{of} are of images that are not"
        raise UsageError(
            f"{path}: {counted(len(others), one, many)} among those given now, such as "
            f"{printable(others[0])}",
            "give the same paths as when the file was begun, or write another file",
        )


def _not_among(names: Sequence[str], done: Sequence[str]) -> list[int]:
    """Return the indices of names that are not done; a name may occur several times."""
    remaining, left = Counter(done), []
    for index, name in enumerate(names):
        if remaining[name] > 0:
            remaining[name] -= 1
        else:
            left.append(index)
    return left


def _require_alike(
    files: Sequence[PredictionFile], found: Sequence[Sequence[Row]], count: int
) -> None:
    """Raise UsageError unless all files have the same images, except for the last batch."""
    for file, rows in zip(files, found, strict=True):
        same = [row.image for row in rows[:count]] == [row.image for row in found[0][:count]]
        if not same or len(rows) >= count + 2 * file.batch_size:
            raise UsageError(
                f"{file.path}: its images are not those of "
                f"{' and '.join(str(other.path) for other in files if other is not file)}",
                "continue each file with a command of its own",
            )


def _read_rows(file: PredictionFile) -> Iterator[Row]:
    """Yield the complete rows of a file, without an incomplete one at the end."""
    if file.path == STDOUT:
        raise UsageError("--resume: stdout cannot be continued", "write to a file: --csv out.csv")
    if not file.path.exists():
        return
    header, content = file.rows.header, file.path.read_bytes()
    if content[: len(header)] != header[: len(content)]:
        raise UsageError(
            f"{file.path}: its first line is not {header.decode().strip()}",
            "was it written with another --top-k? --resume needs the same one",
        )
    record = b""
    lines = content[len(header) :].splitlines(keepends=True)
    for number, line in enumerate(lines, start=2 if header else 1):
        record += line
        if not line.endswith(b"\n") or not file.rows.is_complete(record):
            continue
        try:
            yield file.rows.decode(record)
        except ValueError as error:
            raise CorruptError(
                f"{file.path}: line {number} is not a prediction",
                "delete this file, or repair the line",
            ) from error
        record = b""
