"""Files and folders that are either the old or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

__all__ = [
    "remove_folder",
    "sweep",
    "write_atomically",
    "write_bytes",
    "write_folder",
    "write_text",
]

CHUNK = 2**20  # bytes written at once
Data = bytes | memoryview


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


def write_bytes(path: Path, data: Data) -> None:
    """Replace a file's contents, atomically."""
    with write_atomically(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace a file's contents by UTF-8 text, atomically."""
    write_bytes(path, text.encode())


def write_folder(path: Path, contents: Mapping[str, Data]) -> None:
    """Make a folder with these files, all of it or nothing; one of that name is replaced.

    Every file is synced and read back before the folder gets its name.

    Raises:
        OSError: the disk is full or cannot be written, or does not give back what was written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.mkdir(temporary)
        for name, data in contents.items():
            _write_new(temporary / name, data)
            if (temporary / name).read_bytes() != data:
                raise OSError(None, "does not read back as it was written", str(path / name))
        _sync_folder(temporary)
        remove_folder(path)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def _write_new(path: Path, data: Data) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest[:CHUNK]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there; first its name, so that nobody meets half of it."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove what a process that was killed in the middle of writing left in a folder."""
    for path in folder.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no way to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
