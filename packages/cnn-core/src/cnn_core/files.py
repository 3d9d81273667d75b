"""Files that are either the old or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["write_atomically", "write_bytes", "write_text"]


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on leaving, sync it and rename it into place.

    If the block raises, or the machine stops, `path` is as it was. The file gets the mode
    that the umask gives to new files.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's contents, atomically."""
    with write_atomically(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace a file's contents by UTF-8 text, atomically."""
    write_bytes(path, text.encode())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no way to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
