"""Write files and folders so that they are the old or the new ones, never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = [
    "new_folder",
    "remove_folder",
    "sweep",
    "write_atomically",
    "write_bytes",
    "write_new",
    "write_text",
]

CHUNK = 2**20  # bytes written at once
Data = bytes | memoryview


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on leaving, sync it and rename it to `path`.

    If the block raises, or the machine stops, `path` is as it was. The file gets the mode that
    the umask gives to new files.
    """
    # Beside the file: a rename cannot go from one file system to another.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            # The bytes before the name: else a power cut could leave a new name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, *parts: Data) -> None:
    """Replace the contents of a file, atomically."""
    with write_atomically(path) as file:
        for part in parts:
            file.write(part)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of a file with UTF-8 text, atomically."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary folder to write files into; on leaving, sync it and rename it to `path`.

    If the block raises, or the machine stops, `path` is as it was. With `replace` false a file or
    a full folder that is at `path` by then raises an OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    try:
        os.mkdir(temporary)
        yield temporary
        _sync_folder(temporary)
        # A rename replaces an empty folder only.
        if replace:
            remove_folder(path)
        os.rename(temporary, path)  # fails where there is a folder that is not empty
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def write_new(path: Path, *parts: Data) -> None:
    """Write a new file, part after part; sync it and read it back.

    Raises:
        OSError: the file exists, the disk is full or cannot be written, or reading it back gives
            other bytes.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(handle, rest[:CHUNK]) :]
        os.fsync(handle)
        # A fault of the disk is found now, while the older files are still there.
        _require_equal(path, handle, parts)
    finally:
        os.close(handle)


def _require_equal(path: Path, handle: int, parts: tuple[Data, ...]) -> None:
    """Raise OSError unless a file holds exactly these parts."""
    os.lseek(handle, 0, os.SEEK_SET)
    read = bytearray(CHUNK)
    equal = os.fstat(handle).st_size == sum(map(len, parts))
    for part in parts:
        whole = memoryview(part)
        for start in range(0, len(whole), CHUNK):
            expected = whole[start : start + CHUNK]
            read = read if len(read) == len(expected) else bytearray(len(expected))
            count = os.readv(handle, [read])
            equal = equal and count == len(expected) and read == expected  # bytearray's: memcmp
    if not equal:
        raise OSError(errno.EIO, "does not read back as it was written", str(path))


def remove_folder(path: Path) -> None:
    """Remove a folder if it exists; first rename it, so that nobody finds half of it."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the temporary files and folders that killed processes left in a folder."""
    for path in folder.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows offers no way to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
